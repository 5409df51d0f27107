"""Which rows does a rank read in an epoch? ``DistributedSampler`` by hand (lesson 11).

Reference: https://pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler; rows and their
order are the same (tested).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


class ShardedSampler:
    """Row numbers of one rank: every ``size``-th of an order that all ranks draw alike.

    Args:
        count: rows of the data set.
        rank, size: this rank and the number of ranks.
        seed: of the order, the same on all ranks.
        drop_last: leave out the rows that do not divide. False: fill up with rows of the order's beginning, so that
            these are read twice. Either way all ranks read equally many.

    Raises:
        ValueError: no rows, or ``rank`` is none of ``size``.
    """

    def __init__(self, count: int, rank: int, size: int, seed: int = 0, drop_last: bool = False):
        if count < 1:
            raise ValueError(f"count={count} is out of range; allowed: a whole number >= 1")
        if not 0 <= rank < size:
            raise ValueError(f"rank={rank} is out of range; allowed: 0 to {size - 1}")
        self.count, self.rank, self.size, self.seed, self.drop_last = count, rank, size, seed, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The order of the next pass. Who forgets it reads the rows of every epoch in the order of the first."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.size if self.drop_last else -(-self.count // self.size)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        total = len(self) * self.size
        while len(order) < total:
            order += order[: total - len(order)]
        return iter(order[self.rank : total : self.size])
