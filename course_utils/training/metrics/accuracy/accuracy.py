"""Accuracy: the share of rows whose class was predicted.

Value: scikit-learn's accuracy_score.
"""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score

from course_utils.training.metrics import checks


class Accuracy(checks.Checked, evaluate.Metric):
    """Accuracy: the share of rows whose class was predicted."""

    def __init__(self, *args: Any, num_labels: int | None = None, **options: Any):
        self.num_labels = num_labels  # before super().__init__, which calls _info
        super().__init__(*args, **options)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="class numbers, shape (N,) each", features=features
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, float]:
        predicted = checks.class_numbers("predictions", predictions, self.num_labels)
        labels = checks.class_numbers("references", references, self.num_labels)
        return {"accuracy": float(accuracy_score(labels, predicted))}
