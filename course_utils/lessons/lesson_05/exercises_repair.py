"""Exercises of lesson 05: three bugs in one callback, a guard that survives a resume (05.5 and 05.6)."""

from __future__ import annotations

import math
from typing import Any

from course_utils.lessons.lesson_05.drive import at, control_after, stop_of, through_a_checkpoint
from course_utils.teach.exercise import Wrong, ask, exercise


@exercise(
    "05.5",
    "three bugs in one callback",
    hints=(
        "Ask of each line: which value does it see here, on which process does it run, and who gets the result?",
        "state.best_metric is not the metric of this evaluation. A stop concerns all ranks. A copy must go somewhere.",
    ),
    kind="debug",
)
def check_target(answer: Any) -> None:
    """``answer(target)`` is a callback; single evaluations on both ranks."""
    cases = (
        ("0.85 after a best of 0.6, on rank 0", 0.85, 0.6, 0, True),
        ("0.85 at the first evaluation, on rank 0", 0.85, None, 0, True),
        ("exactly 0.8, on rank 0", 0.8, 0.6, 0, True),
        ("0.7 after a best of 0.9, on rank 0", 0.7, 0.9, 0, False),
        ("NaN, on rank 0", math.nan, 0.9, 0, False),
        ("0.85 after a best of 0.6, on rank 1", 0.85, 0.6, 1, True),
        ("0.7, on rank 1", 0.7, 0.6, 1, False),
    )
    for words, value, best, rank, expected in cases:
        given = f"target 0.8, eval_macro_f1 = {words}"
        callback = ask(answer, 0.8, given=given, expected="a callback")
        events = [("on_evaluate", {"metrics": {"eval_macro_f1": value, "eval_loss": 1.0}})]
        got = stop_of(callback, events, given, rank, best_metric=best) is not None
        if got != expected:
            raise Wrong(
                given=given,
                expected="a stop" if expected else "no stop",
                got="a stop" if got else "no stop",
                hint=_target_hint(callback, value, best, rank, expected, given),
            )


def _target_hint(callback: Any, value: float, best: float | None, rank: int, expected: bool, given: str) -> str:
    if not expected:
        return "This evaluation's own value counts, not a best of earlier ones; and NaN is at least nothing."
    if rank:
        return "A rank that does not stop goes on alone and waits for the others: decide on every rank."
    events = [("on_evaluate", {"metrics": {"eval_macro_f1": value, "eval_loss": 1.0}})]
    if stop_of(callback, events, given, rank, best_metric=1.0) is not None:
        return "In on_evaluate state.best_metric is still the one before this evaluation: read the value from metrics."
    return (
        "Nothing reaches the Trainer: change the control you were given, or return the new one. And >= includes equal."
    )


SPIKES = (
    (2, 2.0, [3.0, 2.0, 5.0, 1.9, 4.1, 1.0], [3, 5], 5),
    (1, 1.5, [4.0, 3.0, 3.5, 4.4, 4.6], [5], 5),
    (2, 2.0, [math.nan, 1.0, math.nan, 0.9], [1, 3], 3),
    (3, 2.0, [1.0, 9.0, 3.0, 9.0], [2, 3, 4], 4),
    (2, 2.0, [1.0, 2.0, 1.5], [], None),
)


@exercise(
    "05.6",
    "a guard that survives a resume",
    hints=(
        "Attributes: spikes, and the lowest loss (None before the first). The event is on_log; evaluation logs have no "
        "'loss'. state() holds everything the constructor needs under 'args' and everything that changed under "
        "'attributes'.",
        "A resume calls YourClass(**state()['args']) and then sets each entry of 'attributes' by its name. So write "
        "both dictionaries with exactly the names your __init__ uses, and only with what JSON can hold.",
    ),
)
def check_guard(answer: Any) -> None:
    """``answer(limit, factor)`` is a callback; loss histories, on both ranks, and each cut in two by a resume."""
    for limit, factor, losses, spikes, expected in SPIKES:
        for rank in (0, 1):
            _guarded(answer, limit, factor, losses, spikes, expected, rank, cut=None)
    for limit, factor, losses, spikes, expected in SPIKES:
        for cut in range(1, (expected or len(losses))):
            _guarded(answer, limit, factor, losses, spikes, expected, 0, cut)


def _guarded(
    answer: Any, limit: int, factor: float, losses: list, spikes: list, expected: int | None, rank: int, cut: int | None
) -> None:
    where = f", resumed after {cut}" if cut else f", on rank {rank}"
    given = f"limit {limit}, factor {factor}, logged losses {losses}{where}"
    callback, stop = ask(answer, limit, factor, given=given, expected="a callback"), None
    for number, loss in enumerate(losses, 1):
        control_after(callback, "on_log", given, rank=rank, step=number, more={"logs": {"eval_loss": 99.0}})
        control = control_after(callback, "on_log", given, rank=rank, step=number, more={"logs": {"loss": loss}})
        if control.should_training_stop:
            stop = number
            break
        if number == cut:
            callback = through_a_checkpoint(callback, given)
    counted = getattr(callback, "spikes", None)
    wanted = len(spikes)
    if stop == expected and counted == wanted:
        return
    got = f"{at(stop)}, spikes = {counted!r}"
    raise Wrong(
        given=given,
        expected=f"{at(expected)}, spikes = {wanted}",
        got=got,
        hint=_guard_hint(losses, stop, expected, rank, cut),
    )


def _guard_hint(losses: list, stop: int | None, expected: int | None, rank: int, cut: int | None) -> str:
    if cut:
        return "Without the resume it was right. What did the callback know that is not in state()['attributes']?"
    if rank:
        return "On rank 0 it was right: steer on every rank."
    if any(map(math.isnan, losses)):
        return (
            "NaN is a spike, also as the first loss, and no comparison with NaN is true: test for it with math.isnan."
        )
    if expected is None:
        return "Exactly factor times the lowest loss is no spike yet: it must be above."
    return "A spike is above factor times the lowest loss so far. A spike is never the lowest, nor the loss before it."
