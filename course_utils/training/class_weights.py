"""Weights and priors of classes from how often they occur (lesson 06)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_counts(labels: Sequence[int] | Tensor, num_labels: int) -> Tensor:
    """Rows of each class, (C,), in the order of class numbers: position c is class c.

    Raises:
        ValueError: a label outside 0 ... ``num_labels`` - 1.
    """
    labels = torch.as_tensor(labels)
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}; allowed: 0 to {num_labels - 1}")
    return torch.bincount(labels.flatten(), minlength=num_labels)


def inverse_frequency(counts: Tensor, power: float = 1.0) -> Tensor:
    """w_c proportional to 1 / n_c^power, (C,) float32, scaled so that the mean weight of a training row is 1.

    With ``power`` 1 every class gets the same total weight, N / C: scikit-learn's ``class_weight="balanced"``. With 0
    all weights are 1; 1/2 lies in between. The scale matters: weights with mean 5 are a loss, and a gradient, five
    times as large.

    Args:
        counts: (C,), rows of each class, all >= 1.

    Raises:
        ValueError: an empty class.
    """
    return _mean_one_over_rows(_positive(counts) ** -power, counts)


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """w_c proportional to (1 - beta) / (1 - beta^n_c), (C,) float32. Cui et al., arXiv:1901.05555, eq. 2.

    The n-th row of a class adds beta^(n-1): rows overlap, and about 1 / (1 - beta) of them exhaust a class. ``beta`` 0
    gives equal weights, ``beta`` towards 1 gives ``inverse_frequency``. Scaled so that a training row's mean is 1; the
    paper scales to a sum of C.

    Args:
        counts: (C,), rows of each class, all >= 1.
        beta: 0 <= beta < 1.

    Raises:
        ValueError: ``beta`` out of range, or an empty class.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} is out of range; allowed: 0 <= beta < 1")
    return _mean_one_over_rows((1 - beta) / (1 - beta ** _positive(counts)), counts)


def log_prior(counts: Tensor) -> Tensor:
    """Logarithm of each class's share of the rows, (C,) float32.

    Raises:
        ValueError: an empty class.
    """
    counts = _positive(counts)
    return (counts / counts.sum()).log().float()


def rare_classes(counts: Tensor, share: float = 0.3) -> list[int]:
    """The classes with the fewest rows, rarest first: ``share`` of all classes, at least one."""
    return counts.argsort(stable=True)[: max(1, int(share * len(counts)))].tolist()


def recalls(predicted: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """Of each class the share of its rows that was found, (C,); NaN for a class without rows.

    Args:
        predicted, labels: class numbers, shape (N,).
    """
    hits = torch.bincount(labels[predicted == labels], minlength=num_labels)
    return hits / torch.bincount(labels, minlength=num_labels)


def _positive(counts: Tensor) -> Tensor:
    """``counts`` in float64, in which 1 - beta^n keeps its digits."""
    if (counts < 1).any():
        empty = int((counts < 1).nonzero()[0])
        raise ValueError(f"counts[{empty}]={counts[empty]} is out of range; allowed: at least one row of each class")
    return counts.double()


def _mean_one_over_rows(weights: Tensor, counts: Tensor) -> Tensor:
    return (weights * counts.sum() / (weights * counts).sum()).float()
