"""Wrong answers to lesson 03's exercises, each with words of the hint it must get."""

import dataclasses

from course_utils.lessons.lesson_03.solutions import solution_1, solution_2, solution_3
from course_utils.training.settings import MOST_USED


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


WRONG = {
    "03.1": [
        (without("max_grad_norm"), "kept the Trainer's default (1.0)"),
        (without("seed"), "kept the Trainer's default (42)"),
        (changed(per_device_train_batch_size=lambda loop: loop["micro_batch"] * loop["accumulation"]), "from"),
        (changed(evaluation_strategy=lambda loop: "steps"), "evaluation_strategy does not exist"),
        (changed(warmup_steps=lambda loop: 0), "warm-up steps must come from the loop"),
        (without("adam_beta2"), "(adam_beta1, adam_beta2) must come from the loop"),
    ],
    "03.2": [
        (all_fields, "cannot change a weight"),
        (well_known_fields, "adam_beta2 differs too"),
        (lambda first, second: solution_2(first, second) - {"save_steps"}, "save_steps differs too"),
        (lambda first, second: "adam_beta2", "Return a set"),
    ],
    "03.3": [
        (best_saved, "never the best so far"),
        (best_ever, "never the best so far"),
        (lambda e, s, g: solution_3(e, s, True), "Mind the direction"),
        (lambda e, s, g: solution_3([(t, v + t * 1e-9) for t, v in e], s, g), "strictly better"),
    ],
}
