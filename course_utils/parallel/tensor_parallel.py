"""Tensor parallelism by hand: one matrix on several ranks, cut by columns or by rows (lesson 12).

    x (B, T, C) -> ColumnParallel -> (B, T, H / N) -> activation -> RowParallel -> (B, T, C), the same on all ranks

All ranks see the same rows and each computes a part of every activation, where ZeRO's ranks compute all of it for rows
of their own. Two exchanges a pair: an all-reduce in the forward pass and one in the backward pass.

Source: Shoeybi et al. 2019, "Megatron-LM", section 3; ``Copy`` and ``Add`` are its operators f and g.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear


class Copy(torch.autograd.Function):
    """Forward: x as it is, for every rank's part. Backward: x was used N times, so its gradients are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


class Add(torch.autograd.Function):
    """Forward: the ranks' parts of a sum are added up. Backward: each part has the sum's gradient, no exchange."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def part_of(whole: Tensor, dim: int) -> nn.Parameter:
    """This rank's part of ``whole``, cut along ``dim``; the memory is its own.

    Raises:
        ValueError: the ranks do not divide that dimension.
    """
    ranks = dist.get_world_size()
    if whole.shape[dim] % ranks:
        raise ValueError(f"{ranks} ranks do not divide {whole.shape[dim]}; allowed: a divisor of {whole.shape[dim]}")
    return nn.Parameter(whole.detach().chunk(ranks, dim)[dist.get_rank()].clone())


class ColumnParallel(nn.Module):
    """``x @ W.T + b`` with the outputs cut: this rank computes H / N of them.

    Args:
        whole: an ``nn.Linear`` of C inputs and H outputs, equal on all ranks; its ``weight`` is (H, C), so that a
            column of the formula's W.T is a row of ``weight``.
    """

    def __init__(self, whole: nn.Linear):
        super().__init__()
        self.weight = part_of(whole.weight, 0)  # (H / N, C)
        self.bias = None if whole.bias is None else part_of(whole.bias, 0)

    def forward(self, x: Tensor) -> Tensor:
        return linear(Copy.apply(x), self.weight, self.bias)  # (..., C) -> (..., H / N)


class RowParallel(nn.Module):
    """``x @ W.T + b`` with the inputs cut: each rank's product is a part of the sum, added up by an all-reduce.

    Args:
        whole: an ``nn.Linear`` of H inputs and C outputs. The bias is whole on every rank and added once.
    """

    def __init__(self, whole: nn.Linear):
        super().__init__()
        self.weight = part_of(whole.weight, 1)  # (C, H / N)
        self.bias = None if whole.bias is None else nn.Parameter(whole.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        total = Add.apply(linear(x, self.weight))  # (..., H / N) -> (..., C)
        return total if self.bias is None else total + self.bias


class ParallelMLP(nn.Module):
    """An MLP on N ranks: ``first`` by columns, the activation on each rank's part, ``second`` by rows."""

    def __init__(self, first: nn.Linear, activation: nn.Module, second: nn.Linear):
        super().__init__()
        self.first, self.activation, self.second = ColumnParallel(first), activation, RowParallel(second)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))
