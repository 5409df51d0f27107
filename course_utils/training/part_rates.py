"""Parts of a model with learning rates of their own, and parts that stay frozen (lesson 14).

A pretrained part wants a small rate, a new one a large one, and a frozen one none: it must not be in the optimizer at
all, or it costs memory and may still move. Reference: transformers' documentation, "Trainer", ``create_optimizer``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from course_utils.training.trainers import RelevanceTrainer


def part_of(name: str, parts: Iterable[str]) -> str | None:
    """The part, a prefix of parameter names up to a dot, that ``name`` belongs to: the longest one; None: no part's."""
    fitting = [part for part in parts if name == part or name.startswith(f"{part}.")]
    return max(fitting, key=len, default=None)


def part_groups(model: nn.Module, rates: Mapping[str, float], weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Optimizer groups: for each part one with decay (matrices) and one without (biases, norms); frozen ones left out.

    Args:
        model: its parameters with ``requires_grad`` are divided; a tied tensor counts once.
        rates: part, a prefix of parameter names -> peak learning rate.
        weight_decay: of the matrices.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``; empty ones are left out.

    Raises:
        ValueError: a trainable parameter belongs to no part, or a part has none.
    """
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name, rates)
        if part is None:
            raise ValueError(f"parameter {name!r} has no learning rate; allowed: freeze it, or name its part in rates")
        found.setdefault((part, parameter.ndim >= 2), []).append(parameter)
    for part in rates:
        if not any(key[0] == part for key in found):
            raise ValueError(f"rates name {part!r}, of which nothing is trained; allowed: parts that are not frozen")
    return [
        {"name": part, "params": params, "lr": rates[part], "weight_decay": weight_decay if is_matrix else 0.0}
        for (part, is_matrix), params in found.items()
    ]


def freeze(module: nn.Module) -> nn.Module:
    """Take all parameters of ``module`` out of training and return it. Before the optimizer is made, not after."""
    return module.requires_grad_(False)


def parameters_by_part(model: nn.Module, parts: Iterable[str]) -> dict[str, dict[str, int]]:
    """``{part: {"trainable": n, "frozen": n}}``; a tied tensor counts once, for the first name it has."""
    found = {part: {"trainable": 0, "frozen": 0} for part in parts}
    for name, parameter in model.named_parameters():
        part = part_of(name, found)
        if part is not None:
            found[part]["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return found


def state_by_part(model: nn.Module, optimizer: torch.optim.Optimizer, parts: Iterable[str]) -> dict[str, int]:
    """Numbers that the optimizer keeps for each part's parameters: two a parameter for AdamW after its first step."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    found = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        kept = optimizer.state.get(parameter, {})
        part = part_of(name, found)
        if part is not None:
            found[part] += sum(value.numel() for value in kept.values() if torch.is_tensor(value) and value.ndim)
    return found


class PartRatesTrainer(RelevanceTrainer):
    """``RelevanceTrainer`` with a learning rate for each part of the model; the schedule scales all of them alike.

    Args:
        rates: part -> peak rate, as in ``part_groups``. ``TrainingArguments.learning_rate`` is not used.
    """

    def __init__(self, *args: Any, rates: Mapping[str, float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rates = dict(rates)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = part_groups(self.model if model is None else model, self.rates, self.args.weight_decay)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer
