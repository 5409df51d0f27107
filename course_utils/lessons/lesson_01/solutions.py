"""Solutions of lesson 01's exercises: a value for what is predicted, a function for what is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# 01.1: lengths of Adam's step 1,000 in learning rates. Same sign: m = sqrt(v), the size cancels. Alternating signs: m
# swings between plus and minus (1 - beta1) / (1 + beta1) = 0.1 / 1.9, while v is 1. Two of three positive: step 1,000
# is the first of a cycle, where m = 0.1 + 0.9 * (-0.1 + 0.9 * (0.1 + 0.9 * m)) = 0.091 + 0.729 * m, so m is
# 0.091 / 0.271.
solution_1 = (1.0, round(0.1 / 1.9, 2), round(0.091 / 0.271, 2))


def solution_2(step: int, warmup_steps: int, decay_steps: int, max_steps: int) -> float:
    """Warm-up, a plateau, and a straight fall over the last ``decay_steps``."""
    if step < warmup_steps:
        return step / warmup_steps
    return min(1.0, max(0, max_steps - step) / decay_steps)


def solution_3(rows: int, batch_size: int, accumulation: int, epochs: int) -> dict[str, int]:
    """Count in optimizer steps: an epoch's last micro-batch and its last window may be short, and both count."""
    micro_batches = -(-rows // batch_size)
    steps_per_epoch = -(-micro_batches // accumulation)
    return {"steps_per_epoch": steps_per_epoch, "max_steps": epochs * steps_per_epoch}


def solution_4(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Dropout off and back as it was, no graph, sums over rows divided once."""
    was_training = model.training
    model.eval()
    loss, hits, rows = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            logits, labels = model(**inputs).logits, batch["labels"]
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            hits += (logits.argmax(-1) == labels).sum().item()
            rows += len(labels)
    model.train(was_training)
    return {"loss": loss / rows, "accuracy": hits / rows}


def solution_5(
    model: nn.Module,
    batches: list[dict[str, Tensor]],
    optimizer: Any,
    scheduler: Any,
    evaluate: Callable[[], Any],
    settings: dict[str, Any],
) -> list[float]:
    """The loop: windows, shares of one mean, one step per window, evaluations; a loss per optimizer step."""
    losses = []
    model.zero_grad()
    while len(losses) < settings["max_steps"]:
        for start in range(0, len(batches), settings["accumulation"]):
            window = batches[start : start + settings["accumulation"]]  # the last one of an epoch may be short
            num_targets = sum(len(batch["labels"]) for batch in window)
            window_loss = 0.0
            for batch in window:
                model.train()  # evaluate() may have switched dropout off
                inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
                logits = model(**inputs).logits
                loss = nn.functional.cross_entropy(logits, batch["labels"], reduction="sum") / num_targets
                loss.backward()
                window_loss += loss.item()
            nn.utils.clip_grad_norm_(model.parameters(), settings["max_norm"])
            optimizer.step()
            scheduler.step()
            model.zero_grad()
            losses.append(window_loss)
            if len(losses) % settings["eval_every"] == 0:
                evaluate()
            if len(losses) == settings["max_steps"]:
                break
    return losses
