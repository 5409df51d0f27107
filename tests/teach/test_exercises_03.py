"""Lesson 03's exercises: each solution passes, the stub is not attempted, planted mistakes fail with the right hint."""

import dataclasses

import pytest

from course_utils.teach.exercise import attempt, find, solution
from course_utils.teach.solutions.lesson_03 import solution_1, solution_2, solution_3
from course_utils.training.settings import MOST_USED

IDS = ("03.1", "03.2", "03.3")


@pytest.mark.parametrize("id", IDS)
def test_solution_passes(id):
    assert attempt(id, solution(id)) is None


@pytest.mark.parametrize("id", IDS)
def test_stub_is_not_attempted(id):
    def stub(*args):
        """Not written yet."""
        ...

    with pytest.raises(NotImplementedError):
        attempt(id, stub)


def without(name):
    return lambda loop: {key: value for key, value in solution_1(loop).items() if key != name}


def changed(**changes):
    return lambda loop: solution_1(loop) | {key: change(loop) for key, change in changes.items()}


def all_fields(first, second):
    return {f.name for f in dataclasses.fields(first) if getattr(first, f.name) != getattr(second, f.name)}


def well_known_fields(first, second):
    names = {setting.name for setting in MOST_USED} - {"logging_steps", "run_name"}
    return {name for name in names if getattr(first, name) != getattr(second, name)}


def best_saved(evaluations, saved, greater_is_better):
    found = [(value if greater_is_better else -value, -step) for step, value in evaluations if step in saved]
    return -max(found)[1]


def best_ever(evaluations, saved, greater_is_better):
    return -max((value if greater_is_better else -value, -step) for step, value in evaluations)[1]


@pytest.mark.parametrize(
    ("id", "mistake", "in_hint"),
    [
        ("03.1", without("max_grad_norm"), "kept the Trainer's default (1.0)"),
        ("03.1", without("seed"), "kept the Trainer's default (42)"),
        ("03.1", changed(per_device_train_batch_size=lambda loop: loop["micro_batch"] * loop["accumulation"]), "from"),
        ("03.1", changed(evaluation_strategy=lambda loop: "steps"), "evaluation_strategy does not exist"),
        ("03.1", changed(warmup_steps=lambda loop: 0), "warm-up steps must come from the loop"),
        ("03.1", without("adam_beta2"), "(adam_beta1, adam_beta2) must come from the loop"),
        ("03.2", all_fields, "cannot change a weight"),
        ("03.2", well_known_fields, "adam_beta2 differs too"),
        ("03.2", lambda first, second: "adam_beta2", "Return a set"),
        ("03.3", best_saved, "never the best so far"),
        ("03.3", best_ever, "never the best so far"),
        ("03.3", lambda e, s, g: solution_3(e, s, True), "Mind the direction"),
        ("03.3", lambda e, s, g: solution_3([(t, v + t * 1e-9) for t, v in e], s, g), "strictly better"),
    ],
)
def test_planted_mistake_is_explained(id, mistake, in_hint):
    wrong = attempt(id, mistake)
    assert wrong is not None
    assert in_hint in wrong.hint


def test_solution_2_agrees_with_itself_reversed():
    from transformers import TrainingArguments

    first, second = TrainingArguments("a", report_to="none"), TrainingArguments("a", report_to="none", seed=1)
    assert solution_2(first, second) == solution_2(second, first) == {"seed"}


@pytest.mark.parametrize("id", IDS)
def test_exercise_has_title_and_hint(id):
    assert find(id).title and len(find(id).hint) > 40
