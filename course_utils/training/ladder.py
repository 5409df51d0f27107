"""The ladder from a naive training step to a fast one: each rung changes one thing (lesson 09, ``bench_ladder.py``).

Every rung trains the same model on the same documents with as many optimizer steps, so that a ratio of times compares
like with like. Only *useful* tokens count: targets, neither padding nor a document's first token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from course_utils.data.batches import IGNORED
from course_utils.data.packing import PackedCollator, pack_documents
from course_utils.training.intervals import Interval, bootstrap


@dataclass(frozen=True)
class Rung:
    """How a step is done; the defaults are the naive way."""

    name: str = "naive"
    tokenise: str = "row"  # "row": each text when it is needed; "batch": all before training, in one call
    batches: str = "max"  # "max", "dynamic", "grouped", "packed"
    bf16: bool = False
    optimizer: str = "for-loop"  # "for-loop", "foreach", "fused"
    attention: str = "eager"  # "eager", "sdpa"
    compiled: bool = False
    workers: int = 0
    tf32: bool = False  # from here on: GPU only
    pinned: bool = False
    cuda_graphs: bool = False
    liger: bool = False
    checkpointing: bool = False


_CHANGES = (
    ("tokenise in batches", {"tokenise": "batch"}),
    ("pad to the longest", {"batches": "dynamic"}),
    ("group by length", {"batches": "grouped"}),
    ("pack", {"batches": "packed"}),
    ("bf16 autocast", {"bf16": True}),
    ("fused AdamW", {"optimizer": "fused"}),
    ("SDPA attention", {"attention": "sdpa"}),
    ("torch.compile", {"compiled": True}),
    ("a loader worker", {"workers": 1}),
)
_ON_A_GPU = (
    ("TF32", {"tf32": True}),
    ("pinned memory, asynchronous copies", {"pinned": True}),
    ("CUDA graphs", {"cuda_graphs": True}),
    ("Liger kernels", {"liger": True}),
)


def _climb(first: Rung, changes: Sequence[tuple[str, dict[str, Any]]]) -> tuple[Rung, ...]:
    rungs = [first]
    for name, change in changes:
        rungs.append(replace(rungs[-1], name=name, **change))
    return tuple(rungs)


LADDER = _climb(Rung(), _CHANGES)  # each rung keeps what the ones before it changed
GPU_LADDER = _climb(LADDER[-1], _ON_A_GPU)[1:]


class Round(NamedTuple):
    """One measured stretch: targets trained on, positions computed, seconds by the clock and of this process's CPU."""

    useful: int
    computed: int
    wall: float
    cpu: float


class Orders:
    """The work of a run, a list a step: which documents, as rows. A data set whose item is a ready batch.

    Args:
        rung: how documents become batches.
        texts: of all rounds; each step gets ``per_step`` of them.
        tokenizer: a transformers tokenizer.
        row_length: L, the longest document and the length of a packed row.
        per_step: documents of an optimizer step.
        steps: optimizer steps of a round. Grouping and packing choose among a round's documents.
    """

    def __init__(self, rung: Rung, texts: Sequence[str], tokenizer: Any, row_length: int, per_step: int, steps: int):
        self.rung, self.texts, self.tokenizer, self.row_length = rung, texts, tokenizer, row_length
        self.pad = tokenizer.pad_token_id
        self.documents: list[list[int]] = []
        if rung.tokenise == "batch":
            self.documents = tokenizer(list(texts), truncation=True, max_length=row_length)["input_ids"]
        elif rung.batches != "max":
            raise ValueError(f"batches={rung.batches!r} needs lengths in advance; allowed: tokenise='batch'")
        self.steps: list[Any] = []
        for start in range(0, len(texts), per_step * steps):
            self.steps += self._round(list(range(start, min(start + per_step * steps, len(texts)))), per_step, steps)

    def _round(self, numbers: list[int], per_step: int, steps: int) -> list[Any]:
        if self.rung.batches == "packed":
            rows = pack_documents([self.documents[i] for i in numbers], self.row_length, self.pad)
            parts = np.array_split(np.arange(len(rows)), min(steps, len(rows)))  # the last round may be short
            return [rows[part[0] : part[-1] + 1] for part in parts]
        if self.rung.batches == "grouped":
            numbers = sorted(numbers, key=lambda i: len(self.documents[i]))
        return [numbers[start : start + per_step] for start in range(0, len(numbers), per_step)]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        work = self.steps[step]
        if self.rung.batches == "packed":
            return PackedCollator(dtype=torch.bfloat16 if self.rung.bf16 else torch.float32)(work)
        documents = [self.documents[i] if self.documents else self._tokenised(self.texts[i]) for i in work]
        width = self.row_length if self.rung.batches == "max" else max(map(len, documents))
        ids = torch.full((len(documents), width), self.pad)
        mask = torch.zeros(len(documents), width, dtype=torch.int64)
        for row, document in enumerate(documents):
            ids[row, : len(document)] = torch.tensor(document)
            mask[row, : len(document)] = 1
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, 0] = IGNORED  # nothing predicts it
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _tokenised(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=self.row_length)["input_ids"]


class Climb:
    """One rung at work: ``round()`` trains the next round's steps and says how long it took.

    Args:
        rung: of ``LADDER``, or any other.
        texts, tokenizer, row_length, per_step, steps: see ``Orders``.
        model: a causal language model; the rung sets its attention and wraps it.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        rung: Rung,
        texts: Sequence[str],
        tokenizer: Any,
        model: nn.Module,
        row_length: int = 128,
        per_step: int = 16,
        steps: int = 2,
        device: str = "cpu",
    ):
        self.rung, self.steps, self.device = rung, steps, device
        began, began_cpu = time.perf_counter(), time.process_time()
        orders = Orders(rung, texts, tokenizer, row_length, per_step, steps)
        rounds = max(1, len(orders) // steps)
        # What is done once for all rounds is charged to each of them in equal parts.
        self._share = (time.perf_counter() - began) / rounds, (time.process_time() - began_cpu) / rounds
        self.model = _prepared(model.to(device).train(), rung)
        weights = [p for p in model.parameters() if p.requires_grad]
        kind = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4, **kind[rung.optimizer])
        self.weights = weights
        loader = DataLoader(orders, batch_size=None, num_workers=rung.workers, pin_memory=rung.pinned)
        self._orders = orders
        self._batches: Iterator[dict[str, Tensor]] = iter(loader)

    def rows_per_step(self) -> int:
        """Rows of a batch, rounded: packed rows, or documents."""
        return round(sum(map(len, self._orders.steps)) / len(self._orders))

    def next_batches(self, count: int) -> list[dict[str, Tensor]]:
        """Batches that are not trained on, at most ``count``; the run goes on after them."""
        return [batch for _, batch in zip(range(count), self._batches, strict=False)]

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One optimizer step; the loss stays where it was computed."""
        batch = {name: value.to(self.device, non_blocking=self.rung.pinned) for name, value in batch.items()}
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.rung.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=self.rung.optimizer != "for-loop")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def round(self) -> Round:
        """Train one round.

        Raises:
            StopIteration: the texts are used up.
        """
        useful = computed = 0
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(self.steps):
            batch = next(self._batches)
            useful += int(batch["labels"][:, 1:].ne(IGNORED).sum())
            computed += batch["input_ids"].numel()
            self.step(batch)
        if self.device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        return Round(useful, computed, wall + self._share[0], cpu + self._share[1])


def _prepared(model: nn.Module, rung: Rung) -> nn.Module:
    """The model as the rung runs it."""
    model.set_attn_implementation(rung.attention)
    if rung.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if rung.tf32:
        torch.set_float32_matmul_precision("high")
    if rung.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model)
    if not rung.compiled:
        return model
    # Packed rows a step vary by one: sizes that may vary from the start cost one compilation instead of two.
    mode = "reduce-overhead" if rung.cuda_graphs else None
    return torch.compile(model, dynamic=not rung.cuda_graphs, mode=mode)


def interleaved(climbs: Sequence[Climb], rounds: int, warmup: int = 1) -> dict[str, list[Round]]:
    """Rounds of each climb, taken in turn: whatever slows the machine down for a while slows all of them.

    Args:
        climbs: whose texts last for ``warmup + rounds`` rounds.
        rounds: measured, >= 1.
        warmup: not measured; compiling happens here.

    Raises:
        ValueError: ``rounds`` below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is out of range; allowed: a whole number >= 1")
    found: dict[str, list[Round]] = {climb.rung.name: [] for climb in climbs}
    for number in range(warmup + rounds):
        for climb in climbs:
            one = climb.round()
            if number >= warmup:
                found[climb.rung.name].append(one)
    return found


def rate(rounds: Sequence[Round], clock: str = "wall") -> float:
    """Median useful tokens per second."""
    return median(one.useful / getattr(one, clock) for one in rounds)


def speedup(rounds: Sequence[Round], base: Sequence[Round], clock: str = "wall", seed: int = 0) -> Interval:
    """How many times as many useful tokens a second as ``base``: the median over rounds, with its 95 % interval.

    Round i of both ran one after the other on the same documents, so their ratio is free of what slowed both. The
    interval is a bootstrap over these ratios.
    """

    def seconds_per_token(one: Round) -> float:
        return getattr(one, clock) / one.useful

    ratios = [seconds_per_token(b) / seconds_per_token(a) for a, b in zip(rounds, base, strict=True)]
    return bootstrap(lambda values: float(np.median(values)), np.array(ratios), seed=seed)
