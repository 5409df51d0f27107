"""Roman numerals: known values, all different, splits apart, prompts without labels."""

import pytest

from course_utils.data.roman import END, LARGEST, collate, decode, prompt, roman, roman_rows

KNOWN = {1: "I", 4: "IV", 9: "IX", 14: "XIV", 40: "XL", 90: "XC", 400: "CD", 1987: "MCMLXXXVII", 3999: "MMMCMXCIX"}


@pytest.mark.parametrize(("number", "written"), KNOWN.items())
def test_known(number, written):
    assert roman(number) == written


def test_all_different():
    assert len({roman(number) for number in range(1, LARGEST + 1)}) == LARGEST


@pytest.mark.parametrize("number", [0, 4000, -1])
def test_out_of_range(number):
    with pytest.raises(ValueError, match=f"number={number}"):
        roman(number)


def test_rows():
    train, validation = roman_rows(50, 20, seed=1)
    assert (len(train), len(validation)) == (50, 20)
    texts = [decode(row["input_ids"]) for row in train + validation]
    assert len(set(texts)) == 70
    for row, text in zip(train + validation, texts, strict=True):
        number, _, answer = text.partition("=")
        assert answer == roman(int(number)) and row["input_ids"][-1] == END
        assert row["input_ids"][: len(number) + 1] == prompt(int(number))
        assert row["labels"] == [-100] * (len(number) + 1) + row["input_ids"][len(number) + 1 :]
    with pytest.raises(ValueError, match="train=4000"):
        roman_rows(4000)


def test_batches_are_padded_on_the_right():
    rows, _ = roman_rows(8, 1)
    batch = collate(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    assert {value.shape for value in batch.values()} == {(8, max(lengths))}
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
