"""Exercises of lesson 03: calls in a run, a loop's settings, what differs, the best checkpoint (03.1 to 03.4)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from course_utils.lessons.lesson_03 import exercises_repair  # noqa: F401  registers 03.5 and 03.6
from course_utils.teach.exercise import Wrong, ask, exercise

# 50 rows in batches of 4 are 13 micro-batches an epoch, the last with 2 rows; in windows of 3 that is 5 steps, the last
# with one micro-batch. 10 steps are two epochs. Evaluations after steps 4, 8 and 10, of 20 rows in batches of 8.
CALLS = {"backward": 26, "optimizer.step": 10, "prediction_step": 9, "compute_loss": 35, "compute_metrics": 3}
_CALL_HINTS = {
    (
        "backward",
        30,
    ): "50 rows are not a whole number of windows: how many micro-batches has an epoch, and the last step?",
    ("backward", 24): "The last micro-batch of an epoch has two rows; the Trainer does not drop it.",
    ("backward", 10): "backward runs once a micro-batch, and most steps have three.",
    ("optimizer.step", 26): "Micro-batches are not steps: max_steps counts optimizer steps.",
    ("prediction_step", 6): "With eval_strategy='steps' the Trainer evaluates after the last step too.",
    ("prediction_step", 3): "prediction_step runs once for each batch of an evaluation: 20 rows in batches of 8.",
    ("prediction_step", 8): "The last batch of an evaluation, four rows, is one more.",
    ("compute_loss", 26): "prediction_step calls compute_loss as well: look at the outline of an evaluation.",
    ("compute_metrics", 9): "Metrics are computed once an evaluation, from all its rows.",
    ("compute_metrics", 2): "With eval_strategy='steps' the Trainer evaluates after the last step too.",
}
# What lesson 01's loop was given. The values are chosen so that each differs from TrainingArguments' default.
LOOPS = (
    {
        "lr": 1e-3,
        "betas": (0.9, 0.95),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_steps": 75,
        "max_steps": 750,
        "micro_batch": 16,
        "accumulation": 2,
        "max_grad_norm": 0.5,
        "eval_every": 150,
        "seed": 0,
    },
    {
        "lr": 2e-4,
        "betas": (0.8, 0.99),
        "eps": 1e-7,
        "weight_decay": 0.1,
        "schedule": "constant_with_warmup",
        "warmup_steps": 5,
        "max_steps": 60,
        "micro_batch": 4,
        "accumulation": 3,
        "max_grad_norm": 0.0,  # the loop does not clip
        "eval_every": 0,  # the loop does not evaluate
        "seed": 7,
    },
)
# What the loop calls it -> the TrainingArguments field that must hold the same value.
_FIELDS = {
    "lr": "learning_rate",
    "eps": "adam_epsilon",
    "weight_decay": "weight_decay",
    "max_steps": "max_steps",
    "micro_batch": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "max_grad_norm": "max_grad_norm",
    "seed": "seed",
}


@exercise(
    "03.1",
    "calls in a run",
    hints=(
        "First the epoch: how many micro-batches are 50 rows, how many windows of three are these, and how long is the "
        "last window? Then the evaluations: after which steps, and how many batches each?",
        "Two epochs make the ten steps. compute_loss has two callers in the outlines above: add both.",
    ),
    kind="predict",
)
def check_calls(answer: Any) -> None:
    """A dictionary of five counts."""
    given = "50 rows in batches of 4, windows of 3, 10 steps; 20 rows in batches of 8 every 4 steps"
    if not isinstance(answer, dict) or set(answer) != set(CALLS):
        expected = f"a dict with {', '.join(CALLS)}"
        raise Wrong(given=given, expected=expected, got=repr(answer)[:80], hint="Give all five counts, by name.")
    for name, count in CALLS.items():
        got = answer[name]
        if got != count or isinstance(got, bool):
            known = _CALL_HINTS.get((name, got)) if isinstance(got, int) else None
            hint = known or f"Count {name} again: once a micro-batch, once a step, or once a batch of an evaluation?"
            raise Wrong(given=given, expected=f"the right count of {name}", got=repr(got)[:80], hint=hint)


@exercise(
    "03.2",
    "a loop's settings as TrainingArguments",
    hints=(
        "Go through the loop's keys one by one and look the argument up in the table. What you leave out takes the "
        "Trainer's default, which clips, seeds with 42 and uses batches of 8.",
        "One key becomes two arguments (the betas). Two need a decision: what says 'no evaluation', and which number "
        "says 'no clipping'?",
    ),
)
def check_translation(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(loop)`` returns keyword arguments of TrainingArguments."""
    for loop in LOOPS:
        given = f"the loop with max_steps={loop['max_steps']}"
        _check_one_translation(loop, ask(answer, dict(loop), given=given, expected="a dict of arguments"), given)


def _check_one_translation(loop: dict[str, Any], settings: Any, given: str) -> None:
    from transformers import TrainingArguments

    from course_utils.training.settings import is_argument

    if not isinstance(settings, dict):
        raise Wrong(
            given=given, expected="a dict", got=type(settings).__name__, hint="Return {'learning_rate': ..., ...}."
        )
    for name in settings:
        if not is_argument(name):
            raise Wrong(
                given=given,
                expected="only arguments that TrainingArguments has",
                got=name,
                hint=f"{name} does not exist in the installed version: look for its present name in the table.",
            )
    with tempfile.TemporaryDirectory() as folder:
        made = ask(TrainingArguments, given=given, **({"output_dir": folder, "report_to": "none"} | settings))
    for key, field in _FIELDS.items():
        _expect(loop[key], getattr(made, field), f"{given}: {key}={loop[key]}", field)
    _expect(loop["betas"], (made.adam_beta1, made.adam_beta2), f"{given}: betas", "(adam_beta1, adam_beta2)")
    _expect(loop["schedule"], made.lr_scheduler_type.value, f"{given}: schedule", "lr_scheduler_type")
    _expect(loop["warmup_steps"], made.get_warmup_steps(loop["max_steps"]), f"{given}: warm-up", "warm-up steps")
    evaluates = "steps" if loop["eval_every"] else "no"
    _expect(evaluates, made.eval_strategy.value, f"{given}: eval_every={loop['eval_every']}", "eval_strategy")
    if loop["eval_every"]:
        _expect(loop["eval_every"], made.eval_steps, f"{given}: eval_every", "eval_steps")


def _expect(expected: Any, got: Any, given: str, field: str) -> None:
    if got != expected:
        from transformers import TrainingArguments

        default = getattr(TrainingArguments, field, None)
        hint = f"{field} must come from the loop."
        if got == default:
            hint = f"{field} kept the Trainer's default ({default!r}), which is not what the loop did."
        raise Wrong(given=given, expected=f"{field} = {expected!r}", got=repr(got), hint=hint)


@exercise(
    "03.3",
    "what makes two runs differ",
    hints=(
        "TrainingArguments is a dataclass: the standard library lists its fields. Which of them may differ?",
        "dataclasses.fields(first) lists every argument. Compare getattr of both for each, and leave out the names in "
        "BOOKKEEPING.",
    ),
)
def check_differences(answer: Callable[[Any, Any], set[str]]) -> None:
    """``answer(first, second)`` returns the names of the fields that differ and can change a weight."""
    cases = (
        ("two equal runs in different folders", {"output_dir": "other", "run_name": "b"}, set()),
        ("adam_beta2 0.999 and 0.95", {"adam_beta2": 0.95, "output_dir": "other"}, {"adam_beta2"}),
        (
            "a cosine schedule, another data_seed and another logging_steps",
            {"lr_scheduler_type": "cosine", "data_seed": 7, "logging_steps": 1},
            {"lr_scheduler_type", "data_seed"},
        ),
        ("save_steps 500 and 100, and a save_total_limit", {"save_steps": 100, "save_total_limit": 2}, {"save_steps"}),
    )
    for given, changes, expected in cases:
        got = ask(answer, _arguments(), _arguments(**changes), given=given, expected=repr(expected))
        if not isinstance(got, (set, frozenset)) or got != expected:
            raise Wrong(given=given, expected=repr(expected), got=repr(got), hint=_hint_on_differences(got, expected))


def _arguments(**changes: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(**{"output_dir": "one", "report_to": "none", **changes})


def _hint_on_differences(got: Any, expected: set[str]) -> str:
    from course_utils.training.settings import BOOKKEEPING

    if not isinstance(got, (set, frozenset)):
        return "Return a set of names; it is empty when nothing differs."
    if set(got) & BOOKKEEPING:
        return f"{sorted(set(got) & BOOKKEEPING)[0]} cannot change a weight: leave the names in BOOKKEEPING out."
    if expected - set(got):
        return f"{sorted(expected - set(got))[0]} differs too: compare every field, not only the well-known ones."
    return (
        f"{sorted(map(str, set(got) - expected))[0]} does not differ: compare the values of the dataclass fields only."
    )


@exercise(
    "03.4",
    "the checkpoint that load_best_model_at_end loads",
    hints=(
        "What does the Trainer compare an evaluation with: the best saved value, or the best value so far?",
        "Walk through the evaluations in order. Keep the best value so far, saved or not; remember the step only when "
        "it is a new best AND was saved.",
    ),
)
def check_best_checkpoint(answer: Callable[[list[tuple[int, float]], set[int], bool], int]) -> None:
    """``answer(evaluations, saved, greater_is_better)`` returns a step, or 0."""
    f1 = [(10, 0.30), (20, 0.50), (30, 0.45), (40, 0.50), (50, 0.40)]
    cases = (
        ("macro-F1 with every evaluation saved", f1, {10, 20, 30, 40, 50}, True, 20),
        ("a loss (smaller is better)", [(10, 1.2), (20, 0.9), (30, 1.1)], {10, 20, 30}, False, 20),
        ("macro-F1, saved at 10, 30 and 50 only", f1, {10, 30, 50}, True, 10),
        ("macro-F1, saved at 30 and 50 only", f1, {30, 50}, True, 0),
        ("a score below zero", [(5, -3.0), (10, -2.0), (15, -2.5)], {5, 10, 15}, True, 10),
    )
    hints = (
        "The first of two equal values stays the best: only a strictly better one replaces it.",
        "Mind the direction: with greater_is_better=False the smallest value is the best.",
        "Step 30 was saved, but it was never the best so far: step 20 was better. The Trainer remembers the last "
        "checkpoint that was the best when it was saved.",
        "No saved step was ever the best so far, so nothing is loaded: return 0.",
        "The first value is the best so far whatever its size: 0 is no value to start from.",
    )
    for (name, evaluations, saved, greater, expected), hint in zip(cases, hints, strict=True):
        given = f"{name}: {evaluations}"
        got = ask(answer, list(evaluations), set(saved), greater, given=given, expected=repr(expected))
        if got != expected or isinstance(got, bool):
            raise Wrong(given=given, expected=repr(expected), got=repr(got)[:80], hint=hint)
