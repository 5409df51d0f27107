"""Stopping rules compared on the checkpoints of full runs (lesson 05)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.training import paired

if TYPE_CHECKING:
    from transformers import Trainer


def stop_evaluation(values: Sequence[float], patience: int, greater_is_better: bool = True) -> int | None:
    """Number of the evaluation at which early stopping ends the run, 1 the first; None: it does not (section 4)."""
    best, waited = None, 0
    for number, value in enumerate(values, 1):
        better = best is None or (value > best if greater_is_better else value < best)
        best, waited = (value, 0) if better else (best, waited + 1)
        if waited == patience:
            return number
    return None


def under_rule(trainer: Trainer, test_rows: Any, key: str | None, greater: bool, patience: int = 3) -> dict[str, float]:
    """What a rule makes of a full run that kept the checkpoint of every evaluation.

    Args:
        key: the validation metric that stops the run and chooses the checkpoint; None: no stop, the last weights.
        greater: whether larger is better.

    Returns:
        ``steps`` made, and ``loss`` and ``macro_f1`` of the chosen checkpoint on ``test_rows``.
    """
    from safetensors.torch import load_model

    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    made, chosen = len(evaluations), evaluations[-1]
    if key:
        values = [entry[key] if greater else -entry[key] for entry in evaluations]
        made = stop_evaluation(values, patience) or made
        chosen = evaluations[values.index(max(values[:made]))]
    load_model(trainer.model, f"{trainer.args.output_dir}/checkpoint-{chosen['step']}/model.safetensors")
    found = trainer.evaluate(test_rows)
    return {"steps": evaluations[made - 1]["step"], "loss": found["eval_loss"], "macro_f1": found["eval_macro_f1"]}


def paired_interval(
    runs: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]], key: str
) -> tuple[float, float, float]:
    """Low, mean and high of the difference of ``key`` to ``base``, seed by seed (``training.paired``)."""
    found = paired.paired_interval([run[key] for run in runs], [run[key] for run in base])
    return found.low, found.value, found.high
