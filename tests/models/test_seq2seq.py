"""The small encoder-decoder and its tokenizer of whole words."""

import pytest
import torch

from course_utils.models.seq2seq import small_seq2seq, word_tokenizer


def test_a_text_comes_back_and_ends():
    tokenizer = word_tokenizer(("one", "two"))
    ids = tokenizer("two one")["input_ids"]
    assert ids == [5, 4, tokenizer.eos_token_id] and tokenizer.decode(ids, skip_special_tokens=True) == "two one"
    assert tokenizer("three")["input_ids"][0] == tokenizer.unk_token_id and len(tokenizer) == 6


@pytest.mark.parametrize("words", [("a", "a"), ("a b",), ("",), ("</s>",)])
def test_bad_words(words):
    with pytest.raises(ValueError, match="words holds .*; allowed"):
        word_tokenizer(words)


def test_shapes_and_size():
    model = small_seq2seq(44)
    ids = torch.randint(4, 44, (2, 5))
    out = model(input_ids=ids, labels=torch.randint(4, 44, (2, 7)))
    assert out.logits.shape == (2, 7, 44) and 600_000 < model.num_parameters() < 800_000
    assert out.loss.item() > 0


def test_a_vocabulary_without_words():
    with pytest.raises(ValueError, match="vocab_size=4 is out of range; allowed"):
        small_seq2seq(4)
