"""Which metric a callback watches, in which direction it is better, and when a value is a new best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments


def metric_name(args: TrainingArguments, metric: str | None) -> str:
    """The metric's key in an evaluation's result: ``"f1"`` is ``"eval_f1"``; None: ``args.metric_for_best_model``.

    Raises:
        ValueError: neither names a metric.
    """
    name = metric or args.metric_for_best_model
    if not name:
        raise ValueError("metric=None and metric_for_best_model=None; allowed: a metric's name in one of the two")
    return name if name.startswith("eval_") else f"eval_{name}"


def is_greater_better(args: TrainingArguments, metric: str | None, greater_is_better: bool | None) -> bool:
    """The direction: what was said, else ``args.greater_is_better`` if it is about this metric; a loss is minimised.

    Raises:
        ValueError: nobody said it. (TrainingArguments maximises every metric whose name does not end in "loss".)
    """
    if greater_is_better is not None:
        return greater_is_better
    name = metric_name(args, metric)
    same = args.metric_for_best_model and metric_name(args, None) == name
    if same and args.greater_is_better is not None:
        return args.greater_is_better
    if name.endswith("loss"):
        return False
    raise ValueError(f"greater_is_better=None for metric {name!r}; allowed: True or False")


def read_metric(metrics: Mapping[str, float], name: str) -> float:
    """``metrics[name]``.

    Raises:
        ValueError: it is not there; the sentence lists what is.
    """
    if name not in metrics:
        raise ValueError(f"metric {name!r} is not among the evaluation's; allowed: {', '.join(sorted(metrics))}")
    return metrics[name]


def is_better(value: float, best: float | None, greater: bool, min_delta: float = 0.0) -> bool:
    """Whether ``value`` beats ``best`` by more than ``min_delta``; the first number does, NaN never does."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value - best > min_delta if greater else best - value > min_delta
