"""A right training loop that can be told to make one of the mistakes that raise no error, and says what it did.

The lesson measures what the mistakes cost; the last exercise's checker recognises them in a learner's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
BUGS = (
    "loss / k",
    "mean not divided",
    "scheduler per micro-batch",
    "scheduler inside the window",
    "no scheduler",
    "zero_grad forgotten",
    "zero_grad per micro-batch",
    "last window dropped",
    "last window left in .grad",
    "last window divided as if full",
    "not clipped",
    "clipped per micro-batch",
    "dropout stays off",
)


@dataclass
class Run:
    """What a loop did: one entry per optimizer step (``began_empty``: per window), and a count."""

    losses: list[float] = field(default_factory=list)  # mean over the targets of the step's window
    rates: list[float] = field(default_factory=list)  # learning rate of the step
    norms: list[float] = field(default_factory=list)  # gradient norm before clipping
    began_empty: list[bool] = field(default_factory=list)  # were all gradients zero before the window's first forward
    targets_of_epoch: int = 0  # targets whose gradients reached a step, first epoch


def gradients_are_empty(model: nn.Module) -> bool:
    """The check for a forgotten ``zero_grad``, to be called before a window's first forward pass."""
    return all(p.grad is None or not p.grad.any() for p in model.parameters())


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy summed over a batch's rows; ``model(**inputs)`` gives ``.logits`` (B, C)."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return nn.functional.cross_entropy(model(**inputs).logits, batch["labels"], reduction="sum")


def loop(
    model: nn.Module,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    accumulation: int,
    max_steps: int,
    max_norm: float = 1.0,
    evaluate: Callable[[], Any] | None = None,
    eval_every: int = 0,
    bug: str | None = None,
) -> Run:
    """Train with windows, shares of the window's mean, clipping, a schedule and evaluations, or nearly so.

    Args:
        batches: micro-batches of one epoch, with ``labels`` (B,); passed over again until ``max_steps`` is reached.
        bug: one of ``BUGS``, or None for the right loop.

    Raises:
        ValueError: an unknown ``bug``, or an epoch without a single step.
    """
    if bug is not None and bug not in BUGS:
        raise ValueError(f"bug={bug!r} is not known; allowed: {', '.join(map(repr, BUGS))}")
    run, full = Run(), accumulation * len(batches[0]["labels"])
    model.zero_grad()
    model.train(bug != "dropout stays off")
    while len(run.losses) < max_steps:
        steps_before_epoch = len(run.losses)
        for start in range(0, len(batches), accumulation):
            window = batches[start : start + accumulation]
            is_short = len(window) < accumulation
            if is_short and bug == "last window dropped":
                continue
            run.began_empty.append(gradients_are_empty(model))
            loss = _backward(model, window, accumulation, full, max_norm, bug)
            if bug == "scheduler inside the window":
                for _ in window:
                    scheduler.step()  # too often, and before the step
            if is_short and bug == "last window left in .grad":
                continue
            if steps_before_epoch == 0:
                run.targets_of_epoch += sum(len(batch["labels"]) for batch in window)
            run.rates.append(optimizer.param_groups[0]["lr"])
            run.norms.append(_norm(model))
            if bug != "not clipped":
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            if bug not in ("no scheduler", "scheduler inside the window"):
                scheduler.step()
            if bug == "scheduler per micro-batch":
                for _ in window[1:]:
                    scheduler.step()
            if bug != "zero_grad forgotten":
                model.zero_grad()
            run.losses.append(loss)
            if evaluate is not None and eval_every and len(run.losses) % eval_every == 0:
                evaluate()
            if len(run.losses) == max_steps:
                return run
        if len(run.losses) == steps_before_epoch:
            raise ValueError(f"batches={len(batches)} micro-batches make no step; allowed: at least accumulation")
    return run


def _backward(
    model: nn.Module, window: Sequence[Batch], accumulation: int, full: int, max_norm: float, bug: str | None
) -> float:
    """Forward and backward of every micro-batch; returns the window's mean loss per target."""
    total = sum(len(batch["labels"]) for batch in window)
    if bug == "last window divided as if full" and len(window) < accumulation:
        total = full
    loss = 0.0
    for batch in window:
        if bug != "dropout stays off":
            model.train()  # an evaluation may have switched dropout off
        divisor = {"loss / k": accumulation * len(batch["labels"]), "mean not divided": len(batch["labels"])}
        share = summed_loss(model, batch) / divisor.get(bug, total)
        if bug == "zero_grad per micro-batch":
            model.zero_grad()
        share.backward()
        if bug == "clipped per micro-batch":
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        loss += share.item()
    return loss


def _norm(model: nn.Module) -> float:
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
