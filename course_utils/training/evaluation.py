"""Evaluation of a classifier: one pass without gradients, dropout off (lesson 01; lesson 04 goes deeper)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from course_utils.data.batches import to_device


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits and labels of every row, in the order of ``batches``.

    The model is put into evaluation mode and back into the mode it was in.

    Args:
        model: called as ``model(**batch)`` without the labels; its result has ``.logits`` (B, C).
        batches: dicts with ``labels`` (B,) and the model's inputs.

    Returns:
        ``(logits (N, C), labels (N,))`` on the CPU.

    Raises:
        ValueError: there are no batches.
    """
    was_training = model.training
    model.eval()
    logits, labels = [], []
    device = next(model.parameters()).device
    for batch in batches:
        inputs = {name: value for name, value in to_device(batch, device).items() if name != "labels"}
        logits.append(model(**inputs).logits.float().cpu())
        labels.append(batch["labels"].cpu())
    model.train(was_training)
    if not logits:
        raise ValueError(f"batches={type(batches).__name__} is empty; allowed: an iterable with at least one batch")
    return torch.cat(logits), torch.cat(labels)


def evaluate(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Loss (mean cross entropy per row, nats), accuracy and macro-F1 over all rows of ``batches``."""
    logits, labels = predict(model, batches)
    predicted = logits.argmax(-1)
    return {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "accuracy": (predicted == labels).double().mean().item(),
        "macro_f1": macro_f1(predicted, labels, logits.shape[-1]),
    }


def macro_f1(predicted: Tensor, labels: Tensor, num_labels: int) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN): a rare class counts as much as a frequent one.

    Args:
        predicted, labels: class numbers, shape (N,).
        num_labels: classes C; one that neither occurs nor is predicted counts as F1 = 0, as in scikit-learn
            with ``labels=range(C), zero_division=0``.
    """
    confusion = torch.bincount(labels * num_labels + predicted, minlength=num_labels**2).view(num_labels, num_labels)
    hits, of_label, of_prediction = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return (2 * hits.double() / (of_label + of_prediction).clamp(min=1)).mean().item()
