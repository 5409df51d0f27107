"""Runs whose metric is known beforehand: the Trainer is real, only the metric follows a script (lesson 05)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from course_utils.lessons.lesson_05.drive import tiny_trainer

if TYPE_CHECKING:
    from transformers import Trainer


def scripted(
    values: Sequence[float],
    callbacks: Sequence = (),
    folder: str | Path | None = None,
    resume_at: int = 0,
    **settings: Any,
) -> Trainer:
    """Train a tiny model one step per evaluation; ``eval_score`` is ``values[0]``, ``values[1]`` ... in turn.

    Args:
        folder: where checkpoints go; None where none are made.
        resume_at: go on from the checkpoint of this step, whose evaluations have been; 0: from the start.
        **settings: more ``TrainingArguments``.
    """
    script = iter(values[resume_at:])
    options = {"max_steps": len(values), "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "score"}
    trainer = tiny_trainer(
        str(folder or gettempdir()),
        list(callbacks),
        compute_metrics=lambda prediction: {"score": next(script)},
        **(options | settings),
    )
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-{resume_at}" if resume_at else None)
    return trainer


def on_disk(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in ``folder``."""
    return sorted(int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*"))
