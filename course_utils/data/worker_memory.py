"""What a loader worker copies: its private memory while it reads a data set, Linux only (lesson 09).

A worker made by ``fork`` shares its parent's pages until one of them writes. Reading a Python object writes: its count
of references stands in the object. So a list of Python objects is copied page by page as it is read, by every worker; a
tensor's or an Arrow table's numbers are not. https://docs.pytorch.org/docs/stable/data.html#multi-process-data-loading
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

_SUMMARY = Path("/proc/self/smaps_rollup")


def private_mib() -> float | None:
    """MiB that belong to this process alone (``proc(5)``); None where the system does not say."""
    try:
        lines = _SUMMARY.read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024


class _Reader(Dataset):
    """Reads ``rows`` one by one; an item is the worker's private memory after reading it, now and then."""

    def __init__(self, rows: Sequence[Any], touch: Callable[[Any], Any], every: int):
        self.rows, self.touch, self.every = rows, touch, every

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> float:
        self.touch(self.rows[number])
        found = private_mib() if number % self.every == 0 else None
        return -1.0 if found is None else found


def growth_in_a_worker(rows: Sequence[Any], touch: Callable[[Any], Any], points: int = 8) -> list[float] | None:
    """MiB by which a worker's private memory has grown after reading each of ``points`` equal parts of ``rows``.

    Args:
        rows: the data set, shared with the worker by ``fork``.
        touch: reads a row, as tokenising or collating would.
        points: measurements, >= 2.

    Returns:
        ``points`` numbers that start at 0; None where the system does not say or does not fork.

    Raises:
        ValueError: ``points`` below 2.
    """
    import torch.multiprocessing as mp

    if points < 2:
        raise ValueError(f"points={points} is out of range; allowed: a whole number >= 2")
    if private_mib() is None or "fork" not in mp.get_all_start_methods():
        return None
    every = max(1, len(rows) // points)
    loader = DataLoader(_Reader(rows, touch, every), batch_size=None, num_workers=1, multiprocessing_context="fork")
    measured = [value for value in loader if value >= 0]
    return [value - measured[0] for value in measured]
