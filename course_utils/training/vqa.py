"""Accuracy of answers to visual questions, by type of question, and the baselines that see no image (lesson 14).

An answer is right if its last word is, the word in front of the end token: filler in front of it is not judged. Always
compare with what the question alone gives away: Goyal et al., "Making the V in VQA matter", arXiv:1612.00837.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_utils.data.batches import IGNORED


def answer_positions(labels: Tensor) -> Tensor:
    """Where the answer word stands in each row of labels (B, T): the last target but one, as the last is the end."""
    place = torch.arange(labels.shape[1], device=labels.device)
    return place.where(labels != IGNORED, -1).max(dim=1).values - 1


def is_right(predicted: Tensor, labels: Tensor) -> Tensor:
    """Whether the answer word is predicted, (B,) bool.

    Args:
        predicted: (B, T) token ids, position t for token t + 1: the argmax of a causal model's logits.
        labels: (B, T).
    """
    row, place = torch.arange(len(labels)), answer_positions(labels)
    return predicted[row, place - 1] == labels[row, place]


def by_kind(right: Tensor | Sequence[bool], kinds: Sequence[str]) -> dict[str, float]:
    """Accuracy of all rows and of each kind, ``{"all": ..., "at": ...}``, the kinds in alphabetical order.

    Raises:
        ValueError: not as many kinds as rows, or none.
    """
    right = np.asarray(right, dtype=float)
    if len(right) != len(kinds) or not len(right):
        raise ValueError(f"{len(right)} rows and {len(kinds)} kinds; allowed: one kind a row, at least one row")
    names = np.asarray(kinds)
    return {"all": float(right.mean())} | {str(kind): float(right[names == kind].mean()) for kind in np.unique(names)}


def best_word(logits: Tensor, labels: Tensor) -> Tensor:
    """For ``Trainer(preprocess_logits_for_metrics=)``: keep the argmax (B, T), not (B, T, vocabulary) numbers a row."""
    return logits.argmax(-1)


def metrics_of(kinds: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """``compute_metrics`` for an evaluation set whose rows, in order, have these kinds; needs ``best_word`` as well."""

    def compute(prediction: Any) -> dict[str, float]:
        right = is_right(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids))
        return {f"accuracy_{kind}": value for kind, value in by_kind(right, kinds).items()}

    return compute


@torch.no_grad()
def answers(model: nn.Module, rows: Any, collate: Callable, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """``(right (N,) bool, predicted answer word (N,))`` of all rows, the words before it being given."""
    was_training = model.training
    model.eval()
    right, words = [], []
    for start in range(0, len(rows), batch_size):
        batch = collate([rows[number] for number in range(start, min(len(rows), start + batch_size))])
        labels = batch.pop("labels")
        batch.pop("relevance", None)
        predicted = model(**batch).logits.argmax(-1)
        right.append(is_right(predicted, labels))
        words.append(predicted[torch.arange(len(labels)), answer_positions(labels) - 1])
    model.train(was_training)
    return torch.cat(right), torch.cat(words)


def without_image(train: Any, test: Any) -> dict[str, Tensor]:
    """Which rows of ``test`` two blind rules get right: the most frequent answer of all, and that of each question.

    Args:
        train, test: data sets with ``questions`` and ``answers`` (of which the last word counts).
    """
    last = [answer.split()[-1] for answer in train.answers]
    overall = Counter(last).most_common(1)[0][0]
    counts: dict[str, Counter] = {}
    for question, answer in zip(train.questions, last, strict=True):
        counts.setdefault(question, Counter())[answer] += 1
    told = [counts[question].most_common(1)[0][0] if question in counts else overall for question in test.questions]
    true = [answer.split()[-1] for answer in test.answers]
    return {
        "majority": torch.tensor([answer == overall for answer in true]),
        "question only": torch.tensor([answer == guess for answer, guess in zip(true, told, strict=True)]),
    }
