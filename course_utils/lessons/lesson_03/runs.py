"""Parts of lesson 03's runs: the seed before the first step, which checkpoints are on disk, a run that was killed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, set_seed

if TYPE_CHECKING:
    from transformers import Trainer

LESSON_01 = {  # the settings of lesson 01's run, by the names that TrainingArguments gives them
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 32,
    "seed": 0,
    "logging_steps": 1,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
}

SENTENCES = {  # in no data set: written for the end of the lesson, each with the library it is about
    "Return the mean of the array along the given axis.": "numpy",
    "Fit the estimator and return the cross-validated scores.": "sklearn",
    "Draw a line plot on the axes with the given colour.": "matplotlib",
    "Join two data frames on their index columns.": "pandas",
    "Apply dropout to the output of a linear layer of the module.": "torch",
}


WEIGHTS, KEPT = "model.safetensors", "highest"


class SeedFirstStep(TrainerCallback):
    """Seed every generator right before the first forward pass."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            set_seed(args.seed)


class NoteCheckpoints(TrainerCallback):
    """After each save: the steps of the checkpoints on disk (``kept``), and of the best one so far (``best``)."""

    def __init__(self):
        self.kept: dict[int, list[int]] = {}
        self.best: dict[int, int | None] = {}

    def on_save(self, args, state, control, **kwargs):
        self.kept[state.global_step] = on_disk(args.output_dir)
        self.best[state.global_step] = state.best_global_step


class KeepHighest(TrainerCallback):
    """Copy a checkpoint's weights to ``output_dir/highest`` when its evaluation has the highest ``metric`` so far."""

    def __init__(self, metric: str):
        self.metric, self.highest = metric, float("-inf")

    def on_save(self, args, state, control, **kwargs):
        last = state.log_history[-1] if state.log_history else {}
        evaluated = last.get("step") == state.global_step and self.metric in last  # some saves have no evaluation
        if evaluated and last[self.metric] > self.highest:  # of equal ones the first stays, as in the Trainer
            self.highest = last[self.metric]
            kept = Path(args.output_dir) / KEPT
            kept.mkdir(exist_ok=True)
            shutil.copy(Path(args.output_dir) / f"checkpoint-{state.global_step}" / WEIGHTS, kept / WEIGHTS)


def on_disk(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, in order."""
    return sorted(int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*"))


def killed(trainer: Trainer, step: int, folder: str | Path) -> Path:
    """Make ``folder`` what the run would have left, had it been killed right after the save of ``step``.

    Returns:
        The checkpoint in it.
    """
    name = f"checkpoint-{step}"
    return Path(shutil.copytree(Path(trainer.args.output_dir) / name, Path(folder) / name))


def equal_weights(first: Trainer, second: Trainer) -> bool:
    """Whether the models of two Trainers have the same weights, bit for bit."""
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs)


def load_weights(trainer: Trainer, name: str) -> None:
    """Put the weights in the folder ``name`` of ``output_dir`` into the Trainer's model: "checkpoint-8", "highest"."""
    from safetensors.torch import load_model

    load_model(trainer.model, Path(trainer.args.output_dir) / name / WEIGHTS)


def scores_of(trainer: Trainer, name: str, rows: Any) -> dict[str, float]:
    """What ``trainer.evaluate(rows)`` says of the weights in the folder ``name``, which stay in the model."""
    load_weights(trainer, name)
    return trainer.evaluate(rows)
