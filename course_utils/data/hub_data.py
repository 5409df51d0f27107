"""The public data sets behind ``source="hub"``, with the splits and columns of the local ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from course_utils.hub import HUB_NAMES, from_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_hub_classification(name: str = HUB_NAMES["classification"]) -> DatasetDict:
    """SST-2 (Socher et al. 2013, "Recursive Deep Models for Semantic Compositionality"): is the sentence positive?

    SST-2's own test split has no labels (all -1), so its validation split is divided in two halves by a hash of the
    sentence: ``validation`` and ``test``. Splits and columns have the local data's names.

    Args:
        name: ``HUB_NAMES["classification"]`` or ``HUB_NAMES["glue"]`` (the same rows).

    Returns:
        Splits train/validation/test; columns ``text`` (str) and ``label`` (ClassLabel: negative, positive).

    Raises:
        ValueError: unknown ``name``.
        ConnectionError: see ``require_hub``.
    """
    allowed = (HUB_NAMES["classification"], HUB_NAMES["glue"])
    if name not in allowed:
        raise ValueError(f"name={name!r} is not a classification data set of the course; allowed: {', '.join(allowed)}")
    with from_hub(name, "dataset"):
        from datasets import DatasetDict, load_dataset

        raw = load_dataset(name, "sst2" if name == HUB_NAMES["glue"] else None)
        raw = raw.rename_column("sentence", "text").select_columns(["text", "label"])
        halves = split_by_hash(raw["validation"], lambda row: row["text"], {"validation": 0.5, "test": 1.0})
        return DatasetDict(train=raw["train"], **halves)


def load_hub_instructions() -> DatasetDict:
    """Dolly 15k (Databricks 2023): instructions, some with a passage to work on, answered by people.

    Rows that share a passage stay in one split: the split is a hash of the passage, or of the instruction without one.

    Returns:
        Splits train/validation/test (about 80/10/10); columns ``instruction``, ``input`` (may be empty), ``output``.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with from_hub(HUB_NAMES["instructions"], "dataset"):
        from datasets import DatasetDict, load_dataset

        rows = load_dataset(HUB_NAMES["instructions"], split="train")
        rows = rows.rename_columns({"context": "input", "response": "output"})
        rows = rows.select_columns(["instruction", "input", "output"])
        bounds = {"train": 0.8, "validation": 0.9, "test": 1.0}
        return DatasetDict(split_by_hash(rows, lambda row: row["input"].strip() or row["instruction"], bounds))


def load_hub_text() -> DatasetDict:
    """Dolly 15k as running text for language modelling: one row an example, its non-empty parts as paragraphs.

    Returns:
        Splits train/validation/test as in ``load_hub_instructions``; column ``text``.

    Raises:
        ConnectionError: see ``require_hub``.
    """

    def join(row: dict[str, str]) -> dict[str, str]:
        parts = (row["instruction"], row["input"], row["output"])
        return {"text": "\n\n".join(part.strip() for part in parts if part.strip())}

    rows = load_hub_instructions()
    return rows.map(join, remove_columns=["instruction", "input", "output"])


def split_by_hash(rows: Dataset, key: Callable[[dict[str, Any]], str], bounds: dict[str, float]) -> dict[str, Dataset]:
    """Deal ``rows`` into splits by SHA-256 of ``key(row)``: the same on every machine, and equal keys stay together.

    Args:
        bounds: split name -> upper end of its share of the unit interval, ascending, the last one 1.0.
    """
    members: dict[str, list[int]] = {name: [] for name in bounds}
    for index, row in enumerate(rows):
        digest = hashlib.sha256(key(row).encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        members[next(name for name, bound in bounds.items() if point < bound or bound == 1.0)].append(index)
    return {name: rows.select(indices) for name, indices in members.items()}
