"""LoRA by hand: a frozen linear layer with a trained low-rank update beside it (lesson 10).

    y = W x + b + (alpha / rank) B A x,    A: (rank, in), B: (out, rank), B = 0 at the start

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1; PEFT's
``LoraConfig`` for names and the first values of A. ``peft_weights`` maps to PEFT's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """``base`` frozen, plus a low-rank update; equal to ``base`` at the start, because B is zero.

    Args:
        base: the linear layer (in -> out); its parameters are frozen.
        rank: inner width, >= 1.
        alpha: the update is scaled by alpha / rank.
        dropout: of the update's input, in training.

    Raises:
        ValueError: ``rank`` below 1 or ``dropout`` outside [0, 1).
    """

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: float = 16, dropout: float = 0.0):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank} is out of range; allowed: a whole number >= 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is out of range; allowed: from 0 to below 1")
        self.base = base.requires_grad_(False)
        self.scaling = alpha / rank
        like = {"device": base.weight.device, "dtype": torch.float32}  # adapters stay float32 beside a 16-bit base
        self.A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = self.base(x)
        if not self.active:
            return y
        update = self.dropout(x.to(self.A.dtype)) @ self.A.T @ self.B.T * self.scaling
        return y + update.to(y.dtype)

    def merged(self) -> nn.Linear:
        """One linear layer that computes the same: W + (alpha / rank) B A, in the type of W."""
        weight = self.base.weight
        merged = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None, device="meta")
        update = self.scaling * self.B @ self.A
        merged.weight = nn.Parameter((weight.to(update.dtype) + update).to(weight.dtype).detach())
        if self.base.bias is not None:
            merged.bias = nn.Parameter(self.base.bias.detach().clone())
        return merged


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16, targets: Sequence[str] = ALL_LINEAR, dropout: float = 0.0
) -> nn.Module:
    """Freeze ``model`` and put a ``LoRALinear`` in the place of every linear layer named in ``targets``, in place.

    Raises:
        ValueError: no linear layer has one of these names, or the model has adapters already.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has adapters already; allowed: a model without, or merge them first")
    model.requires_grad_(False)
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name in targets:
                setattr(parent, name, LoRALinear(child, rank, alpha, dropout))
                replaced += 1
    if not replaced:
        names = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(f"targets={list(targets)} match no linear layer; allowed: {', '.join(names)}")
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Put the merged linear layer in the place of every ``LoRALinear``, in place: no adapter, no extra time."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
    return model


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Name -> adapted layer."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model computes as its base does."""
    layers = list(lora_layers(model).values())
    for layer in layers:
        layer.active = False
    try:
        yield model
    finally:
        for layer in layers:
            layer.active = True


class Count(NamedTuple):
    """Parameters of a model."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        return self.trainable / self.total


def count_parameters(model: nn.Module) -> Count:
    """Trainable and all parameters, tied ones once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Count(sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone: what a checkpoint of a LoRA run has to hold."""
    return {f"{name}.{part}": getattr(m, part).detach() for name, m in lora_layers(model).items() for part in "AB"}


def peft_weights(model: nn.Module) -> dict[str, Tensor]:
    """The adapters under PEFT's names in a ``PeftModel`` with the adapter ``default``."""
    return {
        f"base_model.model.{name}.lora_{part}.default.weight": getattr(layer, part).detach()
        for name, layer in lora_layers(model).items()
        for part in "AB"
    }


def training_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes that training with AdamW keeps, activations not counted: weights, gradients and two moments.

    Gradients and moments exist for trained parameters only, in the parameter's own type.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return {"weights": weights, "gradients": trained, "moments": 2 * trained}
