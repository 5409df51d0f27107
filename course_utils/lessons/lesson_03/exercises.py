"""Exercises of lesson 03: a loop's settings as TrainingArguments, what makes two runs differ, the best checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from course_utils.teach.exercise import Wrong, exercise

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
    "a loop's settings as TrainingArguments",
    hints=(
        "Go through the loop's keys one by one and look the argument up in the table. What you leave out takes the "
        "Trainer's default, which clips, seeds with 42 and uses batches of 8.",
    ),
)
def check_translation(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(loop)`` returns keyword arguments of TrainingArguments."""
    for loop in LOOPS:
        _check_one_translation(loop, answer(dict(loop)))


def _check_one_translation(loop: dict[str, Any], settings: Any) -> None:
    from transformers import TrainingArguments

    from course_utils.training.settings import is_argument

    given = f"the loop with max_steps={loop['max_steps']}"
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
        made = TrainingArguments(**{"output_dir": folder, "report_to": "none", **settings})
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
    "03.2",
    "what makes two runs differ",
    hints=(
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
        got = answer(_arguments(), _arguments(**changes))
        if set(got or ()) != expected or isinstance(got, str):
            raise Wrong(given=given, expected=repr(expected), got=repr(got), hint=_hint_on_differences(got, expected))


def _arguments(**changes: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(**{"output_dir": "one", "report_to": "none", **changes})


def _hint_on_differences(got: Any, expected: set[str]) -> str:
    from course_utils.training.settings import BOOKKEEPING

    if not isinstance(got, (set, frozenset, list, tuple, dict)):
        return "Return a set of names; it is empty when nothing differs."
    if set(got) & BOOKKEEPING:
        return f"{sorted(set(got) & BOOKKEEPING)[0]} cannot change a weight: leave the names in BOOKKEEPING out."
    if expected - set(got):
        return f"{sorted(expected - set(got))[0]} differs too: compare every field, not only the well-known ones."
    return (
        f"{sorted(map(str, set(got) - expected))[0]} does not differ: compare the values of the dataclass fields only."
    )


@exercise(
    "03.3",
    "the checkpoint that load_best_model_at_end loads",
    hints=(
        "Walk through the evaluations in order. Keep the best value so far, saved or not; remember "
        "the step only when it "
        "is a new best AND was saved.",
    ),
)
def check_best_checkpoint(answer: Callable[[list[tuple[int, float]], set[int], bool], int | None]) -> None:
    """``answer(evaluations, saved, greater_is_better)`` returns a step or None."""
    f1 = [(10, 0.30), (20, 0.50), (30, 0.45), (40, 0.50), (50, 0.40)]
    cases = (
        ("macro-F1 with every evaluation saved", f1, {10, 20, 30, 40, 50}, True, 20),
        ("a loss (smaller is better)", [(10, 1.2), (20, 0.9), (30, 1.1)], {10, 20, 30}, False, 20),
        ("macro-F1, saved at 10, 30 and 50 only", f1, {10, 30, 50}, True, 10),
        ("macro-F1, saved at 30 and 50 only", f1, {30, 50}, True, None),
    )
    hints = {
        20: "The first of two equal values stays the best: only a strictly better one replaces it. Mind the direction.",
        10: "Step 30 was saved, but it was never the best so far: step 20 was better. The Trainer remembers the last "
        "checkpoint that was the best when it was saved.",
        None: "No saved step was ever the best so far, so nothing is loaded: return None.",
    }
    for given, evaluations, saved, greater, expected in cases:
        got = answer(list(evaluations), set(saved), greater)
        if got != expected:
            raise Wrong(given=f"{given}: {evaluations}", expected=repr(expected), got=repr(got), hint=hints[expected])
