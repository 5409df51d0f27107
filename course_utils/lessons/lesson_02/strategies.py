"""The same documents as batches in four ways, and a race between them (lesson 02)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from course_utils.data.batches import IGNORED
from course_utils.data.packing import PackedCollator, pack_documents
from course_utils.data.sampling import LengthGroupedBatchSampler


class Strategies:
    """Batches of one data set for a causal language model: padded in three ways, or packed.

    Args:
        documents: token ids of each document, 1 to ``width`` of them.
        batch_size: documents a step; the packed batches hold as many rows as these fill on average.
        width: L of padding to a maximum, and of the packed rows.
        pad_token_id: filler.
        seed: of the order.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        batch_size: int = 32,
        width: int = 64,
        pad_token_id: int = 0,
        seed: int = 0,
    ):
        self.documents, self.width, self.pad_token_id = documents, width, pad_token_id
        self.lengths = np.array([len(ids) for ids in documents])
        order = np.random.default_rng(seed).permutation(len(documents))
        self.random = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
        grouped = list(LengthGroupedBatchSampler(self.lengths, batch_size, seed=seed))
        self.grouped = grouped[1:] + grouped[:1]  # the longest batch comes first: not a typical one to look at
        self.packed = pack_documents(documents, width, pad_token_id)
        self.rows_a_step = max(1, round(batch_size * len(self.packed) / len(documents)))
        self.names = (f"pad to {width}", "dynamic", "length-grouped", "packed")

    def padded(self, indices: Sequence[int], width: int | None = None) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels`` (-100 on padding) of these documents, (B, width) each."""
        rows = [torch.tensor(self.documents[i]) for i in indices]
        width = width or max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}

    def batch(self, name: str, step: int) -> dict[str, Tensor]:
        """Batch number ``step`` of the strategy called ``name``."""
        if name == "packed":
            first = step * self.rows_a_step
            return PackedCollator()(self.packed[first : first + self.rows_a_step])
        if name == "length-grouped":
            return self.padded(self.grouped[step])
        return self.padded(self.random[step], None if name == "dynamic" else self.width)

    def shares(self) -> dict[str, float]:
        """Strategy -> share of padding among all positions of the data set."""
        total = self.lengths.sum()
        positions = (
            self.width * len(self.documents),
            *(sum(len(b) * self.lengths[b].max() for b in batches) for batches in (self.random, self.grouped)),
            self.width * len(self.packed),
        )
        return {name: float(1 - total / count) for name, count in zip(self.names, positions, strict=True)}

    def grids(self, name: str, steps: int = 2) -> list[np.ndarray]:
        """The first batches as (B, L) document numbers of their row, -1 on padding, to be drawn."""
        if name == "packed":
            rows, size = self.packed, self.rows_a_step
            return [
                torch.stack([row["document_ids"] for row in rows[step * size : (step + 1) * size]]).numpy()
                for step in range(steps)
            ]
        masks = [self.batch(name, step)["attention_mask"] for step in range(steps)]
        return [torch.where(mask == 1, 0, -1).numpy() for mask in masks]


class Speed(NamedTuple):
    """Useful tokens per second of a strategy, as a multiple of padding to a maximum: measured and predicted twice."""

    gain: float
    by_positions: float
    with_fixed: float


def race(ways: Strategies, model: nn.Module, rounds: int = 8) -> dict[str, Speed]:
    """Train ``model`` on each strategy in turn. A token is useful if it is a target.

    Strategies take turns, so that a busy machine slows all alike; the first round warms up; a strategy's time is the
    median of its steps. ``with_fixed`` takes a step's time to be a fixed part, which a tiny batch measures, and a part
    that grows with the positions.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: Mapping[str, Tensor]) -> float:
        begin = perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return perf_counter() - begin

    tiny = {name: tensor[:1, :4] for name, tensor in ways.batch(ways.names[0], 0).items()}
    times = {name: [] for name in (*ways.names, "tiny")}
    useful, positions = dict.fromkeys(ways.names, 0), dict.fromkeys(ways.names, 0)
    for number in range(rounds + 1):
        for name in times:
            batch = tiny if name == "tiny" else ways.batch(name, number)
            seconds = step(batch)
            if number == 0:
                continue
            times[name].append(seconds)
            if name != "tiny":
                useful[name] += int((batch["labels"][:, 1:] != IGNORED).sum())  # what stands first is never predicted
                positions[name] += batch["input_ids"].numel()
    return _speeds(useful, positions, {name: median(found) for name, found in times.items()})


def _speeds(useful: dict[str, int], positions: dict[str, int], seconds: dict[str, float]) -> dict[str, Speed]:
    base = next(iter(useful))
    fixed = min(seconds["tiny"], seconds[base])
    slope = (seconds[base] - fixed) / positions[base]
    found = {}
    for name, count in useful.items():
        worth = count / useful[base]  # useful tokens a step, against the base
        found[name] = Speed(
            worth * seconds[base] / seconds[name],
            worth * positions[base] / positions[name],
            worth * seconds[base] / (fixed + slope * positions[name]),
        )
    return found
