"""Watch the gradients of each part of a model, and find NaN at the step where it appears (lesson 05)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from torch import Tensor, nn

ACTIONS = ("record", "stop", "skip")


class GradientWatch(TrainerCallback, ExportableState):
    """Norm of the gradients of each part of the model, in the log; NaN and infinity are reported with their step.

    ``on_pre_optimizer_step`` comes after clipping. So ``grad_norm/PART`` are the norms that the optimizer uses; the
    Trainer's own ``grad_norm`` is the total before clipping. Clipping divides by the total norm, so one NaN gradient
    makes all of them NaN: the step is exact, the part is not (``max_grad_norm=0`` or lesson 03's trace tells more).

    "record" and "stop" never wait for the device: norms stay there as tensors and are read in ``on_log``, where the
    Trainer waits anyway; a run stops at the next log. "skip" drops the gradients of a bad step before the optimizer
    sees them, which costs one wait a step. After the data-parallel average all ranks hold the same gradients and
    decide alike.

    Args:
        action: "record"; "stop" the run at the log after the first bad step; "skip" bad steps.
        depth: parts are named by so many pieces of a parameter's name, >= 1.

    Raises:
        ValueError: unknown ``action``, ``depth`` below 1.
    """

    def __init__(self, action: str = "stop", depth: int = 1):
        if action not in ACTIONS:
            raise ValueError(f"action={action!r} is not known; allowed: {', '.join(map(repr, ACTIONS))}")
        if depth < 1:
            raise ValueError(f"depth={depth} is out of range; allowed: a whole number >= 1")
        self.action, self.depth = action, depth
        self.bad_steps: list[int] = []  # optimizer steps (1: the first) whose gradients were not finite
        self._waiting: list[tuple[int, list[str], Tensor]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._waiting = []
        if state.global_step == 0:
            self.bad_steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        names, norms = part_norms(model, self.depth)
        step = state.global_step + 1
        if self.action == "skip" and not torch.isfinite(norms).all():  # waits for the device
            self.bad_steps.append(step)
            for parameter in model.parameters():
                parameter.grad = None  # the optimizer leaves parameters without a gradient alone
            return
        self._waiting.append((step, names, norms))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}) or not self._waiting:
            return
        _, names, norms = self._waiting[-1]
        entry = {f"grad_norm/{name}": norm for name, norm in zip(names, norms.tolist(), strict=True)}
        logs.update(entry)
        state.log_history[-1].update(entry)
        self.bad_steps += self._bad_and_waiting()
        self._waiting = []
        if self.bad_steps and self.action == "stop":
            control.should_training_stop = True

    def _bad_and_waiting(self) -> list[int]:
        return [step for step, _, norms in self._waiting if not all(map(math.isfinite, norms.tolist()))]

    def state(self) -> dict:
        """What a checkpoint keeps; steps since the last log are read for it."""
        return {
            "args": {"action": self.action, "depth": self.depth},
            "attributes": {"bad_steps": self.bad_steps + self._bad_and_waiting()},
        }


def part_norms(model: nn.Module, depth: int = 1) -> tuple[list[str], Tensor]:
    """Euclidean norm of the gradients of each part, without waiting for the device.

    Returns:
        ``(names, norms (P,))``; a part without any gradient is left out.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = ".".join(name.split(".")[:-1][:depth]) or name
            parts.setdefault(part, []).append(parameter.grad)
    norms = [torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))) for grads in parts.values()]
    return list(parts), torch.stack(norms) if norms else torch.zeros(0)
