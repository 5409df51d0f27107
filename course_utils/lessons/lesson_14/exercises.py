"""Checkers of lesson 14: a collator to repair, a metric, counting by part, renormalising, a whole step's loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.lessons.lesson_14 import exercises_step, solutions  # noqa: F401  (14.5 registers itself)
from course_utils.teach.exercise import Wrong, ask, exercise


@exercise(
    "14.1",
    "Repair a row",
    hints=(
        "There are three faults. Compare each label with the token at the same place: who shifts, and what is a label?",
        "Labels are as long as input_ids and stand at the same places; -100 for all that is given: image and question. "
        "What tells the model to stop talking?",
    ),
    kind="debug",
)
def check_row(answer: Callable) -> None:
    """``answer(image_id, k, question, answer, end_id)`` returns ``{"input_ids": ..., "labels": ...}``."""
    for image_id, k, question, words, end in (
        (2, 4, [5, 6, 7], [20], 3),
        (9, 1, [4], [11, 12, 13], 8),
        (0, 3, [], [7], 1),
    ):
        given = f"image_id={image_id}, k={k}, question={question}, answer={words}, end_id={end}"
        got = ask(answer, image_id, k, list(question), list(words), end, given=given, expected="a dictionary")
        right = solutions.solution_1(image_id, k, question, words, end)
        if not isinstance(got, Mapping) or not {"input_ids", "labels"} <= set(got):
            hint = 'Return {"input_ids": ..., "labels": ...}.'
            raise Wrong(given=given, expected="a dictionary of two lists", got=str(got)[:60], hint=hint)
        ids, labels = ([int(number) for number in got[name]] for name in ("input_ids", "labels"))
        if ids != right["input_ids"]:
            hint = "input_ids are: k image tokens, the question, the answer, the end."
            if ids == right["input_ids"][:-1]:
                hint = "The end is missing: a model that never saw it never stops."
            raise Wrong(given=given, expected=str(right["input_ids"]), got=str(ids), hint=hint)
        if labels != right["labels"]:
            raise Wrong(given=given, expected=str(right["labels"]), got=str(labels), hint=_why(labels, right, k))


def _why(labels: list[int], right: dict[str, list[int]], k: int) -> str:
    ids, wanted = right["input_ids"], right["labels"]
    if len(labels) != len(ids):
        return "Labels need the length of input_ids: one label, or -100, for each token."
    if labels[:k] == ids[:k]:
        return "Image tokens are labels: the model is paid for predicting that an image token follows an image token."
    if labels == [*wanted[1:], -100]:
        return "Shifted by hand: the loss shifts once more, and the model learns to skip a token."
    if labels[-1] == -100:
        return "The end is no label: a model that is not taught to stop never stops."
    if any(label == token != -100 for label, token, want in zip(labels, ids, wanted, strict=True) if want == -100):
        return "The question is a label: it is given, and nobody wants it predicted."
    return "-100 for image and question; the answer and the end as they stand in input_ids."


@exercise(
    "14.2",
    "A metric by kind",
    hints=(
        "Find the answer word first: the last label that is not -100 is the end, the word stands before it.",
        "The logits at position t speak about token t + 1. Collect right or wrong for each row, then average: over all "
        "rows, and over the rows of each kind.",
    ),
)
def check_metric(answer: Callable) -> None:
    """``answer(logits (B, T, C), labels (B, T), kinds)`` returns ``{"all": ..., kind: ...}``."""
    for seed, kinds in ((0, ["at", "count", "at", "count"]), (1, ["at", "at", "at", "largest"]), (2, ["count"] * 4)):
        batch = solutions.example_batch(seed)
        logits, labels = batch["logits"], batch["labels"]
        given = f"four rows, kinds={kinds}"
        got = ask(answer, logits.clone(), labels.clone(), list(kinds), given=given, expected="a dictionary")
        right = solutions.solution_2(logits, labels, kinds)
        if not isinstance(got, Mapping) or set(got) != set(right):
            wanted = ", ".join(sorted(right))
            hint = 'A dictionary with "all" and each kind that occurs, no other.'
            raise Wrong(given=given, expected=wanted, got=str(got)[:70], hint=hint)
        values = {name: float(value) for name, value in got.items()}
        if any(abs(values[name] - right[name]) > 1e-6 for name in right):
            raise Wrong(
                given=given, expected=str(right), got=str(values), hint=_why_metric(logits, labels, kinds, values)
            )


def _why_metric(logits: Tensor, labels: Tensor, kinds: list[str], got: dict[str, float]) -> str:
    predicted = logits.argmax(-1)
    targets = labels != -100
    last = [int(row.nonzero()[-1]) for row in targets]
    rows = range(len(labels))
    suspects = {
        "That judges the end, not the word before it.": [predicted[r, last[r] - 1] == labels[r, last[r]] for r in rows],
        "Not shifted: the logits at position t are about token t + 1.": [
            predicted[r, last[r] - 1] == labels[r, last[r] - 1] for r in rows
        ],
        "Every target was counted, the end too: one judgement a row.": [
            (predicted[r, :-1] == labels[r, 1:])[targets[r, 1:]].float().mean() for r in rows
        ],
        "All targets of a row had to be right: only the answer word is judged.": [
            (predicted[r, :-1] == labels[r, 1:])[targets[r, 1:]].all() for r in rows
        ],
    }
    for hint, judged in suspects.items():
        if abs(sum(map(float, judged)) / len(rows) - got["all"]) < 1e-6:
            return hint
    kind_mean = sum(value for name, value in got.items() if name != "all") / max(1, len(got) - 1)
    if len(set(kinds)) > 1 and abs(kind_mean - got["all"]) < 1e-6:
        return '"all" is the mean over rows, not over kinds: kinds have different numbers of rows.'
    return "Check one row by hand: which position speaks about its answer word?"


class _Model(nn.Module):
    """Parts whose names begin alike, a tied tensor, a frozen part."""

    def __init__(self, width: int):
        super().__init__()
        self.tower = nn.Linear(width, width).requires_grad_(False)
        self.tower_head = nn.Linear(width, 3)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.words = nn.Embedding(7, width)
        self.words_out = nn.Linear(width, 7, bias=False)
        self.words_out.weight = self.words.weight
        self.direction = nn.Parameter(torch.zeros(width))


@exercise(
    "14.3",
    "Trainable parameters by part",
    hints=(
        "model.named_parameters() gives names such as projector.0.weight, a tied tensor once, and requires_grad says "
        "what is frozen.",
        "A part's names are the part itself, or begin with the part and a dot. Count numbers, not tensors.",
    ),
)
def check_count(answer: Callable) -> None:
    """``answer(model, parts)`` returns ``{part: trainable numbers}``."""
    tries = (
        (4, ["tower", "tower_head", "projector"]),
        (5, ["projector", "direction", "words"]),
        (2, ["tower", "words", "words_out"]),
    )
    for width, parts in tries:
        model = _Model(width)
        given = f"parts={parts} of a model of width {width} (tower frozen; words and words_out share a tensor)"
        got = ask(answer, model, list(parts), given=given, expected="a dictionary")
        right = solutions.solution_3(model, parts)
        if not isinstance(got, Mapping) or set(got) != set(parts):
            hint = "A dictionary with one number for each part."
            raise Wrong(given=given, expected=f"keys {parts}", got=str(got)[:60], hint=hint)
        if {name: int(got[name]) for name in parts} != right:
            raise Wrong(given=given, expected=str(right), got=str(dict(got)), hint=_why_count(model, got, parts))


def _why_count(model: nn.Module, got: Mapping[str, Any], parts: list[str]) -> str:
    named = list(model.named_parameters())
    tensors = {p: sum(n == p or n.startswith(f"{p}.") for n, q in named if q.requires_grad) for p in parts}
    loose = {p: sum(q.numel() for n, q in named if q.requires_grad and n.startswith(p)) for p in parts}
    frozen = {p: sum(q.numel() for n, q in named if n == p or n.startswith(f"{p}.")) for p in parts}
    if dict(got) == tensors:
        return "Tensors were counted: numel() says how many numbers each holds."
    if dict(got) == frozen:
        return "The frozen part was counted: look at requires_grad."
    if dict(got) == loose:
        return "tower_head begins with tower but is another part: compare with the dot behind it."
    if got.get("words_out"):
        return "A tied tensor was counted twice: named_parameters gives it once, for its first name."
    return "Print the names and sizes of named_parameters and add them up by hand."


_WHY = {
    "gradient": "The divisor is the number of targets instead of the sum of their weights: compare the two numbers.",
    "sgd step": "SGD's step is the learning rate times the gradient.",
    "adamw step": "AdamW divides the gradient by its own size: what is left of a constant factor?",
    "clipped gradient": "Clipping scales a norm above the limit to the limit. Are both norms above it?",
}


@exercise(
    "14.4",
    "What a missing division does",
    hints=(
        "How large is the sum of the weights, how large the number of targets?",
        "Compute the factor on the gradient first. Then ask of each: does it follow the gradient's size, or cancel it?",
    ),
    kind="predict",
)
def check_factors(answer: Any) -> None:
    """A dictionary of four factors."""
    given = "4 filler words of weight 0.25, answer and end of weight 1, norm 3 if renormalised, max_grad_norm=1"
    names = list(solutions.solution_4)
    if not isinstance(answer, Mapping):
        hint = f"Fill in a dictionary of four numbers: {', '.join(names)}."
        raise Wrong(given=given, expected="a dictionary", got=str(answer)[:60], hint=hint)
    for name in names:
        value = answer.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(given=given, expected="a number", got=str(value)[:40], hint=f"{name!r} has no number yet.")
        if abs(value - solutions.solution_4[name]) > 0.01:
            raise Wrong(given=given, expected=f"another factor for {name!r}", got=f"{value:g}", hint=_WHY[name])
