"""Spearman correlation: Pearson correlation of the ranks; only the order counts.

Value: scipy's spearmanr. NaN where all predictions (or all references) are equal: a correlation is not defined there.
"""

from typing import Any

import datasets
import evaluate
from scipy.stats import spearmanr

from course_utils.training.metrics import checks


class Spearman(checks.Checked, evaluate.Metric):
    """Spearman correlation: Pearson correlation of the ranks; only the order counts."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="numbers, shape (N,) each", features=features
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, float]:
        predicted, wanted = checks.numbers("predictions", predictions), checks.numbers("references", references)
        checks.several("references", wanted)
        if checks.constant(predicted) or checks.constant(wanted):
            return {"spearmanr": float("nan")}
        return {"spearmanr": float(spearmanr(predicted, wanted).statistic)}
