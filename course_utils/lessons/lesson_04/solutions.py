"""Solutions of lesson 04's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from course_utils.training.evaluation import macro_f1
from course_utils.training.intervals import bootstrap

# 700 hits of 1,000 rows. F1 of the first class is 2 * 700 / (2 * 700 + 300); of the others 0; macro is a third of it.
# Micro: 700 hits, 300 false positives (of the first class), 300 false negatives (of the others): 1400 / 2000.
solution_1 = {"accuracy": 0.7, "macro_f1": 0.275, "micro_f1": 0.7}


def solution_2(matrix: np.ndarray) -> float:
    """F1 = 2 TP / (row sum + column sum): the row holds TP + FN, the column TP + FP."""
    hits, given_and_true = np.diag(matrix), matrix.sum(0) + matrix.sum(1)
    return float(np.mean(2 * hits / np.maximum(given_and_true, 1)))


class solution_3(evaluate.Metric):
    """The share of predictions at most ``tolerance`` away from their reference."""

    def __init__(self, *args: Any, tolerance: float = 1.0, **options: Any):
        self.tolerance = tolerance  # before super().__init__, which calls _info
        super().__init__(*args, **options)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list, tolerance: float | None = None, **_: Any) -> dict:
        tolerance = self.tolerance if tolerance is None else tolerance
        away = np.abs(np.asarray(predictions) - np.asarray(references))
        return {"within": float(np.mean(away <= tolerance))}


def solution_4(
    score: Callable, predicted: np.ndarray, labels: np.ndarray, rng: np.random.Generator, resamples: int = 500
) -> tuple[float, float]:
    """One set of row numbers for both arrays, with replacement, as many as there are rows."""
    draws = []
    for _ in range(resamples):
        rows = rng.integers(0, len(labels), len(labels))
        draws.append(score(predicted[rows], labels[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def solution_5(settings: dict[str, Any]) -> dict[str, Any]:
    """The direction from the metric, and the checkpoint of every evaluation saved and loaded."""
    smaller = {"loss", "mse", "mae", "perplexity"}
    name = settings["metric_for_best_model"].removeprefix("eval_")
    right = {"load_best_model_at_end": True, "greater_is_better": name not in smaller}
    # Saving and evaluating at the same steps: otherwise the best evaluation's weights are not on the disk.
    right |= {"save_strategy": settings["eval_strategy"]}
    if settings["eval_strategy"] == "steps":
        right |= {"save_steps": settings["eval_steps"]}
    return settings | right


def solution_6(prediction: Any) -> dict[str, float]:
    """Argmax over the classes, ignored rows dropped, one macro-F1 over all rows, its interval, the worst recall."""
    predicted, labels = torch.as_tensor(prediction.predictions).argmax(-1), torch.as_tensor(prediction.label_ids)
    num_labels = prediction.predictions.shape[-1]
    predicted, labels = predicted[labels != -100], labels[labels != -100]
    interval = bootstrap(lambda p, y: macro_f1(p, y, num_labels), predicted, labels)
    recalls = [(predicted[labels == c] == c).double().mean().item() for c in labels.unique()]
    ends = {"macro_f1_low": interval.low, "macro_f1_high": interval.high}
    return {"macro_f1": interval.value, **ends, "worst_recall": min(recalls)}
