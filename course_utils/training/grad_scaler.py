"""Loss scaling for fp16, written out: scale, unscale, skip a step that overflowed, grow again (lesson 09).

Micikevicius et al. 2018, "Mixed Precision Training" (arXiv:1710.03740), section 3.2; the numbers and the order of calls
are those of ``torch.amp.GradScaler``: https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class GradScaler:
    """Multiplies the loss, so that small gradients survive fp16, and divides the gradients before the step.

    Each optimizer step: ``scaler.scale(loss).backward()``, ``scaler.unscale_(optimizer)`` (before clipping),
    ``scaler.step(optimizer)``, ``scaler.update()``.

    Args:
        init_scale: first factor, > 0.
        growth_factor: the factor grows by this after ``growth_interval`` steps without overflow, > 1.
        backoff_factor: and shrinks by this after an overflow, between 0 and 1.
        growth_interval: steps, >= 1.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ):
        for name, value, allowed, text in (
            ("init_scale", init_scale, init_scale > 0, "a number > 0"),
            ("growth_factor", growth_factor, growth_factor > 1, "a number > 1"),
            ("backoff_factor", backoff_factor, 0 < backoff_factor < 1, "a number between 0 and 1"),
            ("growth_interval", growth_interval, growth_interval >= 1, "a whole number >= 1"),
        ):
            if not allowed:
                raise ValueError(f"{name}={value} is out of range; allowed: {text}")
        self.factor = float(init_scale)
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval = growth_interval
        self.good_steps = 0  # since the factor changed last
        self.overflowed: bool | None = None  # None: not unscaled in this step yet

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on: every gradient becomes ``factor`` times as large."""
        return loss * self.factor

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the factor, in place, and note whether any is inf or nan.

        Raises:
            RuntimeError: called twice in one step; the gradients would be divided twice.
        """
        if self.overflowed is not None:
            raise RuntimeError("unscale_ was called twice in one step; allowed: once, then step and update")
        self.overflowed = False
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(1 / self.factor)
                    self.overflowed |= not bool(torch.isfinite(p.grad).all())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, left out if a gradient overflowed: such a step would destroy the weights."""
        if self.overflowed is None:
            self.unscale_(optimizer)
        if not self.overflowed:
            optimizer.step()

    def update(self) -> None:
        """Choose the factor of the next step: smaller after an overflow, larger after many steps without one.

        Raises:
            RuntimeError: there was no step.
        """
        if self.overflowed is None:
            raise RuntimeError("update was called before step; allowed: scale, step, update")
        if self.overflowed:
            self.factor *= self.backoff_factor
            self.good_steps = 0
        else:
            self.good_steps += 1
            if self.good_steps == self.growth_interval:
                # Never to infinity: an infinite factor would make every later step overflow.
                if math.isfinite(torch.tensor(self.factor * self.growth_factor, dtype=torch.float32).item()):
                    self.factor *= self.growth_factor
                self.good_steps = 0
        self.overflowed = None

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"scale": self.factor, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.factor, self.good_steps = float(state["scale"]), int(state["good_steps"])
