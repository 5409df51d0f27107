"""Checkers of lesson 04's exercises on a whole evaluation: its settings, and a `compute_metrics`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from course_utils.teach.exercise import Wrong, ask, exercise

# Settings of three runs; each has something wrong with the choice of its best checkpoint, or nothing.
SETTINGS = (
    {"metric_for_best_model": "mse", "eval_strategy": "steps", "eval_steps": 50},
    {"metric_for_best_model": "eval_f1", "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 100},
    {
        "metric_for_best_model": "eval_perplexity",
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "save_strategy": "steps",
        "save_steps": 40,
    },
    {"metric_for_best_model": "spearmanr", "greater_is_better": False, "eval_strategy": "steps", "eval_steps": 10},
    {"metric_for_best_model": "loss", "greater_is_better": True, "eval_strategy": "epoch", "learning_rate": 1e-3},
)
_SMALLER_IS_BETTER = {"loss", "mse", "mae", "perplexity"}


@exercise(
    "04.5",
    "the best checkpoint",
    kind="debug",
    hints=(
        "Which of METRICS are errors, where smaller is better? And which steps' weights lie on the disk?",
        "Set load_best_model_at_end, set greater_is_better from the name without eval_, and save at every evaluation: "
        "save_strategy = eval_strategy, and save_steps = eval_steps where there are steps.",
    ),
)
def check_settings(answer: Callable[[dict], dict]) -> None:
    """``answer(settings)`` returns a repaired copy."""
    from transformers import TrainingArguments

    for settings in SETTINGS:
        given = repr(settings)
        before = dict(settings)
        found = ask(answer, before, given=given, expected="a dict of TrainingArguments")
        if not isinstance(found, dict):
            raise Wrong(given=given, expected="a dict", got=repr(found)[:80], hint="Return the repaired settings.")
        if before != settings:
            raise Wrong(
                given=given, expected="a copy", got="the dict itself changed", hint="Begin with a copy: dict(settings)."
            )
        lost = [key for key in settings if key not in found]
        for key in ("metric_for_best_model", "eval_strategy", "eval_steps", "learning_rate"):
            if key in settings and found.get(key) != settings[key]:
                lost.append(key)
        if lost:
            got = f"{lost[0]}={found.get(lost[0])!r}"
            raise Wrong(
                given=given, expected=f"{lost[0]} as it was", got=got, hint=f"{lost[0]} was right: leave it alone."
            )
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = TrainingArguments(folder, report_to="none", use_cpu=True, **found)
            except (TypeError, ValueError) as error:
                hint = "TrainingArguments refuses these; read its sentence. Is every evaluation saved?"
                raise Wrong(given=given, expected="valid arguments", got=f"{error}"[:200], hint=hint) from None
        _check_best(made, given)


def _check_best(made: Any, given: str) -> None:
    name = made.metric_for_best_model.removeprefix("eval_")
    if not made.load_best_model_at_end:
        hint = "Without load_best_model_at_end the last weights stay, whatever was best."
        raise Wrong(given=given, expected="load_best_model_at_end=True", got="False", hint=hint)
    wanted = name not in _SMALLER_IS_BETTER
    if bool(made.greater_is_better) != wanted:
        hint = f"{name}: is a smaller value better or a greater one? Say it with greater_is_better."
        raise Wrong(given=given, expected=f"greater_is_better={wanted}", got=repr(made.greater_is_better), hint=hint)
    saves, evaluates = made.save_strategy.value, made.eval_strategy.value
    steps_differ = saves == "steps" and made.save_steps != made.eval_steps
    if saves != "best" and (saves != evaluates or steps_differ):
        got = f"evaluates by {evaluates} ({made.eval_steps}), saves by {saves} ({made.save_steps})"
        hint = "An evaluation whose weights were not saved cannot be loaded: save at every evaluation."
        raise Wrong(given=given, expected="every evaluation saved", got=got, hint=hint)


@exercise(
    "04.6",
    "repair the evaluation",
    kind="debug",
    hints=(
        "Five things are wrong: the axis, the batches, the average, the ignored rows, and that there is no interval.",
        "argmax(-1); keep = labels != -100; macro_f1(predicted, labels, C) over all rows at once; bootstrap with a "
        "function of (predicted, labels); recall of each class that occurs; float(...) around everything.",
    ),
)
def check_evaluation(answer: Callable) -> None:
    """``answer(prediction)`` returns four floats."""
    for seed, (rows, classes, ignored, share) in enumerate(
        ((300, 4, 0, (0.7, 0.2, 0.08, 0.02)), (500, 3, 60, (0.85, 0.1, 0.05)), (40, 5, 5, (0.9, 0.05, 0.05, 0, 0)))
    ):
        random = np.random.default_rng(seed)
        labels = random.choice(classes, rows, p=share)
        logits = random.normal(size=(rows, classes)) + 1.6 * np.eye(classes)[labels]
        labels[random.permutation(rows)[:ignored]] = -100
        logits[:, [c for c, expected in enumerate(share) if not expected]] -= 100  # never given either
        given = f"{rows} rows, {classes} classes, {ignored} rows labelled -100"
        _check_one_evaluation(answer, logits, labels, given)


def _check_one_evaluation(answer: Callable, logits: np.ndarray, labels: np.ndarray, given: str) -> None:
    from course_utils.lessons.lesson_04.solutions import solution_6

    prediction = SimpleNamespace(predictions=logits, label_ids=labels)
    wanted = solution_6(prediction)
    copy = SimpleNamespace(predictions=logits.copy(), label_ids=labels.copy())
    found = ask(answer, copy, given=given, expected=f"a dict with {', '.join(wanted)}")
    if not isinstance(found, dict) or set(found) != set(wanted):
        got = repr(sorted(found)) if isinstance(found, dict) else repr(found)[:80]
        raise Wrong(
            given=given, expected=f"a dict with {', '.join(wanted)}", got=got, hint="Four entries, these names."
        )
    for name, value in wanted.items():
        got = found[name]
        if not isinstance(got, float | int) or isinstance(got, bool):
            hint = "The Trainer writes the dict to a JSON file: plain floats, so float(...) around arrays and tensors."
            raise Wrong(given=given, expected=f"{name} as a float", got=type(got).__name__, hint=hint)
        if not abs(got - value) < (0.02 if name.endswith(("low", "high")) else 1e-6):
            hint = _hint_on_evaluation(name, got, logits, labels)
            raise Wrong(given=given, expected=f"{name} = {value:.4f}", got=f"{got:.4f}", hint=hint)


def _hint_on_evaluation(name: str, got: float, logits: np.ndarray, labels: np.ndarray) -> str:
    from sklearn.metrics import f1_score

    predicted, classes = logits.argmax(-1), range(logits.shape[-1])
    keep = labels != -100

    def score(rows: np.ndarray, average: str, which: Any = classes) -> float:
        return float(f1_score(labels[rows], predicted[rows], average=average, labels=which, zero_division=0))

    everything = np.ones_like(keep)
    if name == "worst_recall":
        return "Recall of a class: of its rows, the share that was given it. The lowest, over classes that have rows."
    if name != "macro_f1":
        return "The interval's ends come from `bootstrap` of macro-F1 on the kept rows, with its defaults."
    if not keep.all() and any(abs(got - score(everything, a)) < 1e-6 for a in ("macro", "weighted")):
        return "Rows labelled -100 are no rows of any class: drop them before anything is computed."
    if abs(got - score(keep, "weighted")) < 1e-6 or abs(got - score(keep, "micro")) < 1e-6:
        return "That follows the big class. macro: every class counts the same."
    if abs(got - score(keep, "macro", None)) < 1e-6:
        return "A class that does not occur counts as 0: name all C classes (macro_f1 takes their number)."
    return "One macro-F1 over all kept rows: argmax over the classes (the last axis), no means of batches."
