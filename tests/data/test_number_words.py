"""Numbers in words: spot values, every word known, splits without a common number."""

import pytest

from course_utils.data.number_words import DIGITS, ROWS, WORDS, in_words, number_words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (105, "one hundred five"),
        (7003, "seven thousand three"),
        (4010, "four thousand ten"),
        (9999, "nine thousand nine hundred ninety nine"),
    ],
)
def test_words(number, words):
    assert in_words(number) == words


def test_every_number_has_its_own_words():
    every = [in_words(number) for number in range(10_000)]
    assert len(set(every)) == 10_000 and set(" ".join(every).split()) == set(WORDS)


@pytest.mark.parametrize("number", [-1, 10_000])
def test_out_of_range(number):
    with pytest.raises(ValueError, match=f"number={number} is out of range; allowed"):
        in_words(number)


def test_no_number_is_in_two_splits():
    splits = number_words()
    texts = [set(rows["text"][:]) for rows in splits.values()]
    assert [len(found) for found in texts] == list(ROWS.values())
    assert len(set.union(*texts)) == sum(ROWS.values())
    row = splits["train"][0]
    assert in_words(int(row["text"].replace(" ", ""))) == row["target"] and set(row["text"].split()) <= set(DIGITS)
