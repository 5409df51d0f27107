"""Confusion matrix: row i, column j counts the rows of class i that were given class j.

Value: scikit-learn's confusion_matrix. With ``num_labels`` every class has a row and a column.
"""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import confusion_matrix

from course_utils.training.metrics import checks


class ConfusionMatrix(checks.Checked, evaluate.Metric):
    """Confusion matrix: row i, column j counts the rows of class i that were given class j."""

    def __init__(self, *args: Any, num_labels: int | None = None, **options: Any):
        self.num_labels = num_labels  # before super().__init__, which calls _info
        super().__init__(*args, **options)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="class numbers, shape (N,) each", features=features
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, Any]:
        predicted = checks.class_numbers("predictions", predictions, self.num_labels)
        labels = checks.class_numbers("references", references, self.num_labels)
        classes = None if self.num_labels is None else range(self.num_labels)
        return {"confusion_matrix": confusion_matrix(labels, predicted, labels=classes)}
