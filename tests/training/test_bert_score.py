"""BERTScore by hand: the paper's formula on vectors with known cosines, and an encoder's texts."""

import pytest
import torch

from course_utils.training.bert_score import BertScore, bert_scores, greedy_match, token_vectors


def test_the_papers_formula_on_known_cosines():
    answer = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    reference = torch.tensor([[3.0, 4.0]])  # cosines .6 and .8
    precision, recall = (0.6 + 0.8) / 2, 0.8
    expected = BertScore(precision, recall, 2 * precision * recall / (precision + recall))
    assert greedy_match(answer, reference) == pytest.approx(expected)
    swapped = greedy_match(reference, answer)
    assert (swapped.precision, swapped.recall) == pytest.approx((recall, precision))


def test_an_empty_side_scores_nothing():
    assert greedy_match(torch.zeros(0, 2), torch.ones(1, 2)) == (0, 0, 0)


@pytest.fixture(scope="module")
def encoder():
    from transformers import BertConfig, BertModel

    from course_utils.models import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer("local")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return BertModel(config), tokenizer


def test_equal_texts_score_1_and_others_less(encoder):
    same, other = bert_scores(*encoder, ["the mean of rows", "the mean of rows"], ["the mean of rows", "open a file"])
    assert same == pytest.approx((1, 1, 1))
    assert other.f1 < 0.95


def test_special_tokens_are_left_out_and_layers_checked(encoder):
    model, tokenizer = encoder
    plain = tokenizer("the mean of rows", add_special_tokens=False)["input_ids"]
    assert token_vectors(model, tokenizer, "the mean of rows").shape == (len(plain), 32)
    with pytest.raises(ValueError, match="layer=5 is out of range; allowed: -3 to 2"):
        token_vectors(model, tokenizer, "the mean of rows", layer=5)
    with pytest.raises(ValueError, match="1 answers and 2 references"):
        bert_scores(model, tokenizer, ["a"], ["a", "b"])
