"""Which examples form a batch: batches of similar length waste little on padding (lesson 02)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


def length_grouped_batches(
    lengths: Sequence[int], batch_size: int, rng: np.random.Generator, megabatch: int = 50, drop_last: bool = False
) -> list[list[int]]:
    """Group the indices of ``lengths`` into batches of similar length, in random order.

    Shuffle everything, cut into megabatches of ``megabatch * batch_size`` examples, sort each by length, cut it into
    batches, shuffle the batches. Sorting inside a megabatch only keeps the batches random enough to train on; sorting
    everything would put the same examples together in every epoch. transformers' ``LengthGroupedSampler`` has the same
    idea, but leaves the batches of a megabatch in order of length.

    Args:
        lengths: number of tokens of each of N examples.
        batch_size: examples a batch, >= 1.
        rng: source of randomness.
        megabatch: batches that are sorted together, >= 1. 1: no grouping.
        drop_last: leave out the examples that do not fill a batch.

    Returns:
        Lists of indices. The batch with the longest example comes first, so that memory runs out at the first step, if
        ever. Without ``drop_last`` each index occurs once, and one batch may be smaller.

    Raises:
        ValueError: ``batch_size`` or ``megabatch`` below 1.
    """
    for name, value in {"batch_size": batch_size, "megabatch": megabatch}.items():
        if value < 1:
            raise ValueError(f"{name}={value} is out of range; allowed: a whole number >= 1")
    lengths = np.asarray(lengths)
    order = rng.permutation(len(lengths))
    batches, size = [], megabatch * batch_size
    for start in range(0, len(order), size):
        group = order[start : start + size]
        group = group[np.argsort(-lengths[group], kind="stable")]  # stable: equal lengths keep their shuffled order
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    if drop_last:
        batches = [batch for batch in batches if len(batch) == batch_size]
    batches = [batches[i].tolist() for i in rng.permutation(len(batches))]
    if batches:
        longest = max(range(len(batches)), key=lambda i: max(lengths[batches[i]]))
        batches[0], batches[longest] = batches[longest], batches[0]
    return batches


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Batch sampler for ``DataLoader(dataset, batch_sampler=...)`` on top of ``length_grouped_batches``.

    The order depends on ``seed`` and epoch alone, so that a resumed run sees the batches an uninterrupted one would:
    call ``set_epoch`` before each epoch, store ``state_dict()`` in the checkpoint.

    Args:
        lengths: number of tokens of each example.
        batch_size, megabatch, drop_last: see ``length_grouped_batches``.
        seed: >= 0.

    Raises:
        ValueError: no examples, a size below 1 or a negative seed.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int = 0, megabatch: int = 50, drop_last: bool = False
    ):
        if len(lengths) == 0:
            raise ValueError("lengths=[] holds no examples; allowed: one length per example")
        if seed < 0:
            raise ValueError(f"seed={seed} is out of range; allowed: a whole number >= 0")
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.megabatch, self.drop_last = megabatch, drop_last
        self.epoch, self.position = 0, 0  # position: batches of this epoch already handed out
        self._resume_at = 0
        self._batches()  # raises on a bad size now, not at the first step

    def _batches(self) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        return length_grouped_batches(self.lengths, self.batch_size, rng, self.megabatch, self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Draw epoch ``epoch``'s order from the next iteration on, from its beginning."""
        self.epoch, self.position, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs. With DataLoader workers the sampler runs ahead of training: count steps yourself."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state_dict`` was taken: the next iteration yields the epoch's remaining batches."""
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._resume_at = self.position

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        # Used up at once: a second iteration of the same epoch starts at its beginning, as with any sampler.
        self.position, self._resume_at = self._resume_at, 0
        for batch in self._batches()[self.position :]:
            self.position += 1
            yield batch
