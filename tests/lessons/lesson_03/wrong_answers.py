"""Wrong answers to lesson 03's exercises, each with words of the hint it must get."""

import dataclasses

import torch
from transformers import Trainer

from course_utils.lessons.lesson_03.solutions import (
    solution_1,
    solution_2,
    solution_3,
    solution_4,
    solution_5,
    solution_6,
)
from course_utils.training.settings import MOST_USED, quiet_trainer


def without(name):
    return lambda loop: {key: value for key, value in solution_2(loop).items() if key != name}


def changed(**changes):
    return lambda loop: solution_2(loop) | {key: change(loop) for key, change in changes.items()}


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


def from_zero(evaluations, saved, greater_is_better):
    return solution_4([(0, 0.0), *evaluations], saved, greater_is_better) if greater_is_better else 20


def missing(name):
    return {key: value for key, value in solution_5.items() if key != name}


def repaired(scaled=None, divide="window", default=False, **faults):
    """A Trainer like the solution's, with the faults that are asked for."""

    class Half(Trainer):
        loss_is_scaled_for_ga = scaled

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            weight = inputs.pop("weight", torch.tensor(1.0)) if default else inputs.pop("weight")
            outputs = model(**inputs)
            losses = torch.nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")
            items = num_items_in_batch if divide == "window" else len(losses)
            loss = (losses * weight).sum() / items
            return (loss, outputs) if return_outputs else loss

    def build(model, rows, folder, **settings):
        right = {"remove_unused_columns": False, "logging_nan_inf_filter": False}
        return quiet_trainer(model, folder, rows, trainer_class=Half, **(settings | right | faults))

    return build


def trained(model, rows, folder, **settings):
    return solution_6(model, rows, folder, **settings).train()


WRONG = {
    "03.1": [
        (solution_1 | {"backward": 30}, "not a whole number of windows"),
        (solution_1 | {"prediction_step": 6}, "after the last step too"),
        (solution_1 | {"compute_loss": 26}, "prediction_step calls compute_loss"),
        (solution_1 | {"compute_metrics": 9}, "once an evaluation"),
        (solution_1 | {"optimizer.step": "ten"}, "Count optimizer.step again"),
        ({}, "all five counts"),
        (26, "all five counts"),
    ],
    "03.2": [
        (without("max_grad_norm"), "kept the Trainer's default (1.0)"),
        (without("seed"), "kept the Trainer's default (42)"),
        (changed(per_device_train_batch_size=lambda loop: loop["micro_batch"] * loop["accumulation"]), "from"),
        (changed(evaluation_strategy=lambda loop: "steps"), "evaluation_strategy does not exist"),
        (changed(warmup_steps=lambda loop: 0), "warm-up steps must come from the loop"),
        (without("adam_beta2"), "(adam_beta1, adam_beta2) must come from the loop"),
        (changed(lr_scheduler_type=lambda loop: "no such"), "raised an exception"),
        (lambda loop: list(solution_2(loop)), "Return {'learning_rate'"),
        (lambda loop: {}, "kept the Trainer's default"),
    ],
    "03.3": [
        (all_fields, "cannot change a weight"),
        (well_known_fields, "adam_beta2 differs too"),
        (lambda first, second: solution_3(first, second) - {"save_steps"}, "save_steps differs too"),
        (lambda first, second: "adam_beta2", "Return a set"),
        (lambda first, second: sorted(solution_3(first, second)), "Return a set"),
        (lambda first, second: first.nothing, "raised an exception"),
    ],
    "03.4": [
        (best_saved, "never the best so far"),
        (best_ever, "never the best so far"),
        (lambda e, s, g: solution_4(e, s, True), "Mind the direction"),
        (lambda e, s, g: solution_4([(t, v + t * 1e-9) for t, v in e], s, g), "strictly better"),
        (lambda e, s, g: solution_4(e, s, g) or None, "returned None"),
        (from_zero, "0 is no value to start from"),
    ],
    "03.5": [
        (missing("greater_is_better"), "Say the direction"),
        (solution_5 | {"save_steps": 20}, "its weights are gone"),
        (solution_5 | {"save_only_model": True}, "a resume starts them anew"),
        (solution_5 | {"train_sampling_strategy": "group_by_length"}, "draws a new order"),
        (missing("save_total_limit"), "every checkpoint stays"),
        (solution_5 | {"save_total_limit": 5}, "every checkpoint stays"),
        (solution_5 | {"eval_steps": 5, "save_steps": 10}, "every 10 steps"),
        (solution_5 | {"load_best_model_at_end": False}, "ends with its last weights"),
        (solution_5 | {"evaluation_strategy": "steps"}, "raised an exception"),
        (solution_5 | {"eval_delay": 35}, "leave out what the exercise does not ask for"),
        ({}, "Keep the evaluations"),
        ("random", "Give the whole dictionary"),
    ],
    "03.6": [
        (repaired(default=True, remove_unused_columns=True), "never arrived"),
        (repaired(divide="mean"), "4 times too large"),
        (repaired(divide="mean", scaled=False), "the mean of means is not the mean"),
        (repaired(scaled=False), "divided twice"),
        (repaired(logging_nan_inf_filter=True), "filters the log"),
        (repaired(default=True), "hides the next dropped column"),
        (repaired(remove_unused_columns=True), "raised an exception"),
        (trained, "build returns a Trainer"),
        (lambda model, rows, folder: 5, "raised an exception"),
    ],
}
