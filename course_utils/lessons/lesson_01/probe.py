"""What the checkers of lesson 01 hand to a learner's function: a small model that takes notes, and batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.teach.exercise import Wrong


class Probe(nn.Module):
    """A classifier with dropout that notes in which mode, and with a graph or without, each forward pass ran.

    Called as ``model(input_ids, attention_mask, labels)``: ``.logits`` (B, 3) and, with labels, ``.loss``.
    """

    def __init__(self, dropout: float = 0.5):
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.drop = nn.Embedding(20, 8), nn.Dropout(dropout)
        self.classifier = nn.Linear(8, 3)
        self.double()
        self.forgot_eval = self.kept_graph = False
        self.calls = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        self.calls += 1
        self.forgot_eval |= self.training
        self.kept_graph |= torch.is_grad_enabled()
        logits = self.classifier(self.drop(self.embedding(input_ids).mean(1)))
        loss = nn.functional.cross_entropy(logits, labels) if labels is not None else None
        return SimpleNamespace(logits=logits, loss=loss)


def batches_of(sizes: tuple[int, ...], seed: int) -> list[dict[str, Tensor]]:
    """Micro-batches with these numbers of rows of five tokens; labels are 0, 1 or 2."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(0, 20, (size, 5), generator=generator),
            "attention_mask": torch.ones(size, 5, dtype=torch.long),
            "labels": torch.randint(0, 3, (size,), generator=generator),
        }
        for size in sizes
    ]


def as_number(value: Any) -> float | None:
    """A Python or one-element tensor number as a float; None for anything else, ``True`` and NaN included."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return float(value) if is_number else None


def is_near(value: Any, expected: float, tolerance: float = 1e-6) -> bool:
    found = as_number(value)
    return found is not None and abs(found - expected) <= tolerance * max(1.0, abs(expected))


def shortly(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 90 else text[:87] + "..."


def must_be_callable(answer: Any, what: str) -> None:
    if not callable(answer):
        raise Wrong(given="your answer", expected=what, got=shortly(answer), hint="Define a function with def.")
