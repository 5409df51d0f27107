"""What every metric script checks before it computes; one sentence per fault: field, value, allowed.

``evaluate`` copies a script away from its folder before it runs it, so the scripts import this by its full name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Checked:
    """Put before ``evaluate.Metric``: refuses a batch that cannot be right, before ``evaluate`` meets it."""

    def add_batch(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> None:
        """As ``evaluate.Metric.add_batch``.

        Raises:
            ValueError: nothing in it, different lengths, or rows that are no numbers where numbers are due.
        """
        wants_numbers = isinstance(self.features, dict)  # metrics of texts have a list of two possible features
        for field, values in {"predictions": predictions, "references": references}.items():
            if values is None or len(values) == 0:
                raise ValueError(f"{field}={'None' if values is None else '[]'} is empty; allowed: at least one row")
            first = values[0]
            if wants_numbers and (isinstance(first, str) or np.ndim(first)):
                shown = repr(first) if isinstance(first, str) else f"{len(first)} values"
                raise ValueError(f"{field}[0] is {shown}; allowed: one number a row (of logits the argmax)")
            if not wants_numbers and isinstance(first, int | float):
                raise ValueError(f"{field}[0]={first!r} is no text; allowed: texts (decode token ids first)")
        if len(predictions) != len(references):
            raise ValueError(
                f"predictions has {len(predictions)} rows and references {len(references)}; allowed: equally many"
            )
        super().add_batch(predictions=predictions, references=references, **columns)


def numbers(field: str, values: Any) -> NDArray[np.float64]:
    """``values`` as floats, shape (N,).

    Raises:
        ValueError: there are none, or one is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{field}=[] is empty; allowed: at least one value")
    if array.ndim != 1:
        raise ValueError(f"{field} has the shape {array.shape}; allowed: one value a row")
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise ValueError(f"{field}[{wrong[0]}]={array[wrong[0]]:g} is not finite; allowed: finite numbers")
    return array


def class_numbers(field: str, values: Any, num_labels: int | None = None) -> NDArray[np.int64]:
    """``values`` as class numbers, shape (N,).

    The scripts declare classes as float64: an int64 column would turn 0.7 into class 0 without a word.

    Raises:
        ValueError: there are none, or one is no whole number from 0 to ``num_labels`` - 1.
    """
    array = numbers(field, values)
    highest = np.inf if num_labels is None else num_labels - 1
    wrong = np.flatnonzero((array != np.floor(array)) | (array < 0) | (array > highest))
    if wrong.size:
        allowed = "whole numbers >= 0" if num_labels is None else f"whole numbers from 0 to {num_labels - 1}"
        raise ValueError(f"{field}[{wrong[0]}]={array[wrong[0]]:g} is no class number; allowed: {allowed}")
    return array.astype(np.int64)


def texts(field: str, values: Sequence) -> list:
    """``values`` as a list of texts, or of lists of them.

    Raises:
        ValueError: there are none, or a row has no text at all.
    """
    rows = list(values)
    if not rows:
        raise ValueError(f"{field}=[] is empty; allowed: at least one text")
    for place, row in enumerate(rows):
        if row is None or (not isinstance(row, str) and (not len(row) or None in row)):
            raise ValueError(f"{field}[{place}]={row!r} is no text; allowed: a text, or a list of at least one")
    return rows


def averaging(
    average: str | None, allowed: Sequence[str | None] = ("binary", "micro", "macro", "weighted", None)
) -> None:
    """Raise ``ValueError`` for an unknown way to average over classes."""
    if average not in allowed:
        raise ValueError(f"average={average!r} is not known; allowed: {', '.join(map(repr, allowed))}")


def several(field: str, array: NDArray) -> None:
    """Raise ``ValueError`` where there are fewer than two rows: nothing varies then."""
    if array.size < 2:
        raise ValueError(f"{field} has {array.size} row; allowed: at least 2, with fewer nothing varies")


def constant(array: NDArray) -> bool:
    """Whether all values are equal."""
    return bool(np.all(array == array[0]))


def at_least(field: str, array: NDArray, lowest: float) -> None:
    """Raise ``ValueError`` for a value below ``lowest``."""
    wrong = np.flatnonzero(array < lowest)
    if wrong.size:
        raise ValueError(f"{field}[{wrong[0]}]={array[wrong[0]]:g} is out of range; allowed: >= {lowest}")


def equally_many(field: str, rows: Sequence[Sequence]) -> None:
    """Raise ``ValueError`` where rows hold different numbers of texts."""
    for place, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"{field}[{place}] has {len(row)} texts; allowed: {len(rows[0])}, as the first row has")
