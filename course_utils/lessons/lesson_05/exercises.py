"""Exercises of lesson 05: events, unfreezing, a plateau stop, the best by perplexity (05.1 to 05.4)."""

from __future__ import annotations

import math
import tempfile
from typing import Any

from course_utils.lessons.lesson_05 import exercises_repair  # noqa: F401  registers 05.5 and 05.6
from course_utils.lessons.lesson_05.drive import at, stop_of, tiny_trainer
from course_utils.teach.exercise import Wrong, ask, exercise

EVENT_COUNTS = {"on_step_end": 20, "on_substep_end": 40, "on_log": 8, "on_evaluate": 3, "on_save": 2}
_COUNT_HINTS = {
    ("on_substep_end", 60): "The last micro-batch of a window ends the step: it gets on_step_end, not on_substep_end.",
    ("on_substep_end", 20): "Three micro-batches a step, and each but the last has an on_substep_end.",
    ("on_log", 4): "Every evaluation is logged too, and the end of the run has an entry of its own.",
    ("on_log", 7): "One more: after the last step the Trainer logs the run's totals.",
    ("on_log", 5): "Every evaluation is logged as well.",
    (
        "on_evaluate",
        2,
    ): "With eval_strategy='steps' the Trainer also evaluates after the last step, if that step was not due.",
}


@exercise(
    "05.1",
    "how often each event fires",
    hints=(
        "Go through the 20 steps: at which of them is a log, an evaluation, a checkpoint due? What is due at the end?",
        "Compare with the short run's printed counts: it had 2 training logs, 2 evaluations, and one log more.",
    ),
    kind="predict",
)
def check_events(answer: Any) -> None:
    """A dictionary of five counts."""
    given = "20 steps of 3 micro-batches, logs every 5, evaluations every 8, checkpoints every 10 steps"
    if not isinstance(answer, dict) or set(answer) != set(EVENT_COUNTS):
        got = repr(answer)[:80]
        raise Wrong(
            given=given, expected=f"a dict with {', '.join(EVENT_COUNTS)}", got=got, hint="Give all five counts."
        )
    for name, count in EVENT_COUNTS.items():
        got = answer[name]
        if got != count or isinstance(got, bool):
            more = "more" if isinstance(got, int) and got < count else "another number"
            hint = _COUNT_HINTS.get((name, got) if isinstance(got, int) else None, f"{name} fires {more} of times.")
            raise Wrong(given=given, expected=f"the right count of {name}", got=repr(got), hint=hint)


@exercise(
    "05.2",
    "unfreeze at a step",
    hints=(
        "Two moments matter: one between the optimizer's birth and the first step, and one before the step from which "
        "the parameters train. Which events are these, and what is state.global_step there?",
        "state.global_step counts finished steps: before the first step it is 0. Decide from it whether to freeze, "
        "each time, rather than waiting for one exact value: a resumed run may begin beyond it.",
    ),
)
def check_unfreeze(answer: Any) -> None:
    """``answer(prefix, step)`` is a callback; runs of six steps, one of them resumed."""
    for prefix, step in (("first", 3), ("second", 1), ("first", 0)):
        given = f"Unfreeze({prefix!r}, {step}) in a run of 6 steps"
        moved = _moved(ask(answer, prefix, step, given=given, expected="a callback"), given)
        _judge(moved, prefix, step, 6, given)
    given = "Unfreeze('first', 2), resumed from the checkpoint of step 4"
    with tempfile.TemporaryDirectory() as folder:
        tiny_trainer(folder, [], max_steps=4, save_strategy="steps", save_steps=4).train()
        moved = _moved(ask(answer, "first", 2, given=given, expected="a callback"), given, folder)
    if not all(moved["first"]):
        hint = "After a resume state.global_step is beyond `step` already, and the parameters were frozen again."
        raise Wrong(given=given, expected="'first' trains in every step", got=f"changed: {moved['first']}", hint=hint)


def _moved(callback: Any, given: str, folder: str | None = None) -> dict[str, list[bool]]:
    """Layer -> for each step, whether its weights changed in it."""
    from transformers import TrainerCallback

    if not isinstance(callback, TrainerCallback):
        got = type(callback).__name__
        raise Wrong(given=given, expected="a TrainerCallback", got=got, hint="Derive your class from TrainerCallback.")
    moved: dict[str, list[bool]] = {"first": [], "second": []}

    class Compare(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            self.before = {name: getattr(model, name).weight.detach().clone() for name in moved}

        def on_step_end(self, args, state, control, model=None, **kwargs):
            for name, before in self.before.items():
                moved[name].append(not before.equal(getattr(model, name).weight))

    with tempfile.TemporaryDirectory() as place:
        saving = {"save_strategy": "steps", "save_steps": 4} if folder else {}
        trainer = tiny_trainer(folder or place, [callback, Compare()], max_steps=6, **saving)
        ask(trainer.train, given=given, expected="a run", resume_from_checkpoint=folder is not None)
    return moved


def _judge(moved: dict[str, list[bool]], prefix: str, step: int, steps: int, given: str) -> None:
    other = "second" if prefix == "first" else "first"
    expected = [number >= step for number in range(steps)]
    got = moved[prefix]
    if got == expected and all(moved[other]):
        return
    if not all(moved[other]):
        hint = f"{other!r} does not begin with the prefix and must train in every step."
    elif not any(got):
        hint = (
            "The parameters never train. If they were frozen before train() built the optimizer (in on_init_end, say), "
            "they are not in it. If not: does anything set requires_grad back to True?"
        )
    elif all(got):
        hint = (
            "The parameters train from the first step: set requires_grad to False before it, for names with the prefix."
        )
    else:
        late = abs(sum(expected) - sum(got))
        hint = f"Off by {late}: state.global_step counts finished steps, so it is {step} before step {step + 1}."
    raise Wrong(given=given, expected=f"{prefix!r} changes in steps {expected}", got=f"{got}", hint=hint)


PLATEAUS = (
    (2, 0.0, [0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.65], 7),
    (3, 0.01, [0.5 + 0.004 * number for number in range(12)], None),
    (2, 0.0, [0.5, 0.5, 0.5], 3),
    (2, 0.1, [0.5, 0.55, 0.62, 0.65, 0.7, 0.9], 5),
    (2, 0.0, [math.nan, 0.5, math.nan, 0.6, math.nan, math.nan], 6),
    (1, 0.0, [-3.0, -2.0, -2.5], 3),
    (2, 0.0, [math.nan, math.nan, 0.5], 2),
)
_PLATEAU_HINTS = {
    1: "Small gains add up: compare with the last value that counted as a gain, not with the best or the latest value.",
    0: "Two evaluations in a row without a gain end the run; a gain sets the count back to zero.",
    2: "A tie is no gain: only more than reference + min_delta counts.",
    3: "0.62 beats 0.5 by more than 0.1 and becomes the reference; 0.65 and 0.7 do not beat 0.62 by that much.",
    4: "NaN never is a gain and must never become the reference: no number beats NaN. It counts as no gain.",
    5: "The first value is the reference whatever its size: metrics may be negative, so 0 is no start value.",
    6: "A NaN before the first number counts as well: it is an evaluation without a gain.",
}


@exercise(
    "05.3",
    "plateau stop",
    hints=(
        "Keep two attributes: the reference (None at first) and how many evaluations came since it was set.",
        "In on_evaluate: is there a reference, and does the value beat it by more than min_delta? Then it replaces it, "
        "and the count is 0. If not, count, and set control.should_training_stop when the count reaches patience.",
    ),
)
def check_plateau(answer: Any) -> None:
    """``answer(patience, min_delta)`` is a callback, driven through histories of ``eval_score``."""
    for number, (patience, min_delta, values, expected) in enumerate(PLATEAUS):
        given = f"patience {patience}, min_delta {min_delta}, values {[round(value, 3) for value in values]}"
        callback = ask(answer, patience, min_delta, given=given, expected="a callback")
        events = [("on_evaluate", {"metrics": {"eval_score": value, "eval_loss": 1.0}}) for value in values]
        got = stop_of(callback, events, given)
        if got != expected:
            hint = _PLATEAU_HINTS[number]
            raise Wrong(given=given, expected=at(expected), got=at(got), hint=hint)


@exercise(
    "05.4",
    "keep the best by perplexity",
    hints=(
        "Four things must be said: when to evaluate, which metric, its direction, and which checkpoints are kept.",
        "Look at section 5 for the strategy and the limit that leave exactly the best one. The direction has an "
        "argument of its own, which the Trainer otherwise guesses from the metric's name.",
    ),
    kind="vary",
)
def check_perplexity(answer: Any) -> None:
    """A dictionary of arguments; the settings that result are looked at, then a run is made with them."""
    given = "TrainingArguments with your arguments"
    if not isinstance(answer, dict):
        raise Wrong(given=given, expected="a dict", got=type(answer).__name__, hint="Give a dict of arguments.")
    from transformers import TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = ask(TrainingArguments, given=given, **({"output_dir": folder, "report_to": "none"} | answer))
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    wrong = [
        ("eval_strategy", args.eval_strategy.value, "steps", "Without an evaluation there is no metric."),
        ("eval_steps", args.eval_steps, 50, "Evaluate every 50 steps."),
        ("metric_for_best_model", name, "perplexity", "The metric is eval_perplexity."),
        ("greater_is_better", args.greater_is_better, False,
         "The Trainer takes every metric whose name does not end in 'loss' to be maximised. Say the direction."),
        ("save_strategy", args.save_strategy.value, "best",
         "'steps' also keeps the latest checkpoint; there is a strategy that saves at each new best only."),
        ("save_total_limit", args.save_total_limit, 1, "Older bests stay on the disk until a limit removes them."),
    ]  # fmt: skip
    for field, got, expected, hint in wrong:
        if got != expected:
            raise Wrong(given=given, expected=f"{field} = {expected!r}", got=repr(got), hint=hint)
    for values in ([3.0, 2.0, 2.5], [2.0, 3.0, 4.0], [4.0, 3.0, 2.0]):
        _run_by_perplexity(answer, values)


def _run_by_perplexity(answer: dict[str, Any], values: list[float]) -> None:
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        script = iter(values)
        settings = {name: value for name, value in answer.items() if name != "output_dir"}
        settings |= {"max_steps": 3, "eval_steps": 1}
        trainer = tiny_trainer(
            folder, [], compute_metrics=lambda prediction: {"perplexity": next(script)},
            **settings,
        )  # fmt: skip
        given = f"a run with perplexities {values}"
        ask(trainer.train, given=given)
        kept = sorted(path.name for path in Path(folder).glob("checkpoint-*"))
    expected = [f"checkpoint-{1 + values.index(min(values))}"]
    if kept != expected:
        hint = "More arguments than needed change what is kept: leave out what the exercise does not ask for."
        raise Wrong(given=given, expected=repr(expected), got=repr(kept), hint=hint)
