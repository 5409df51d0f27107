"""ROUGE: how many words, word pairs (2) or words in order (L) a prediction shares with its reference, as F1.

Value: rouge_score (Google's reimplementation of Lin 2004, aclanthology.org/W04-1013), mean over the rows; of several
references the best one counts. Its tokenizer keeps letters a-z and digits, in lower case: other scripts score 0.
"""

from typing import Any

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

from course_utils.training.metrics import checks


class Rouge(checks.Checked, evaluate.Metric):
    """ROUGE: how many words, word pairs (2) or words in order (L) a prediction shares with its reference, as F1."""

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
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
        rows = [scorer.score_multi(r if isinstance(r, list) else [r], p) for p, r in zip(written, wanted, strict=True)]
        return {name: sum(row[name].fmeasure for row in rows) / len(rows) for name in ("rouge1", "rouge2", "rougeL")}
