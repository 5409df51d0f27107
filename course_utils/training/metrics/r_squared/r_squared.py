"""R2: the share of the target's variance that the predictions explain.

Value: scikit-learn's r2_score. 1 is perfect, 0 is what the references' own mean reaches, below 0 is worse than that.
"""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import r2_score

from course_utils.training.metrics import checks


class RSquared(checks.Checked, evaluate.Metric):
    """R2: the share of the target's variance that the predictions explain."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="numbers, shape (N,) each", features=features
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, float]:
        predicted, wanted = checks.numbers("predictions", predictions), checks.numbers("references", references)
        checks.several("references", wanted)
        return {"r_squared": float(r2_score(wanted, predicted))}
