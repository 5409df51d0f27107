"""Exact match: the share of predictions that equal their reference (or one of them), character by character.

Nothing is normalised: case, punctuation and spaces count.
"""

from typing import Any

import datasets
import evaluate

from course_utils.training.metrics import checks


class ExactMatch(checks.Checked, evaluate.Metric):
    """Exact match: the share of predictions that equal their reference (or one of them), character by character."""

    def _info(self) -> evaluate.MetricInfo:
        text, several = datasets.Value("string"), datasets.Sequence(datasets.Value("string"))
        features = [datasets.Features({"predictions": text, "references": one}) for one in (text, several)]
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: texts; references: a text each, or a list of texts",
            features=features,
        )

    def _compute(self, predictions: list, references: list, **_: Any) -> dict[str, float]:
        written, wanted = checks.texts("predictions", predictions), checks.texts("references", references)
        hits = [p in (r if isinstance(r, list) else [r]) for p, r in zip(written, wanted, strict=True)]
        return {"exact_match": sum(hits) / len(hits)}
