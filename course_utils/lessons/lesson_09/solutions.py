"""Solutions of lesson 09's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.data.packing import PackedCollator, pack_documents


def solution_1(
    step: Callable, batches: Sequence[dict], clock: Callable[[], float], wait: Callable[[], Any], warmup: int
) -> float:
    """Median useful tokens a second, after ``warmup`` batches that do not count."""
    rates = []
    for number, batch in enumerate(batches):
        useful = int((batch["labels"][:, 1:] != -100).sum())
        wait()  # nothing of the step before may be left in the queue
        began = clock()
        step(batch)
        wait()
        if number >= warmup:
            rates.append(useful / (clock() - began))
    return median(rates)


def solution_2(
    weights: Tensor, gradient: Tensor, scale: float, good_steps: int, interval: int, lr: float
) -> tuple[Tensor, float, int]:
    """SGD with a scaled loss: divide, look, step or skip, choose the next scale."""
    gradient = gradient.float() / scale
    if not torch.isfinite(gradient).all():
        return weights, scale / 2, 0
    weights = weights - lr * gradient
    good_steps += 1
    return (weights, scale * 2, 0) if good_steps == interval else (weights, scale, good_steps)


def solution_3(rows: int, fixed: int, per_row: int, budget: int) -> tuple[int, int]:
    """The largest micro-batch that fits and divides the rows, and how many of them make the step."""
    micro_batch = max(size for size in range(1, rows + 1) if rows % size == 0 and fixed + size * per_row <= budget)
    return micro_batch, rows // micro_batch


def solution_4(
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int,
    length: int,
    tokens: int,
    seconds: float,
    peak: float,
) -> float:
    """PaLM's MFU of a causal model with a gated MLP, no grouped heads, and an output layer."""
    matrices = layers * (4 * hidden * hidden + 3 * hidden * intermediate) + vocabulary * hidden
    attention = 12 * layers * hidden * length / 2
    return (6 * matrices + attention) * tokens / seconds / peak


def solution_5(
    model: nn.Module, optimizer: torch.optim.Optimizer, documents: Sequence[Sequence[int]], row_length: int
) -> Tensor:
    """One packed step under bf16 autocast; the loss stays a tensor."""
    batch = PackedCollator(dtype=torch.bfloat16)(pack_documents(documents, row_length))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
