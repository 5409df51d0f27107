"""Models and tokenizer from a configuration: sizes, shapes, round trips."""

import pytest
import torch

from course_utils.data import own_sentences
from course_utils.models import load_causal_lm, load_classifier, load_masked_lm, load_tokenizer, train_tokenizer
from course_utils.models.tokenizer import SPECIAL_TOKENS


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_tokenizer_special_tokens_and_truncation(tokenizer):
    assert tokenizer.is_fast
    assert len(tokenizer) == 8000
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (3, 4)
    ids = tokenizer("Return the sum.")["input_ids"]
    assert ids[0] == 2 and ids[-1] == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "return the sum."
    assert len(tokenizer("word " * 500, truncation=True)["input_ids"]) == 64


def test_tokenizer_knows_its_language(tokenizer):
    ids = [token for text in own_sentences() for token in tokenizer(text)["input_ids"]]
    assert ids.count(tokenizer.unk_token_id) < 0.01 * len(ids)


def test_training_twice_gives_the_same_ids():
    """The trainer's own numbering differs from run to run: the ids, and every result after them, would too."""
    texts = [f"word{i % 97} token{i % 89} piece{i % 83}" for i in range(2000)]
    first, again = (train_tokenizer(texts, 600).get_vocab() for _ in range(2))
    assert first == again
    assert [first[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert sorted(first.values()) == list(range(len(first)))


def test_tokenizer_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = own_sentences()[0]
    assert again(text) == tokenizer(text)
    assert again.model_max_length == tokenizer.model_max_length


def test_classifier_size_and_shapes():
    model = load_classifier(10)
    assert 1.65e6 < parameters(model) < 1.75e6
    out = model(input_ids=torch.ones(2, 7, dtype=torch.long), labels=torch.tensor([0, 9]))
    assert out.logits.shape == (2, 10)
    assert out.loss.ndim == 0


def test_padding_does_not_change_a_prediction():
    model = load_classifier(10).eval()
    ids = torch.tensor([[2, 50, 60, 70, 3]])
    padded = torch.nn.functional.pad(ids, (0, 4))
    mask = (padded != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, model(padded, attention_mask=mask).logits, atol=1e-5, rtol=0)


def test_masked_and_causal_models():
    ids = torch.randint(5, 4000, (2, 9))
    assert load_masked_lm()(input_ids=ids).logits.shape == (2, 9, 8000)
    causal = load_causal_lm()
    assert 1.1e6 < parameters(causal) < 1.5e6
    assert causal(input_ids=ids, labels=ids).logits.shape == (2, 9, 4096)


def test_causal_model_does_not_look_ahead():
    model = load_causal_lm().eval()
    ids = torch.randint(5, 4000, (1, 8))
    changed = ids.clone()
    changed[0, -1] = 3
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0, :-1], model(changed).logits[0, :-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("load", [lambda: load_classifier(1), lambda: load_tokenizer(vocab_size=3)])
def test_sizes_out_of_range_are_refused(load):
    with pytest.raises(ValueError, match="is out of range; allowed"):
        load()
