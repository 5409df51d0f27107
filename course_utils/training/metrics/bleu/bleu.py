"""BLEU: matching runs of 1 to 4 words, counted over the whole corpus, times a penalty for short predictions.

Value: sacrebleu's corpus_bleu (Post 2018, arXiv:1804.08771; tokenizer 13a, exponential smoothing), from 0 to 1. A mean
of sentences' BLEU is another number. Every row needs equally many references.
"""

from typing import Any

import datasets
import evaluate
from sacrebleu import corpus_bleu

from course_utils.training.metrics import checks


class Bleu(checks.Checked, evaluate.Metric):
    """BLEU: matching runs of 1 to 4 words, counted over the whole corpus, times a penalty for short predictions."""

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
        rows = [r if isinstance(r, list) else [r] for r in wanted]
        checks.equally_many("references", rows)
        # ``force`` only silences a warning about texts that look tokenized.
        score = corpus_bleu(written, [list(column) for column in zip(*rows, strict=True)], force=True)
        return {"bleu": score.score / 100, "brevity_penalty": score.bp}
