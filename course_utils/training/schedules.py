"""Learning-rate schedules as plain functions: step -> factor the learning rate is multiplied by (lesson 01).

Equal to transformers' ``get_linear_schedule_with_warmup`` and ``get_cosine_schedule_with_warmup`` at every step
(tested). Factors, not learning rates: groups with different learning rates share one schedule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def linear_with_warmup(step: int, warmup_steps: int, max_steps: int) -> float:
    """Rise linearly from 0 to 1 over ``warmup_steps``, then fall linearly to 0 at ``max_steps``.

    Args:
        step: optimizer steps already taken, counted from 0.
        warmup_steps: length of the rise in optimizer steps; 0 starts at 1.
        max_steps: optimizer steps of the whole run.

    Returns:
        Factor in [0, 1]; 0 beyond ``max_steps``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def cosine_with_warmup(step: int, warmup_steps: int, max_steps: int) -> float:
    """Rise linearly from 0 to 1 over ``warmup_steps``, then follow half a cosine wave down to 0 at ``max_steps``.

    Loshchilov & Hutter, "SGDR" (ICLR 2017), equation 5 with one period and minimum 0. Arguments and result as
    ``linear_with_warmup``; beyond ``max_steps`` the wave rises again, as in transformers.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def constant(step: int, warmup_steps: int = 0, max_steps: int = 0) -> float:
    """1 at every step (after a linear warm-up, when there is one)."""
    return step / warmup_steps if step < warmup_steps else 1.0


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "linear": linear_with_warmup,
    "cosine": cosine_with_warmup,
    "constant": constant,
}


def make_scheduler(optimizer: Optimizer, name: str, warmup_steps: int, max_steps: int) -> LambdaLR:
    """A torch scheduler that sets each group's learning rate to its initial value times the schedule's factor.

    Args:
        optimizer: its groups' ``lr`` are the peak learning rates.
        name: one of ``SCHEDULES``.
        warmup_steps, max_steps: in optimizer steps; 0 <= warmup_steps <= max_steps.

    Raises:
        ValueError: an unknown name or step counts out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"name={name!r} is no schedule; allowed: {', '.join(map(repr, SCHEDULES))}")
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps} is out of range; allowed: a whole number >= 1")
    if not 0 <= warmup_steps <= max_steps:
        raise ValueError(f"warmup_steps={warmup_steps} is out of range; allowed: 0 to max_steps={max_steps}")
    return LambdaLR(optimizer, functools.partial(SCHEDULES[name], warmup_steps=warmup_steps, max_steps=max_steps))
