"""Checkers of lesson 09: a timing, a scaler's step, a memory budget, MFU, a fast step that is still the same step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_utils.lessons.lesson_09 import solutions
from course_utils.lessons.lesson_09.exercise_5 import check_fast_step
from course_utils.teach.exercise import Wrong, ask, exercise

__all__ = ["check_budget", "check_fast_step", "check_mfu", "check_rate", "check_scaler"]


class _Device:
    """A clock of its own and a device with a queue: what a step costs is known exactly."""

    def __init__(self, seconds: Sequence[float], launch: float):
        self.seconds, self.launch = list(seconds), launch
        self.now = self.free = 0.0
        self.steps = 0

    def clock(self) -> float:
        return self.now

    def step(self, batch: dict) -> Tensor:
        self.now += self.launch
        self.free = max(self.free, self.now) + self.seconds[self.steps % len(self.seconds)]
        self.steps += 1
        return torch.tensor(1.0)

    def wait(self) -> None:
        self.now = max(self.now, self.free)


def _batches(lengths: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
    found = []
    for rows in lengths:
        width = max(rows) + 2
        labels = torch.full((len(rows), width), -100)
        for row, length in enumerate(rows):
            labels[row, :length] = 7
        found.append({"input_ids": torch.ones_like(labels), "labels": labels})
    return found


@exercise(
    "09.1",
    "Repair a timing",
    hints=(
        "Ask of each line: whose time does it measure, and which tokens does it count?",
        "Call wait() before both readings of the clock. Leave out the first warmup batches, but run them. Count labels "
        "that are predicted. One number of all rates: the one that a single slow step does not move.",
    ),
    kind="debug",
)
def check_rate(answer: Callable) -> None:
    """``answer(step, batches, clock, wait, warmup)`` returns useful tokens a second."""
    for lengths, seconds, launch, warmup in (
        ([[5, 9, 2]] * 6, [8.0, 2.0, 1.0, 1.0, 5.0, 1.0], 0.125, 2),
        ([[4, 4], [30, 1], [8, 8], [3, 20], [6, 6]], [2.0, 1.0, 4.0, 1.0, 2.0], 0.25, 1),
        ([[12], [12], [12], [12]], [1.0, 1.0, 1.0, 3.0], 0.0, 0),
    ):
        batches = _batches(lengths)
        given = f"{len(batches)} batches, warmup={warmup}, a device that needs {seconds[0]:g} s for the first step"
        device = _Device(seconds, launch)
        got = ask(answer, device.step, batches, device.clock, device.wait, warmup, given=given, expected="one number")
        right = _Device(seconds, launch)
        expected = solutions.solution_1(right.step, batches, right.clock, right.wait, warmup)
        if isinstance(got, bool) or not isinstance(got, int | float):
            raise Wrong(given=given, expected="one number", got=repr(got)[:60], hint="Return the rate as a number.")
        if device.steps != len(batches):
            hint = "Every batch is trained on, the warm-up's too: only its time does not count."
            raise Wrong(given=given, expected=f"{len(batches)} steps", got=f"{device.steps} steps", hint=hint)
        if math.isclose(got, expected, rel_tol=1e-6):
            continue
        hint = "Compute it by hand for this device: useful tokens / (launch + work) of each batch after the warm-up."
        for suspect, why in _suspects(batches, seconds, launch, warmup):
            if math.isfinite(suspect) and math.isclose(got, suspect, rel_tol=1e-6):
                hint = why
                break
        raise Wrong(given=given, expected=f"{expected:.4g} tokens/s", got=f"{got:.4g}", hint=hint)


def _suspects(batches: list[dict], seconds: Sequence[float], launch: float, warmup: int) -> list[tuple[float, str]]:
    from statistics import mean, median

    def rates(count: Callable, first: int, waits: bool) -> list[float]:
        times = [launch + (work if waits else 0) for work in seconds[: len(batches)]]
        each = [count(batch) / time if time else math.inf for batch, time in zip(batches, times, strict=True)]
        return each[first:]

    def useful(batch: dict) -> int:
        return int((batch["labels"][:, 1:] != -100).sum())

    def all_labels(batch: dict) -> int:
        return int((batch["labels"] != -100).sum())

    def positions(batch: dict) -> int:
        return batch["input_ids"].numel()

    late = "The clock is read while the device still works: wait() before reading it."
    return [
        (mean(rates(positions, 0, False)), f"Nothing is repaired yet. {late}"),
        (median(rates(useful, 0, True)), "First steps are slow for reasons of their own: leave warmup of them out."),
        (mean(rates(useful, warmup, True)), "A mean is moved by one slow step: take the median of the rates."),
        (median(rates(positions, warmup, True)), "Padding is counted: useful tokens are labels other than -100."),
        (median(rates(all_labels, warmup, True)), "A row's first label is predicted by nothing: it does not count."),
        (median(rates(useful, warmup, False)), late),
        (mean(rates(useful, warmup, False)), late),
        (median(rates(positions, warmup, False)), late),
    ]


@exercise(
    "09.2",
    "A scaled step",
    hints=(
        "The gradient belongs to scale * loss. Bring it to the loss's own size in fp32 before anything looks at it.",
        "Not finite: the weights stay, the scale is halved, the count starts again. Finite: step, count, and when the "
        "count reaches the interval the scale doubles and the count starts again.",
    ),
)
def check_scaler(answer: Callable) -> None:
    """``answer(weights, gradient, scale, good_steps, interval, lr)`` returns ``(weights, scale, good_steps)``."""
    inf, nan = float("inf"), float("nan")
    for gradient, scale, good, interval, what in (
        ([512.0, -256.0], 1024.0, 0, 4, "a good step"),
        ([512.0, inf], 1024.0, 2, 4, "one inf"),
        ([nan, 3.0], 65536.0, 3, 4, "one nan"),
        ([64.0, 32.0], 4096.0, 3, 4, "the step that completes the interval"),
        ([6e-8, 12e-8], 8.0, 1, 9, "numbers that vanish when divided in fp16"),
    ):
        half = torch.tensor(gradient, dtype=torch.float16)
        weights = torch.tensor([1.0, -2.0]) * (not what.startswith("numbers"))
        given = f"{what}: gradient={half.tolist()} (fp16), scale={scale:g}, good_steps={good}, interval={interval}"
        expected = solutions.solution_2(weights, half, scale, good, interval, 0.5)
        got = ask(answer, weights.clone(), half.clone(), scale, good, interval, 0.5, given=given)
        if not isinstance(got, tuple | list) or len(got) != 3 or not isinstance(got[0], Tensor):
            raise Wrong(given=given, expected="(weights, scale, good_steps)", got=str(got)[:80], hint="Three results.")
        _compare_scaler(got, expected, weights, half, scale, good, what, given)


def _compare_scaler(
    got: Sequence, expected: Sequence, weights: Tensor, half: Tensor, scale: float, good: int, what: str, given: str
) -> None:
    def text(values: Sequence) -> str:
        return f"weights {[round(w, 8) for w in values[0].tolist()]}, scale {float(values[1]):g}, good {values[2]}"

    finite = bool(torch.isfinite(half).all())
    same_weights = got[0].shape == weights.shape and torch.allclose(got[0].float(), expected[0], rtol=1e-6, atol=0)
    hint = ""
    if not same_weights:
        moved = (got[0].float() - weights).nan_to_num(1e9)
        if not finite:
            hint = "A step with inf or nan in it destroys the weights: leave the whole step out."
        elif torch.allclose(moved, -0.5 * half.float()):
            hint = "The gradient is scale times too large: divide before the step."
        elif what.startswith("numbers"):
            hint = "Divided in fp16, small gradients vanish again: go to fp32 first."
        elif torch.allclose(moved, -(expected[0] - weights)):
            hint = "The sign: a step goes against the gradient."
        else:
            hint = "Weights minus lr times the unscaled gradient."
    elif float(got[1]) != float(expected[1]):
        hint = "On overflow the scale is halved." if not finite else "A good step leaves the scale alone."
        if what.startswith("the step that"):
            hint = "The count has reached the interval with this step: the scale doubles now."
    elif got[2] != expected[2]:
        hint = "An overflow starts the count of good steps again." if not finite else "Count this good step."
        if what.startswith("the step that"):
            hint = "After the scale has grown the count starts again, or it would grow at every step."
    if hint:
        raise Wrong(given=given, expected=text(expected), got=text(got), hint=hint)


@exercise(
    "09.3",
    "Micro-batch and accumulation for a budget",
    hints=(
        "Memory is fixed + micro_batch * per_row. The largest micro-batch that fits is wanted.",
        "micro_batch * accumulation must be exactly rows: only divisors of rows come into question.",
    ),
    kind="vary",
)
def check_budget(answer: Callable) -> None:
    """``answer(rows, fixed, per_row, budget)`` returns ``(micro_batch, accumulation)``."""
    for rows, fixed, per_row, budget in (
        (64, 100, 10, 300), (48, 100, 10, 200), (60, 0, 7, 50), (32, 5, 1, 37), (7, 10, 5, 30), (24, 8, 3, 11),
    ):  # fmt: skip
        given = f"rows={rows}, fixed={fixed}, per_row={per_row}, budget={budget}"
        got = ask(answer, rows, fixed, per_row, budget, given=given, expected="(micro_batch, accumulation)")
        expected = solutions.solution_3(rows, fixed, per_row, budget)
        if not isinstance(got, tuple | list) or len(got) != 2 or not all(isinstance(n, int) for n in got):
            hint = "Return (micro_batch, accumulation)."
            raise Wrong(given=given, expected="two whole numbers", got=str(got)[:60], hint=hint)
        if tuple(got) == expected:
            continue
        micro_batch, accumulation = got
        if fixed + micro_batch * per_row > budget:
            hint = "That does not fit: weights, gradients and optimizer state (fixed) need room too."
        elif micro_batch * accumulation != rows:
            hint = "Another batch is another training run: micro_batch * accumulation must be rows exactly."
        elif micro_batch < expected[0]:
            hint = "It fits, but a larger micro-batch does too, and has fewer, larger matrix products."
        else:
            hint = "Return (micro_batch, accumulation), in this order."
        raise Wrong(given=given, expected=str(expected), got=str(tuple(got)), hint=hint)


@exercise(
    "09.4",
    "MFU",
    hints=(
        "Count the weights of all matrix multiplications first: queries, keys, values and output; gate, up and down; "
        "the output layer once. Looking up an embedding is no multiplication.",
        "Six operations a weight and token, plus 12 * layers * hidden * attended tokens, where a causal model attends "
        "to half of the length on average. Then: operations a second / peak.",
    ),
)
def check_mfu(answer: Callable) -> None:
    """``answer(layers, hidden, intermediate, vocabulary, length, tokens, seconds, peak)`` returns the share."""
    for layers, hidden, intermediate, vocabulary, length, tokens, seconds, peak in (
        (4, 128, 352, 8000, 128, 2048, 0.4, 9e10),
        (16, 2048, 8192, 128256, 4096, 65536, 2.0, 989e12),
        (2, 64, 256, 100, 1024, 4096, 0.05, 5e10),
    ):
        numbers = (layers, hidden, intermediate, vocabulary, length, tokens, seconds, peak)
        given = f"{layers} layers x {hidden}, MLP {intermediate}, vocabulary {vocabulary}, length {length}"
        got = ask(answer, *numbers, given=given, expected="one number")
        expected = solutions.solution_4(*numbers)
        if isinstance(got, bool) or not isinstance(got, int | float):
            raise Wrong(given=given, expected="one number", got=repr(got)[:60], hint="Return the share as a number.")
        if math.isclose(got, expected, rel_tol=1e-3):
            continue
        matrices = layers * (4 * hidden**2 + 3 * hidden * intermediate)
        output, scores = vocabulary * hidden, 12 * layers * hidden * length
        unit = tokens / seconds / peak
        suspects = [
            (100 * expected, "A share between 0 and 1, not per cent."),
            (expected / tokens, "Operations of one token; the step trained on tokens of them."),
            ((6 * (matrices + output) + scores) * unit, "A causal model attends to half of the tokens on average."),
            (6 * (matrices + output) * unit, "The attention scores are missing: 12 * layers * hidden * length / 2."),
            ((2 * (matrices + output) + scores / 6) * unit, "Forward only: backward takes twice as many again."),
            ((6 * matrices + scores / 2) * unit, "The output layer is a matrix multiplication too."),
            ((6 * (matrices + 2 * output) + scores / 2) * unit, "Looking up an embedding is no multiplication."),
            ((8 * (matrices + output) + scores / 2) * unit, "MFU does not count what checkpointing repeats."),
            ((6 * (matrices - layers * hidden * intermediate + output) + scores / 2) * unit,
             "A gated MLP has three matrices: gate, up, down."),
            ((6 * (matrices - 3 * layers * hidden**2 + output) + scores / 2) * unit,
             "Attention has four matrices: queries, keys, values, output."),
        ]  # fmt: skip
        hint = "Write the weights of one layer down, times layers, plus the output layer; then the formula above."
        hint = next((why for value, why in suspects if math.isclose(got, value, rel_tol=1e-3)), hint)
        raise Wrong(given=given, expected=f"{expected:.4g}", got=f"{got:.4g}", hint=hint)
