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

SENTENCES = (  # in no data set: written for the end of the lesson
    "Return the mean of the array along the given axis.",
    "Fit the estimator and return the cross-validated scores.",
    "Draw a line plot on the axes with the given colour.",
    "Join two data frames on their index columns.",
    "Apply dropout to the output of a linear layer of the module.",
)


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


def load_weights(trainer: Trainer, step: int) -> None:
    """Put the weights of the checkpoint of ``step`` into the Trainer's model."""
    from safetensors.torch import load_model

    load_model(trainer.model, Path(trainer.args.output_dir) / f"checkpoint-{step}" / "model.safetensors")


def scores_of(trainer: Trainer, step: int, rows: Any) -> dict[str, float]:
    """What ``trainer.evaluate(rows)`` says of the checkpoint of ``step``, whose weights stay in the model."""
    load_weights(trainer, step)
    return trainer.evaluate(rows)
