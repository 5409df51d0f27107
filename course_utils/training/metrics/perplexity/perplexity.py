"""Perplexity: exp of the mean negative log likelihood per token; the number of tokens a model hesitates between.

Unlike the public module of this name it runs no model: ``predictions`` are summed losses in nats, one a row or a batch,
``references`` the numbers of tokens in them. So batches of different sizes count by their tokens.
"""

import math
from typing import Any

import datasets
import evaluate

from course_utils.training.metrics import checks


class Perplexity(checks.Checked, evaluate.Metric):
    """Perplexity: exp of the mean negative log likelihood per token; the number of tokens a model hesitates between."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: summed losses in nats; references: numbers of tokens",
            features=features,
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, float]:
        losses, counts = checks.numbers("predictions", predictions), checks.class_numbers("references", references)
        checks.at_least("predictions", losses, 0)
        checks.at_least("references", counts, 1)
        mean = float(losses.sum() / counts.sum())
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "mean_loss": mean}
