"""Solutions of lesson 03's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from course_utils.lessons.lesson_03.exercises import CALLS
from course_utils.lessons.lesson_03.exercises_repair import GIVEN_SETTINGS
from course_utils.training.settings import BOOKKEEPING

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

solution_1 = CALLS


def solution_2(loop: dict[str, Any]) -> dict[str, Any]:
    """Every setting of the loop by its TrainingArguments name; nothing is left to a default."""
    beta1, beta2 = loop["betas"]
    settings = {
        "learning_rate": loop["lr"],
        "adam_beta1": beta1,
        "adam_beta2": beta2,
        "adam_epsilon": loop["eps"],
        "weight_decay": loop["weight_decay"],
        "lr_scheduler_type": loop["schedule"],
        "warmup_steps": loop["warmup_steps"],
        "max_steps": loop["max_steps"],
        "per_device_train_batch_size": loop["micro_batch"],  # not the effective batch
        "gradient_accumulation_steps": loop["accumulation"],
        "max_grad_norm": loop["max_grad_norm"],  # the default is 1.0, so "no clipping" has to be said
        "seed": loop["seed"],
        "eval_strategy": "steps" if loop["eval_every"] else "no",
    }
    if loop["eval_every"]:
        settings["eval_steps"] = loop["eval_every"]
    return settings


def solution_3(first: TrainingArguments, second: TrainingArguments) -> set[str]:
    """Names of the fields that differ, without those that only name, place or report a run."""
    names = {field.name for field in dataclasses.fields(first)} - BOOKKEEPING
    return {name for name in names if getattr(first, name) != getattr(second, name)}


def solution_4(evaluations: list[tuple[int, float]], saved: set[int], greater_is_better: bool) -> int:
    """The last step that was the best so far and lies on the disk; 0: none."""
    best_value, checkpoint = None, 0
    for step, value in evaluations:
        is_best = best_value is None or (value > best_value if greater_is_better else value < best_value)
        if is_best:
            best_value = value  # a best value counts even when nothing was saved at that step
            if step in saved:
                checkpoint = step
    return checkpoint


solution_5 = GIVEN_SETTINGS | {
    "save_steps": 10,
    "save_only_model": False,
    "greater_is_better": False,
    "save_total_limit": 2,
    "train_sampling_strategy": "random",
}


def solution_6(model: Any, rows: Any, folder: str, **settings: Any) -> Trainer:
    """A Trainer whose loss is weighted, divided for the whole window, and logged as it is."""
    import torch
    from transformers import Trainer

    from course_utils.training.settings import quiet_trainer

    class Weighted(Trainer):
        loss_is_scaled_for_ga = True  # divided for the whole window: the Trainer must not divide again

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            weight = inputs.pop("weight")  # a KeyError if the column was dropped
            outputs = model(**inputs)
            losses = torch.nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")  # (B,)
            loss = (losses * weight).sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)
            return (loss, outputs) if return_outputs else loss

    settings |= {"remove_unused_columns": False, "logging_nan_inf_filter": False}
    return quiet_trainer(model, folder, rows, trainer_class=Weighted, **settings)
