"""A small writing task for a causal language model: ``1987=MCMLXXXVII``, a character a token (lesson 05).

Made by a rule, so that every continuation can be checked and shown.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NUMERALS = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")),
    *((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)
PAD, END = 0, 1
CHARACTERS = ("", "", "=", *"0123456789", *"IVXLCDM")  # index = token id; the first two are padding and the end
LARGEST = 3999
TINY_MODEL = {
    **{"vocab_size": len(CHARACTERS), "eos_token_id": END, "bos_token_id": None},
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16},
}  # for load_causal_lm: 200 steps of 64 rows take 6 seconds of a CPU


def roman(number: int) -> str:
    """``number`` as a Roman numeral.

    Raises:
        ValueError: ``number`` is not from 1 to 3,999.
    """
    if not 1 <= number <= LARGEST:
        raise ValueError(f"number={number} is out of range; allowed: a whole number from 1 to {LARGEST}")
    written = ""
    for value, numeral in NUMERALS:
        written += numeral * (number // value)
        number %= value
    return written


def prompt(number: int) -> list[int]:
    """Token ids of ``"1987="``."""
    return [CHARACTERS.index(character, 2) for character in f"{number}="]


def decode(ids: Iterable[int]) -> str:
    """The characters of token ids; padding and end are nothing."""
    return "".join(CHARACTERS[token] for token in ids)


def roman_rows(train: int = 3000, validation: int = 300, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Rows ``{"input_ids", "labels"}`` of different numbers; the prompt's labels are -100 (lesson 02).

    Raises:
        ValueError: more rows than there are numbers.
    """
    if train + validation > LARGEST:
        raise ValueError(f"train={train} + validation={validation} rows; allowed: {LARGEST} numbers in all")
    numbers = list(range(1, LARGEST + 1))
    random.Random(seed).shuffle(numbers)
    rows = [_row(number) for number in numbers[: train + validation]]
    return rows[:train], rows[train:]


def _row(number: int) -> dict[str, list[int]]:
    question = prompt(number)
    answer = [*(CHARACTERS.index(character, 2) for character in roman(number)), END]
    return {"input_ids": question + answer, "labels": [-100] * len(question) + answer}


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Padded batch: ``input_ids``, ``attention_mask`` and ``labels``, each (B, T)."""
    import torch

    length = max(len(row["input_ids"]) for row in rows)

    def padded(ids: list[int], filler: int) -> list[int]:
        return ids + [filler] * (length - len(ids))

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], PAD) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], -100) for row in rows]),
    }
