"""Precision: of the rows given a class, the share that belongs to it.

Value: scikit-learn's precision_score with zero_division=0. ``average`` is "binary" (class 1), "micro", "macro",
"weighted" or None (a list, one value a class); with ``num_labels`` a class that does not occur counts as 0.
"""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import precision_score

from course_utils.training.metrics import checks


class Precision(checks.Checked, evaluate.Metric):
    """Precision: of the rows given a class, the share that belongs to it."""

    def __init__(self, *args: Any, average: str | None = "binary", num_labels: int | None = None, **options: Any):
        checks.averaging(average)
        self.average, self.num_labels = average, num_labels  # before super().__init__, which calls _info
        super().__init__(*args, **options)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="class numbers, shape (N,) each", features=features
        )

    def _compute(
        self, predictions: list, references: list, average: str | None = "as loaded", **_: Any
    ) -> dict[str, Any]:
        average = self.average if average == "as loaded" else average
        checks.averaging(average)
        predicted = checks.class_numbers("predictions", predictions, self.num_labels)
        labels = checks.class_numbers("references", references, self.num_labels)
        classes = None if self.num_labels is None or average == "binary" else range(self.num_labels)
        if average == "binary":
            checks.class_numbers("predictions", predictions, 2)
            checks.class_numbers("references", references, 2)
        value = precision_score(labels, predicted, average=average, labels=classes, zero_division=0)
        return {"precision": value.tolist() if average is None else float(value)}
