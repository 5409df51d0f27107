"""Accuracy of answers by kind, and the rules that see no image."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from course_utils.training.vqa import answer_positions, by_kind, is_right, metrics_of, without_image


def test_the_word_before_the_end_is_judged():
    labels = torch.tensor([[-100, -100, 7, 3, -100], [-100, 5, 6, 8, 3]])
    assert answer_positions(labels).tolist() == [2, 3]
    predicted = torch.tensor([[0, 7, 0, 0, 0], [0, 0, 9, 3, 0]])
    assert is_right(predicted, labels).tolist() == [True, False]
    made = metrics_of(["at", "count"])(SimpleNamespace(predictions=predicted.numpy(), label_ids=labels.numpy()))
    assert made == {"accuracy_all": 0.5, "accuracy_at": 1.0, "accuracy_count": 0.0}


def test_by_kind():
    assert by_kind([True, False, True], ["b", "a", "b"]) == {"all": pytest.approx(2 / 3), "a": 0.0, "b": 1.0}
    with pytest.raises(ValueError, match="one kind a row"):
        by_kind([True], ["a", "b"])


def test_rules_without_an_image():
    train = SimpleNamespace(questions=["x", "x", "x", "y"], answers=["one", "so one", "two", "two"])
    test = SimpleNamespace(questions=["x", "y", "z"], answers=["one", "two", "one"])
    found = {name: right.tolist() for name, right in without_image(train, test).items()}
    assert found == {"majority": [True, False, True], "question only": [True, True, True]}
