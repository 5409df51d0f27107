"""Lesson 03's schedules and number formats, as the numbers that its figures draw."""

from __future__ import annotations

from typing import Any


def schedule(name: str, steps: int = 200, warmup: int = 20, **options: Any) -> list[float]:
    """The factor on the learning rate at each of ``steps`` steps, as ``transformers.get_scheduler`` gives it.

    Args:
        name: a value of ``lr_scheduler_type``.
        options: what ``lr_scheduler_kwargs`` would hold.
    """
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=options)
    curve = []
    for _ in range(steps):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return curve


def all_schedules() -> dict[str, list[float]]:
    """Eight schedules of 200 steps with a warm-up of 20."""
    curves = {name: schedule(name) for name in ("linear", "cosine", "constant_with_warmup", "inverse_sqrt")}
    curves["polynomial, power=2"] = schedule("polynomial", power=2)
    curves["cosine_with_restarts"] = schedule("cosine_with_restarts", num_cycles=3)
    curves["cosine_with_min_lr"] = schedule("cosine_with_min_lr", min_lr_rate=0.1)
    curves["warmup_stable_decay"] = schedule("warmup_stable_decay", num_decay_steps=40)
    return curves


def number_formats() -> dict[str, dict[str, float]]:
    """fp32, bf16 and fp16: largest number, smallest normal one, smallest one of all, distance from 1 to the next."""
    import torch

    formats = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        info = torch.finfo(dtype)
        numbers = {"max": info.max, "tiny": info.tiny, "smallest": info.tiny * info.eps, "eps": info.eps}
        formats[str(dtype)[6:]] = numbers
    return formats
