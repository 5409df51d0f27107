"""Pearson correlation: how close predictions and references are to a line, whichever line.

Value: scipy's pearsonr. NaN where all predictions (or all references) are equal: a correlation is not defined there.
"""

from typing import Any

import datasets
import evaluate
from scipy.stats import pearsonr

from course_utils.training.metrics import checks


class Pearson(checks.Checked, evaluate.Metric):
    """Pearson correlation: how close predictions and references are to a line, whichever line."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="numbers, shape (N,) each", features=features
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, float]:
        predicted, wanted = checks.numbers("predictions", predictions), checks.numbers("references", references)
        checks.several("references", wanted)
        if checks.constant(predicted) or checks.constant(wanted):
            return {"pearsonr": float("nan")}
        return {"pearsonr": float(pearsonr(predicted, wanted).statistic)}
