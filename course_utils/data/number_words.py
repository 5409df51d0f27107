"""A small generation task: digits to words, ``"7 8 9 3"`` -> ``"seven thousand eight hundred ninety three"``.

Made by a rule, so that every answer can be checked and shown, and hard enough that a model has to learn when a word is
left out: ``"7 0 0 3"`` is ``"seven thousand three"`` (lesson 04).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = (*UNITS, *TENS, "hundred", "thousand")
DIGITS = tuple("0123456789")
ROWS = {"train": 6_000, "validation": 300, "test": 1_000}


def in_words(number: int) -> str:
    """``number`` in English words.

    Raises:
        ValueError: ``number`` is not from 0 to 9,999.
    """
    if not 0 <= number <= 9_999:
        raise ValueError(f"number={number} is out of range; allowed: a whole number from 0 to 9999")
    if number < 20:
        return UNITS[number]
    words = []
    for size, name in ((1_000, "thousand"), (100, "hundred")):
        if number >= size:
            words += [UNITS[number // size], name]
            number %= size
    if number >= 20:
        words.append(TENS[number // 10 - 2])
        number %= 10
    return " ".join([*words, UNITS[number]] if number else words)


def number_words(seed: int = 0) -> DatasetDict:
    """Splits ``train``, ``validation``, ``test`` of 6,000 / 300 / 1,000 different numbers below 10,000.

    Columns ``text`` (digits with spaces) and ``target`` (words); no number is in two splits.
    """
    from datasets import Dataset, DatasetDict

    numbers = list(range(10_000))
    random.Random(seed).shuffle(numbers)
    made, start = {}, 0
    for split, wanted in ROWS.items():
        chosen, start = numbers[start : start + wanted], start + wanted
        columns = {"text": [" ".join(str(n)) for n in chosen], "target": [in_words(n) for n in chosen]}
        made[split] = Dataset.from_dict(columns)
    return DatasetDict(made)
