"""Checkers of lesson 01: bias correction, decoupled decay, token-weighted accumulation, cosine with warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.lessons.lesson_01 import solutions
from course_utils.teach.exercise import Wrong, exercise


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return str([round(x, 5) for x in value.flatten().tolist()])
    if isinstance(value, tuple):
        return ", ".join(map(_short, value))
    return f"{value:.5g}" if isinstance(value, float) else repr(value)


def _close(got: Any, expected: Any) -> bool:
    """Equal within 1e-6; a result of another kind or shape is not."""
    if isinstance(expected, tuple):
        return isinstance(got, tuple | list) and len(got) == len(expected) and all(map(_close, got, expected))
    if not isinstance(got, Tensor | float | int) or isinstance(got, bool):
        return False
    got, expected = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64)
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-6, atol=1e-9)


def _require(got: Any, expected: Any, given: str, suspects: list[tuple[Any, str]], hint: str) -> None:
    """Raise ``Wrong`` unless ``got`` is ``expected``; a known wrong result in ``suspects`` gets its own hint."""
    if _close(got, expected):
        return
    hint = next((why for value, why in suspects if _close(got, value)), hint)
    raise Wrong(given=given, expected=_short(expected), got=_short(got), hint=hint)


@exercise(
    "01.1",
    "Bias correction",
    hints=(
        "With a constant gradient g, m after t steps is g * (1 - beta1**t). What must you divide by to get g back?",
    ),
)
def check_bias_correction(answer: Callable) -> None:
    m, v = torch.tensor([0.1, -0.2]), torch.tensor([0.001, 0.004])
    for step, beta1, beta2 in ((1, 0.9, 0.999), (3, 0.9, 0.999), (10, 0.5, 0.9)):
        inputs = m.clone(), v.clone()
        got = answer(*inputs, step, beta1, beta2)
        given = f"m={_short(m)}, v={_short(v)}, step={step}, beta1={beta1}, beta2={beta2}"
        power = "The correction fades with the number of steps: beta must be raised to the power of step."
        _require(
            got,
            solutions.solution_1(m, v, step, beta1, beta2),
            given,
            [
                ((m, v), "You returned the averages unchanged: they start at zero, so early on they are too small."),
                ((m * (1 - beta1**step), v * (1 - beta2**step)), "The averages are too small: divide, not multiply."),
                ((m / (1 - beta1), v / (1 - beta2)), power),
                (
                    (m / (1 - beta1 ** (step + 1)), v / (1 - beta2 ** (step + 1))),
                    "step counts from 1: at the first update it already is 1.",
                ),
                (
                    (m / (1 - beta1 ** (step - 1)), v / (1 - beta2 ** (step - 1))) if step > 1 else (None, None),
                    "step counts from 1: do not subtract one.",
                ),
            ],
            "Return (m_hat, v_hat): each average divided by one minus its own beta to the power of step.",
        )
        _unchanged(inputs, (m, v))


@exercise(
    "01.2",
    "Decoupled decay",
    hints=(
        "Two subtractions: lr * weight_decay * p for the decay, lr * direction for Adam's step. "
        "Neither sees the other.",
    ),
)
def check_decoupled_decay(answer: Callable) -> None:
    p, direction = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.3, -0.7, 0.0])
    for lr, decay in ((0.1, 0.5), (0.01, 0.0), (0.2, 0.1)):
        inputs = p.clone(), direction.clone()
        got = answer(*inputs, lr, decay)
        _require(
            got,
            solutions.solution_2(p, direction, lr, decay),
            f"p={_short(p)}, direction={_short(direction)}, lr={lr}, weight_decay={decay}",
            [
                (p - lr * direction, "The weights are not decayed at all."),
                (
                    p - lr * direction - decay * p,
                    "The decay is scaled by the learning rate too, or it ignores the schedule.",
                ),
                (p - lr * direction + lr * decay * p, "The decay has the wrong sign: weights must shrink."),
                (
                    p - lr * torch.sign(direction + decay * p),
                    "The decay went through the gradient: that is L2 regularisation, not decoupled decay.",
                ),
                (
                    (p - lr * direction) * (1 - lr * decay),
                    "Decay the old weight (p), not the weight after Adam's step.",
                ),
            ],
            "The new weight is p - lr * weight_decay * p - lr * direction.",
        )
        _unchanged(inputs, (p, direction))


@exercise(
    "01.3",
    "Token-weighted accumulation",
    hints=("Imagine all micro-batches glued together: what would the mean over all their targets be?",),
)
def check_accumulation(answer: Callable) -> None:
    windows = [
        ([6.0, 6.0], [3, 3]),
        ([8.0, 1.0, 6.0], [8, 1, 3]),
        ([5.0, 0.0, 4.0], [5, 0, 1]),  # a micro-batch of padding only
        ([7.0], [2]),
    ]
    for sums, counts in windows:
        weights = torch.tensor(sums, requires_grad=True)
        got = answer(list(weights.unbind()), list(counts))
        given = f"loss_sums={sums}, counts={counts}"
        means = [s / n for s, n in zip(sums, counts, strict=True) if n]
        _require(
            got if isinstance(got, float | int) else getattr(got, "detach", lambda got=got: got)(),
            torch.tensor(sum(sums) / sum(counts)),
            given,
            [
                (
                    torch.tensor(sum(means) / len(counts)),
                    "That is the mean of the micro-batches' means: a target in a short micro-batch weighs too much.",
                ),
                (
                    torch.tensor(sum(means) / len(means)),
                    "That is the mean of the micro-batches' means: a target in a short micro-batch weighs too much.",
                ),
                (torch.tensor(sum(sums) / len(counts)), "Divide by the number of targets, not of micro-batches."),
                (torch.tensor(sum(sums)), "This is the sum; divide it by the number of targets in the whole window."),
            ],
            "Add up all sums, divide once by all counts added up.",
        )
        if not (isinstance(got, Tensor) and got.requires_grad):
            raise Wrong(
                given=given,
                expected="a tensor that backward() can be called on",
                got=f"{type(got).__name__} without a gradient",
                hint="Keep the sums as tensors: float(), .item() and torch.tensor(...) cut the graph.",
            )


@exercise(
    "01.4",
    "Cosine schedule with warm-up",
    hints=("Progress after the warm-up runs from 0 to 1. cos(pi * progress) runs from 1 to -1; shift and halve it.",),
)
def check_cosine(answer: Callable) -> None:
    import math

    for warmup, total in ((10, 100), (0, 50), (20, 40)):
        for step in (0, warmup // 2, warmup, (3 * warmup + total) // 4, total - 1, total):
            share = (step - warmup) / (total - warmup)
            whole = 0.5 * (1 + math.cos(math.pi * step / total))
            rising = step < warmup
            suspects = (
                []
                if rising
                else [
                    (
                        whole,
                        "After the warm-up the wave starts anew: subtract warmup_steps from step and from max_steps.",
                    ),
                    (1 - share, "That is a straight line: this is the linear schedule."),
                    (0.5 * (1 + math.cos(2 * math.pi * share)), "Half a wave is enough: cos(pi * progress)."),
                    (math.cos(math.pi * share), "The cosine ends at -1: add 1 and halve it."),
                    (
                        math.cos(math.pi / 2 * share),
                        "A quarter wave keeps the rate high to the end: use 0.5 * (1 + cos(pi * progress)).",
                    ),
                ]
            )
            suspects += [((step + 1) / max(1, warmup), "The first step, number 0, has factor 0.")] if rising else []
            suspects += (
                [(1.0, "There is no warm-up: below warmup_steps the factor rises from 0 to 1.")] if rising else []
            )
            suspects += (
                [(whole, "There is no warm-up: below warmup_steps the factor rises from 0 to 1.")] if rising else []
            )
            _require(
                answer(step, warmup, total),
                solutions.solution_4(step, warmup, total),
                f"step={step}, warmup_steps={warmup}, max_steps={total}",
                suspects,
                "step / warmup_steps during the warm-up, then 0.5 * (1 + cos(pi * progress)).",
            )


def _unchanged(inputs: tuple[Tensor, ...], originals: tuple[Tensor, ...]) -> None:
    if not all(map(torch.equal, inputs, originals)):
        raise Wrong(
            given="the tensors passed in",
            expected="new tensors as the result",
            got="changed inputs",
            hint="An operation ending in _ or -= works in place; write p = p - ... here.",
        )
