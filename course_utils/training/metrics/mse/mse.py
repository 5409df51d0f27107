"""Mean squared error, in squared units of the target.

Value: scikit-learn's mean_squared_error.
"""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import mean_squared_error

from course_utils.training.metrics import checks


class MeanSquaredError(checks.Checked, evaluate.Metric):
    """Mean squared error, in squared units of the target."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="numbers, shape (N,) each", features=features
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, float]:
        predicted, wanted = checks.numbers("predictions", predictions), checks.numbers("references", references)
        return {"mse": float(mean_squared_error(wanted, predicted))}
