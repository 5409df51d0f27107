"""Schedules against transformers' own, step by step, and their ends."""

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from course_utils.training.schedules import cosine_with_warmup, linear_with_warmup, make_scheduler


def learning_rates(build, steps=30, lr=0.5):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = build(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup, total", [(0, 20), (1, 20), (5, 20), (20, 20), (5, 25)])
def test_equal_transformers(warmup, total):
    theirs = {
        "linear": lambda o: get_linear_schedule_with_warmup(o, warmup, total),
        "cosine": lambda o: get_cosine_schedule_with_warmup(o, warmup, total),
        "constant": lambda o: get_constant_schedule_with_warmup(o, warmup),
    }
    for name, build in theirs.items():
        assert learning_rates(lambda o, n=name: make_scheduler(o, n, warmup, total)) == learning_rates(build), name


@pytest.mark.parametrize("schedule", [linear_with_warmup, cosine_with_warmup])
def test_ends(schedule):
    assert schedule(0, 10, 100) == 0.0
    assert schedule(10, 10, 100) == 1.0
    assert schedule(100, 10, 100) == 0.0
    assert schedule(55, 10, 100) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "name, warmup, total, message",
    [
        ("cosin", 1, 10, "name='cosin' is no schedule; allowed: 'linear', 'cosine', 'constant'"),
        ("linear", 11, 10, "warmup_steps=11 is out of range; allowed: 0 to max_steps=10"),
        ("linear", 0, 0, "max_steps=0 is out of range; allowed: a whole number >= 1"),
    ],
)
def test_bad_arguments(name, warmup, total, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make_scheduler(optimizer, name, warmup, total)
