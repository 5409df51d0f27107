"""Solutions of lesson 06's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.training.evaluation import macro_f1

# a: an exact sum, divided by k. b: the sum is averaged once more. c: means need no factor n. d: k means, no factor n.
solution_1 = {"a": 0.125, "b": 0.25, "c": 4, "d": 2}


def solution_2(trainer: Any, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None):
    """A weighted override that adds up: sum / labels of the window, times the processes that will be averaged over."""
    outputs = model(inputs["input_ids"])
    losses = F.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")  # 0 where the label is -100
    weights = trainer.class_weights.to(losses)[inputs["labels"].clamp(min=0)]
    loss = (weights * losses).sum() / num_items_in_batch
    loss = loss * trainer.accelerator.num_processes  # gradients are averaged; in evaluation the losses are
    return (loss, outputs) if return_outputs else loss


def solution_3(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Focal loss of each row; 0 where the label is -100."""
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (-((1 - log_p.exp()) ** gamma) * log_p).masked_fill(labels == -100, 0)


def solution_4(logits: Tensor, labels: Tensor, log_prior: Tensor, taus: Sequence[float]) -> float:
    """The tau whose shifted logits have the best macro-F1: subtracting takes the prior out of a finished model."""

    def score(tau: float) -> float:
        return macro_f1((logits - tau * log_prior).argmax(-1), labels, logits.shape[-1])

    return max(taus, key=score)


def solution_5(logits: Tensor, labels: Tensor, relevance: Tensor, total_relevance: Tensor | float) -> Tensor:
    """Relevance-weighted loss of a causal model: position t predicts token t + 1."""
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")  # (B, T - 1)
    return (relevance[:, 1:] * losses).sum() / total_relevance


def solution_6(counts: Tensor, gamma: float) -> Callable:
    """A balanced focal loss that honours num_items_in_batch, for any split into micro-batches."""
    class_weights = counts.sum() / (len(counts) * counts.double())  # mean over the training rows: 1

    def loss_function(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs["logits"]
        targets = labels != -100
        rows, known = logits[targets].float(), labels[targets]
        losses = class_weights.to(rows)[known] * solution_3(rows, known, gamma)
        return losses.sum() / (targets.sum() if num_items_in_batch is None else num_items_in_batch)

    return loss_function


def example_rows(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random logits (count, classes) and labels (count,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)
