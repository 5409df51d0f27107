"""Scores of a classifier: exact in float64, and one sentence where there is nothing to score."""

import pytest
import torch

from course_utils.training.evaluation import evaluate, macro_f1
from tests.training import tiny_run


def test_scores_are_divided_in_float64():
    """3 of 7, 1 of 3: float32 would end after 7 digits, and a comparison with scikit-learn by == would fail."""
    from types import SimpleNamespace

    from sklearn.metrics import accuracy_score, f1_score

    generator = torch.Generator().manual_seed(0)
    predicted, labels = (torch.randint(0, 7, (997,), generator=generator) for _ in range(2))
    wanted = f1_score(labels, predicted, average="macro")
    assert macro_f1(predicted, labels, 7) == pytest.approx(wanted, rel=1e-14)

    class Fixed(torch.nn.Linear):
        def forward(self, x):
            return SimpleNamespace(logits=torch.nn.functional.one_hot(predicted, 7).double())

    found = evaluate(Fixed(1, 1), [{"x": labels, "labels": labels}])
    assert found["accuracy"] == accuracy_score(labels, predicted)
    assert found["macro_f1"] == pytest.approx(wanted, rel=1e-14)


def test_nothing_to_evaluate_is_one_sentence():
    with pytest.raises(ValueError, match="batches=list is empty; allowed: .*at least one"):
        evaluate(tiny_run.TinyClassifier(), [])
