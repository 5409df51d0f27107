"""Does a saved state fit this optimizer or scheduler? Asked before any of it is loaded (lesson 01).

``torch.optim.Optimizer.load_state_dict`` compares the groups' sizes and nothing else: moments of another shape, a
missing rate or a rate of NaN are taken and fail, or do harm, some steps later. Its schedulers compare nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")  # one number a weight
_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # torch's Adam takes an entry without one of them, and fails at the step
_NOT_SETTINGS = ("params", "param_names")


def check_optimizer_state(saved: Any, optimizer: torch.optim.Optimizer) -> None:
    """Compare ``saved``, the ``state_dict`` of an optimizer built alike, with ``optimizer`` (or accelerate's of it).

    Raises:
        ValueError: it is no such state; the sentence names the place.
    """
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        raise ValueError("the optimizer's state is no dict with 'state' and 'param_groups'")
    groups = saved.get("param_groups")
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError("the optimizer's param_groups are no list of groups")
    found = [len(ids) if isinstance(ids := group.get("params"), list) else None for group in groups]
    if found != sizes:
        raise ValueError(f"the optimizer's groups hold {found} parameters, this one's {sizes}")
    for number, (theirs, ours) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        for name in ours.keys() - set(_NOT_SETTINGS):
            if name not in theirs or not _alike(theirs[name], ours[name]):
                shown = repr(theirs[name]) if name in theirs else "missing"
                raise ValueError(f"param_groups[{number}][{name!r}] is {shown}; allowed: like {ours[name]!r}")
    ids = [one for group in groups for one in group["params"]]
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_id = dict(zip(ids, params, strict=True)) if all(isinstance(one, int) for one in ids) else {}
    if len(by_id) != len(params):
        raise ValueError("the optimizer's param_groups do not name each parameter by a number of its own")
    is_adam = isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.Adam)  # AdamW is one
    for number, entry in saved["state"].items():
        if number not in by_id or not isinstance(entry, dict):
            raise ValueError(f"the optimizer's state {number!r} belongs to no parameter")
        if is_adam and (missing := _ADAM - entry.keys()):
            raise ValueError(f"the optimizer's state {number} has no {', '.join(map(repr, sorted(missing)))}")
        check_entry(number, entry, by_id[number])


def check_scheduler_state(saved: Any, scheduler: Any) -> None:
    """Compare ``saved``, the ``state_dict`` of a scheduler built alike, with ``scheduler``, one of torch's or None.

    Raises:
        ValueError: it is no such state; the sentence names the place.
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        return
    if not isinstance(saved, dict):
        raise ValueError(f"the scheduler's state is a {type(saved).__name__}; allowed: a dict")
    for name, ours in scheduler.state_dict().items():
        if name not in saved or not _alike(saved[name], ours):
            shown = repr(saved[name]) if name in saved else "missing"
            raise ValueError(f"the scheduler's {name!r} is {shown}; allowed: like {ours!r}")


def check_count(place: Any, value: Any) -> float:
    """The steps that the optimizer counted for the parameter at ``place``; raises ``ValueError`` if it is no count."""
    count = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < math.inf:
        raise ValueError(f"the optimizer's state {place}['step'] is {value!r}; allowed: a number >= 0")
    return count


def check_latest(counts: Iterable[float], step: int, exact: bool) -> None:
    """Raise ``ValueError`` unless the parameter that was updated most often was so at each of ``step`` steps.

    Moments of an earlier checkpoint are of the right shape, and nothing else would tell them from the right ones.

    Args:
        counts: one a parameter; none: an optimizer that does not count.
        exact: False: a loss scale (fp16) may have skipped some steps.
    """
    latest = max(counts, default=step)
    if latest > step or (exact and latest != step):
        raise ValueError(f"the optimizer counted {latest:g} steps in a checkpoint of step {step}")


def check_entry(number: int, entry: dict[str, Any], parameter: Tensor) -> None:
    """Raise ``ValueError`` unless the state of one parameter is a count of steps and tensors of its shape."""
    if (known := _ADAM & entry.keys()) and (missing := sorted(_ADAM - known)):
        raise ValueError(f"the optimizer's state {number} has no {missing[0]!r}")
    for name, value in entry.items():
        if name == "step":
            check_count(number, value)
        elif name in _SHAPED and value is not None:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if shape != tuple(parameter.shape):
                raise ValueError(
                    f"the optimizer's state {number}[{name!r}] has the shape {shape}; allowed: {tuple(parameter.shape)}"
                )


def _alike(theirs: Any, ours: Any) -> bool:
    """Of the same kind as this optimizer's setting: a finite number, a tuple of as many, a switch."""
    if isinstance(ours, list | tuple):
        same_length = isinstance(theirs, list | tuple) and len(theirs) == len(ours)
        return same_length and all(map(_alike, theirs, ours))
    if isinstance(ours, bool) or not isinstance(ours, int | float | Tensor):
        return theirs is None or ours is None or isinstance(theirs, type(ours))
    if isinstance(theirs, Tensor) and theirs.numel() == 1:
        theirs = theirs.item()
    if isinstance(theirs, bool) or not isinstance(theirs, int | float):
        return False
    return math.isfinite(theirs) or not math.isfinite(ours)  # a scheduler's "best so far" begins at infinity
