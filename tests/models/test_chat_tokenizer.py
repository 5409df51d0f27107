"""The byte-level tokenizer of lesson 10."""

import pytest

from course_utils.data import load_classification
from course_utils.models.chat_tokenizer import load_chat_tokenizer, train_byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_chat_tokenizer()


def test_any_text_comes_back(tokenizer):
    for text in ("Hello  World", "é😀\n\ttab", " leading", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_it_adds_a_begin_and_no_end_and_names_are_single_tokens(tokenizer):
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id != tokenizer("a")["input_ids"][-1]
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    for name in load_classification()["train"].features["label"].names:
        assert len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) == 1


def test_training_is_repeatable():
    texts = ["the first text", "the second text", "another one"] * 20
    first, second = (train_byte_tokenizer(texts, 300).get_vocab() for _ in range(2))
    assert first == second
