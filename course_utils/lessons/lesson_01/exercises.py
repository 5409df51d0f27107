"""Checkers of lesson 01: predict Adam's steps, write a schedule, recount a run, repair an evaluation, write a loop."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from course_utils.lessons.lesson_01 import loop_exercise, solutions
from course_utils.lessons.lesson_01.probe import Probe, as_number, batches_of, is_near, must_be_callable, shortly
from course_utils.teach.exercise import Wrong, ask, exercise

__all__ = ["loop_exercise"]  # importing it registers exercise 01.5


@exercise(
    "01.1",
    "How long is Adam's step?",
    kind="predict",
    hints=(
        "The length of a step is lr * m / sqrt(v). Work out m and sqrt(v) for each sequence, after so many steps that "
        "the averages have settled.",
        "Once settled, m repeats with the cycle. For alternating signs m = 0.9 * (-m) + 0.1 * 1: solve that for m. For "
        "(c) go once around three gradients, and ask which of them comes in step 1,000; v knows no signs.",
    ),
)
def check_steps(answer: Any) -> None:
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise Wrong(
            given="prediction",
            expected="three numbers, one per sequence, in learning rates",
            got=shortly(answer),
            hint="Write prediction = (a, b, c).",
        )
    cases = (
        ("gradient 1000 in every step", "The gradient's scale stands above and below the fraction: it cancels.", {}),
        (
            "gradients 1, -1, 1, -1, ...",
            "v squares, so it does not see the signs; m averages them and stays near zero. Solve m = 0.1 - 0.9 * m.",
            {
                0.0: "Not quite zero: the newest gradient always has a tenth of the say in m.",
                0.1: "0.1 is the newest gradient's share. The one before has the other sign and takes part of it away.",
            },
        ),
        (
            "gradients 1, 1, -1, 1, 1, -1, ...",
            "v is 1 again. Go around the cycle once: m after three more gradients is the m you began with.",
            {
                0.33: "A third is the plain mean of the gradients; m weighs the newest most: solve for m.",
                0.4: "That is m after the second 1 of a cycle: which of the three comes in step 1,000?",
                0.26: "That is m after the -1 of a cycle: which of the three comes in step 1,000?",
            },
        ),
    )
    for found, right, (given, hint, suspects) in zip(answer, solutions.solution_1, cases, strict=True):
        value = as_number(found)
        if value is not None and abs(abs(value) - right) < 0.0051:
            continue
        if value is not None:
            hint = next((why for wrong, why in suspects.items() if abs(abs(value) - wrong) < 0.0051), hint)
        raise Wrong(given=given, expected="another length, to two decimals", got=shortly(found), hint=hint)


@exercise(
    "01.2",
    "Warm-up, plateau, fall",
    kind="write",
    hints=(
        "Three pieces of a line: sort out first in which of them `step` lies.",
        "The last piece is a straight line through 1 at max_steps - decay_steps and 0 at max_steps: how many steps are "
        "left, in units of decay_steps?",
    ),
)
def check_plateau(answer: Any) -> None:
    must_be_callable(answer, "a function of step, warmup_steps, decay_steps, max_steps")
    for warmup, decay, total in ((10, 20, 100), (0, 25, 50), (5, 35, 40)):
        for step in (0, warmup // 2, warmup, (warmup + total - decay) // 2, total - decay, total - decay // 2, total):
            given = f"step={step}, warmup_steps={warmup}, decay_steps={decay}, max_steps={total}"
            right = solutions.solution_2(step, warmup, decay, total)
            found = ask(answer, step, warmup, decay, total, given=given, expected=shortly(right))
            if is_near(found, right):
                continue
            left = total - step
            suspects = [
                (step < warmup, 1.0, "There is no warm-up: below warmup_steps the factor rises from 0 to 1."),
                (step < warmup, (step + 1) / max(1, warmup), "The first step, number 0, has factor 0."),
                (
                    step >= warmup,
                    max(0.0, left / (total - warmup)),
                    "This falls from the end of the warm-up on: there is a plateau of 1 until max_steps - decay_steps.",
                ),
                (
                    step >= total - decay,
                    1 - left / decay,
                    "The fall runs backwards: count the steps that are left, not those made since it began.",
                ),
                (step >= total - decay, 1.0, "The plateau never ends: the last decay_steps fall to 0."),
                (
                    step >= total - decay,
                    (left - 1) / decay,
                    "One off: the factor is 0 at max_steps, not before.",
                ),
                (
                    step >= total - decay,
                    0.5 * (1 + math.cos(math.pi * (1 - left / decay))),
                    "That is a cosine; a straight line is asked for.",
                ),
            ]
            hint = next((why for may, value, why in suspects if may and is_near(found, value)), None)
            raise Wrong(
                given=given,
                expected=shortly(right),
                got=shortly(found),
                hint=hint or "Rise to 1, stay at 1, then fall in a straight line to 0 at max_steps.",
            )


@exercise(
    "01.3",
    "The same run in other pieces",
    kind="vary",
    hints=(
        "Two roundings, one after the other: rows into micro-batches, micro-batches into windows. A short last one is "
        "used, not dropped.",
        "Compute the number of micro-batches first, rounded up; then how many windows they make, rounded up again. "
        "-(-a // b) rounds up.",
    ),
)
def check_recount(answer: Any) -> None:
    must_be_callable(answer, "a function of rows, batch_size, accumulation, epochs")
    for rows, size, k, epochs in (
        (12_000, 32, 1, 2),
        (12_000, 8, 4, 2),
        (1_000, 32, 3, 2),
        (100, 8, 1, 2),
        (10, 4, 8, 1),
    ):
        given = f"rows={rows}, batch_size={size}, accumulation={k}, epochs={epochs}"
        right = solutions.solution_3(rows, size, k, epochs)
        found = ask(answer, rows, size, k, epochs, given=given, expected=str(right))
        if not isinstance(found, dict) or set(found) != set(right):
            raise Wrong(
                given=given, expected=str(right), got=shortly(found), hint="Return a dict with exactly these two keys."
            )
        per_epoch, steps = found["steps_per_epoch"], found["max_steps"]
        if per_epoch == right["steps_per_epoch"] and steps == right["max_steps"]:
            continue
        micro = -(-rows // size)
        hint = "Round up twice: rows into micro-batches, micro-batches into windows; then times the epochs."
        for value, why in (
            (micro, "You counted micro-batches. A step is made once per window of `accumulation` of them."),
            (rows // size // k, "Rounding down drops the short last window, or the short last micro-batch."),
            (micro // k, "Rounding down drops the short last window."),
            (-(-(rows // size) // k), "Rounding down drops the short last micro-batch."),
            (micro * k, "More accumulation means fewer steps: divide."),
        ):
            if per_epoch == value != right["steps_per_epoch"]:
                hint = why
                break
        if per_epoch == right["steps_per_epoch"]:
            hint = "steps_per_epoch is right. max_steps is that, times the epochs: windows do not cross an epoch's end."
        raise Wrong(given=given, expected=str(right), got=shortly(found), hint=hint)


@exercise(
    "01.4",
    "Repair an evaluation",
    kind="debug",
    hints=(
        "Section 3 names two things to switch off. Then: does each batch have equally many rows, and in which mode "
        "does the caller get the model back?",
        "There are four faults: one about dropout, one about the graph, one about the mean, and one in the last line "
        "before the return.",
    ),
)
def check_evaluation(answer: Any) -> None:
    must_be_callable(answer, "a function of model and batches")
    for sizes, training in (((8, 8, 3), True), ((5,), False), ((6, 1, 1, 9), True), ((4, 2), False)):
        model, batches = Probe().train(training), batches_of(sizes, seed=sum(sizes))
        mode = "training" if training else "evaluation"
        given = f"batches of {', '.join(map(str, sizes))} rows, the model in {mode} mode"
        right = solutions.solution_4(Probe(), batches)
        found = ask(answer, model, batches, given=given, expected="a dict with loss and accuracy")
        if not isinstance(found, dict) or not {"loss", "accuracy"} <= set(found):
            raise Wrong(
                given=given,
                expected="a dict with loss and accuracy",
                got=shortly(found),
                hint='Return {"loss": ..., "accuracy": ...}.',
            )
        got = f"loss {shortly(found['loss'])}, accuracy {shortly(found['accuracy'])}"
        expected = f"loss {right['loss']:.4g}, accuracy {right['accuracy']:.4g}"
        if model.calls and model.forgot_eval:
            hint = "Dropout was on during a forward pass: switch to evaluation mode before the first one."
            raise Wrong(given=given, expected="every forward pass in evaluation mode", got=got, hint=hint)
        if not all(is_near(found[name], right[name], 1e-5) for name in right):
            raise Wrong(given=given, expected=expected, got=got, hint=_evaluation_hint(batches, found))
        if model.kept_graph:
            hint = "The numbers are right, but each forward pass kept its graph for a backward pass that never comes."
            raise Wrong(given=given, expected="forward passes without a graph", got="a graph was kept", hint=hint)
        if model.training != training:
            hint = "The caller gets the model back in another mode: note model.training first and restore that."
            after = "training" if model.training else "evaluation"
            raise Wrong(given=given, expected=f"the model in {mode} mode", got=f"in {after} mode", hint=hint)


def _evaluation_hint(batches: list[dict[str, Tensor]], found: dict[str, Any]) -> str:
    single = [solutions.solution_4(Probe(), [batch]) for batch in batches]
    rows = [len(batch["labels"]) for batch in batches]
    for name in ("loss", "accuracy"):
        values = [result[name] for result in single]
        if is_near(found[name], sum(values) / len(values), 1e-5) and len(set(rows)) > 1:
            return f"{name} is the mean of the batches' means: a row of a short batch weighs too much. Weigh by rows."
        if is_near(found[name], values[-1], 1e-5) and len(rows) > 1:
            return f"{name} is that of the last batch only: collect over all batches."
        if is_near(found[name], sum(value * n for value, n in zip(values, rows, strict=True)), 1e-5):
            return f"{name} is a sum over rows: divide once, by all of them."
    return "Sum losses and right answers over all rows, then divide each once by the number of rows."
