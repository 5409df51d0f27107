"""Cross-entropy of a language model that never holds all logits, by hand (lesson 09).

Logits are the largest tensor of a small model with a large vocabulary: N tokens times V scores, in fp32, several times.
But a row of logits is needed only to turn one hidden vector into a loss and a gradient. So a chunk of rows is computed,
used and thrown away. The gradient is made in the forward pass, while the chunk is there (Hsu et al. 2024, "Liger
Kernel: Efficient Triton Kernels for LLM Training", arXiv:2410.10989, section 3.2; here in plain PyTorch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from course_utils.data.batches import IGNORED


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, labels: Tensor, items: Tensor, chunk: int) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=wide)
        for start in range(0, len(hidden), chunk):
            rows, targets = hidden[start : start + chunk], labels[start : start + chunk]
            counted = targets != IGNORED
            picked = targets.clamp(min=0)[:, None]
            logits = (rows @ weight.T).to(wide)  # (chunk, V): all that ever exists of the logits
            log_sum = logits.logsumexp(-1)
            total += ((log_sum - logits.gather(1, picked)[:, 0]) * counted).sum()
            # d loss / d logits = softmax - 1 at the target, 0 on rows that do not count
            slope = logits.sub_(log_sum[:, None]).exp_()
            slope.scatter_add_(1, picked, -torch.ones_like(picked, dtype=wide))
            slope.mul_((counted.to(wide) / items)[:, None])
            grad_hidden[start : start + chunk] = slope.to(weight.dtype) @ weight
            grad_weight += slope.T @ rows.to(wide)
        context.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total / items

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = context.saved_tensors
        return grad_hidden * grad_output, grad_weight * grad_output, None, None, None


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, num_items: Tensor | int | None = None, chunk: int = 256
) -> Tensor:
    """The sum of the cross-entropy of ``hidden @ weight.T`` against ``labels`` / ``num_items``, chunk by chunk.

    Equal to ``F.cross_entropy(hidden @ weight.T, labels, reduction="sum") / num_items`` in value and gradient. It can
    be differentiated once.

    Args:
        hidden: (N, H), the last layer's output, already shifted against the labels for a causal model.
        weight: (V, H), of the output layer, without a bias.
        labels: (N,), -100 where a row does not count.
        num_items: divisor; None: the labels that count.
        chunk: rows at a time, >= 1: the peak is ``chunk * V`` scores instead of ``N * V``.

    Raises:
        ValueError: ``chunk`` below 1, or shapes that do not fit.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} is out of range; allowed: a whole number >= 1")
    if hidden.ndim != 2 or labels.shape != hidden.shape[:1] or weight.shape[-1:] != hidden.shape[-1:]:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes} do not fit; allowed: (N, H), (V, H), (N,)")
    if num_items is None:
        num_items = (labels != IGNORED).sum()
    items = torch.as_tensor(num_items, device=hidden.device)
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, items, chunk)


def causal_loss(model: Any, batch: dict[str, Tensor], chunk: int = 256) -> Tensor:
    """A transformers causal model's mean loss without its logits: the body runs, the output layer runs by chunks.

    Args:
        model: has ``.model`` (the body) and ``get_output_embeddings()``, without a bias.
        batch: what the model takes, with ``labels`` (B, T).

    Returns:
        The loss that ``model(**batch).loss`` is, within rounding.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs).last_hidden_state[:, :-1]  # position t predicts token t + 1
    labels = batch["labels"][:, 1:]
    return chunked_cross_entropy(
        hidden.flatten(0, 1), model.get_output_embeddings().weight.to(hidden.dtype), labels.flatten(), chunk=chunk
    )
