"""From rows to batches: what a batch is, its order, its windows of accumulation, its device (lessons 01 and 02)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from course_utils.data.sampling import length_grouped_batches

IGNORED = -100  # label of a position that is no target (padding, a prompt): cross entropy's default ignore_index
Batch = dict[str, Tensor]


class ShuffledBatches:
    """Batches in a new random order each epoch, with a position that can be saved.

    The order of epoch e depends on ``seed`` and e only, so a resumed run needs two numbers to find its place. Nothing
    is drawn from the global generator: dropout does not depend on how data is loaded.

    Args:
        rows: the data set, ``rows[i]`` is one example.
        batch_size: examples per batch; one batch of an epoch may be smaller.
        collate: list of examples -> batch of tensors.
        seed: of the order.
        shuffle: False keeps the rows' order.
        lengths: tokens of each row; rows of similar length then share a batch, which saves padding (lesson 02).
            None: rows are drawn independently of their length.

    Raises:
        ValueError: ``batch_size`` below 1, or ``lengths`` that do not belong to shuffled ``rows``.
    """

    def __init__(
        self,
        rows: Sequence,
        batch_size: int,
        collate: Callable[[list], Batch],
        seed: int = 0,
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is out of range; allowed: a whole number >= 1")
        if lengths is not None and not shuffle:
            raise ValueError("shuffle=False keeps the rows' order; allowed with lengths: shuffle=True")
        if lengths is not None and len(lengths) != len(rows):
            raise ValueError(f"lengths={len(lengths)} numbers; allowed: one for each of the {len(rows)} rows")
        self.rows, self.batch_size, self.collate = rows, batch_size, collate
        self.seed, self.shuffle, self.lengths = seed, shuffle, lengths
        self.epoch, self.batches_given = 0, 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.batches_given >= len(self):  # saved after the last batch of an epoch
            self.epoch, self.batches_given = self.epoch + 1, 0
        batches = self.batches_of_epoch()
        while self.batches_given < len(self):
            batch = batches[self.batches_given]
            self.batches_given += 1
            yield self.collate([self.rows[i] for i in batch])
        self.epoch, self.batches_given = self.epoch + 1, 0

    def batches_of_epoch(self) -> list[list[int]]:
        """The row numbers of every batch of the current epoch."""
        if self.lengths is not None:
            rng = np.random.default_rng([self.seed, self.epoch])
            return length_grouped_batches(self.lengths, self.batch_size, rng)
        order = list(range(len(self.rows)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
            order = torch.randperm(len(self.rows), generator=generator).tolist()
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.epoch, self.batches_given = state["seed"], state["epoch"], state["batches_given"]


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of ``size`` successive batches; the last one of an epoch may be shorter and is not dropped."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def check_not_empty(name: str, values: Sequence, what: str) -> None:
    """What every collator asks first.

    Raises:
        ValueError: ``values`` is empty.
    """
    if not len(values):
        raise ValueError(f"{name}=[] holds no {what}; allowed: at least one")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on ``device``."""
    return {name: value.to(device) for name, value in batch.items()}
