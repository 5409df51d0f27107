"""Checkers of lesson 06: focal loss, a shift after training, relevance, a loss that adds up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.lessons.lesson_06 import solutions
from course_utils.lessons.lesson_06.exercises_dividing import as_tensor, compare
from course_utils.lessons.lesson_06.solutions import example_rows
from course_utils.teach.exercise import Wrong, ask, exercise
from course_utils.training.class_weights import log_prior
from course_utils.training.evaluation import macro_f1


@exercise(
    "06.3",
    "Focal loss",
    hints=(
        "Start from log_softmax and pick the label's entry; everything else is made from that one number.",
        "log_p has shape (B,). p is its exponential. The factor is (1 - p) to the power gamma; mind the sign. Clamp a "
        "label of -100 before picking, and mask its loss afterwards.",
    ),
)
def check_focal(answer: Callable) -> None:
    """``answer(logits, labels, gamma)`` returns the loss of each row, (B,)."""
    for count, classes, gamma, seed in ((4, 3, 2.0, 0), (5, 2, 0.0, 1), (6, 7, 0.5, 2), (3, 4, 5.0, 3)):
        logits, labels = example_rows(count, classes, seed)
        given = f"logits ({count}, {classes}), labels={labels.tolist()}, gamma={gamma:g}"
        got = ask(answer, logits.clone(), labels.clone(), gamma, given=given, expected=f"({count},) losses")
        expected = solutions.solution_3(logits, labels, gamma)
        log_p = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        top = logits.softmax(-1).max(-1).values
        suspects = [
            (-expected, "The sign: log p is negative, a loss is positive."),
            (-log_p, "That is cross-entropy: the factor (1 - p)^gamma is missing."),
            (-(log_p.exp() ** gamma) * log_p, "p^gamma favours the rows that are right already: it is 1 - p."),
            (-((1 - top) ** gamma) * log_p, "p is the probability of the right class, not of the largest one."),
            (-gamma * (1 - log_p.exp()) * log_p, "gamma is an exponent, not a factor."),
        ]
        if isinstance(got, Tensor) and got.ndim == 0:
            hint = "Return a loss for each row: who divides is decided later, by num_items_in_batch."
            raise Wrong(given=given, expected=f"shape ({count},)", got="one number", hint=hint)
        hint = "Compare with -(1 - p)^gamma log p, by hand, for the first row."
        compare(got, expected, given, "a loss for each row", suspects, hint)
    logits, labels = example_rows(4, 3, 4)
    picked = solutions.solution_3(logits, labels * torch.tensor([1, 0, 1, 0]), 2.0)
    labels[torch.tensor([1, 3])] = -100
    given = f"logits (4, 3), labels={labels.tolist()}, gamma=2"
    got = ask(answer, logits.clone(), labels.clone(), 2.0, given=given, expected="(4,) losses")
    hint = "A row labelled -100 is no target: its loss is 0. Pick with labels.clamp(min=0), then mask."
    compare(got, solutions.solution_3(logits, labels, 2.0), given, "a loss for each row", [(picked, hint)], hint)
    sure = torch.tensor([[90.0, 0.0]]), torch.tensor([0])
    got = ask(answer, *sure, 2.0, given="a row with p = 1", expected="0")
    compare(got, torch.zeros(1), "a row with p = 1", "a loss for each row", [], "log of a rounded softmax is not safe.")


def _validation(classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a model that has learnt the prior, labels, log prior."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([900, 60, 300, 30][:classes])
    labels = torch.cat([torch.full((int(n) // 3,), c) for c, n in enumerate(counts)])
    prior = log_prior(counts)
    signal = 1.6 * F.one_hot(labels, classes) + torch.randn(len(labels), classes, generator=generator)
    return signal + prior, labels, prior


@exercise(
    "06.4",
    "Move the boundary after training",
    hints=(
        "For each tau, shift the logits, take the argmax, compute macro-F1; return the tau, not the score.",
        "A model trained with cross-entropy has the prior inside its logits: take tau times log_prior away. "
        "macro_f1(predicted, labels, num_labels) is imported above.",
    ),
    kind="vary",
)
def check_best_tau(answer: Callable) -> None:
    """``answer(logits, labels, log_prior, taus)`` returns the tau with the best macro-F1."""
    taus = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    for classes, seed in ((3, 0), (4, 1), (2, 2)):
        logits, labels, prior = _validation(classes, seed)
        given = f"{len(labels)} rows of {classes} classes, shares {[round(x, 3) for x in prior.exp().tolist()]}"
        got = ask(answer, logits.clone(), labels, prior, list(taus), given=given, expected="one of taus")
        expected = solutions.solution_4(logits, labels, prior, taus)
        by_sum = max(taus, key=lambda t: macro_f1((logits + t * prior).argmax(-1), labels, classes))
        by_accuracy = max(taus, key=lambda t: ((logits - t * prior).argmax(-1) == labels).double().mean().item())
        if isinstance(got, bool) or not isinstance(got, int | float):
            raise Wrong(given=given, expected="a number", got=str(got)[:60], hint="Return one number out of taus.")
        if got != expected:
            hint = "Score every tau with macro_f1 of the shifted logits' argmax, and return the best tau."
            if got not in taus:
                hint = "That is none of taus: return the tau, not its score or its place."
            elif got == by_sum:
                hint = "The prior is in the logits already: subtract it. Adding makes frequent classes stronger."
            elif got == by_accuracy:
                hint = "That tau is the best for accuracy, which hardly notices rare classes: take macro-F1."
            raise Wrong(given=given, expected="the best tau", got=f"{got:g}", hint=hint)


@exercise(
    "06.5",
    "Relevance weighting",
    hints=(
        "Position t predicts token t + 1: logits lose their last position, labels and relevance their first.",
        'F.cross_entropy wants (B, C, T): transpose. With reduction="none" a label of -100 gives 0. Multiply by the '
        "relevance, sum, divide by total_relevance.",
    ),
)
def check_relevance(answer: Callable) -> None:
    """``answer(logits (B, T, C), labels (B, T), relevance (B, T), total_relevance)`` returns one number."""
    for rows, length, classes, seed in ((2, 4, 3, 0), (1, 6, 5, 1), (3, 5, 4, 2)):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(rows, length, classes, generator=generator)
        labels = torch.randint(classes, (rows, length), generator=generator)
        labels[0, :2] = -100
        labels[-1, -1] = -100
        relevance = torch.rand(rows, length, generator=generator)
        total = torch.tensor(7.5)
        given = f"B={rows}, T={length}, C={classes}, total_relevance=7.5"
        inputs = logits.clone(), labels.clone(), relevance.clone()
        got = ask(answer, *inputs, total, given=given, expected="one number")
        expected = solutions.solution_5(logits, labels, relevance, total)
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        straight = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        targets = labels[:, 1:] != -100
        suspects = [
            ((relevance * straight).sum() / total, "Not shifted: the logits of position t predict token t + 1."),
            ((relevance[:, :-1] * losses).sum() / total, "The relevance belongs to the predicted token: shift it too."),
            (expected * total / targets.sum(), "Divided by the number of targets instead of total_relevance."),
            (expected * total / (relevance[:, 1:] * targets).sum(), "Divided by this micro-batch's own relevance: its "
             "parts do not add up. total_relevance is the window's."),
            (losses.sum() / total, "The relevance is not in it: multiply each token's loss."),
            (expected * total, "Not divided yet."),
        ]  # fmt: skip
        hint = "Closed form: sum of relevance x loss over targets / total_relevance, -100 left out."
        compare(got, expected, given, "one number", suspects, hint)


@exercise(
    "06.6",
    "A loss that adds up",
    hints=(
        "Three parts you have: weights from counts, focal loss of each row, and sum / num_items_in_batch.",
        "Weights are counts.sum() / (C * counts). Leave rows with label -100 out before you index. Without "
        "num_items_in_batch divide by the rows that have a label.",
    ),
)
def check_loss_function(answer: Callable) -> None:
    """``answer(counts, gamma)`` returns ``loss_function(outputs, labels, num_items_in_batch=None)``."""
    for counts, gamma, pieces, seed in (([6, 2], 0.0, 1, 0), ([10, 1, 4], 2.0, 4, 1), ([3, 30, 7, 9], 1.0, 3, 2)):
        counts = torch.tensor(counts)
        given = f"counts={counts.tolist()}, gamma={gamma:g}, {pieces} micro-batches"
        made = ask(answer, counts.clone(), gamma, given=given, expected="a function")
        if not callable(made):
            hint = "Return the inner function itself, without calling it."
            raise Wrong(given=given, expected="a function", got=type(made).__name__, hint=hint)
        logits, labels = example_rows(12, len(counts), seed)
        labels[torch.tensor([1, 5, 6])] = -100
        right = solutions.solution_6(counts, gamma)
        _check_pieces(made, right, logits, labels, counts, gamma, pieces, given)
        got = ask(made, {"logits": logits}, labels, given=f"{given}, no num_items_in_batch")
        hint = "Without num_items_in_batch divide by the rows that have a label."
        compare(got, right({"logits": logits}, labels), f"{given}, no num_items_in_batch", "one number", [], hint)
        half = ask(made, {"logits": logits.bfloat16()}, labels, given=f"{given}, bfloat16 logits")
        if isinstance(half, Tensor) and half.dtype not in (torch.float32, torch.bfloat16):
            hint = "counts give float64 weights: bring them to the logits' type, or everything after is float64."
            raise Wrong(given=f"{given}, bfloat16 logits", expected="float32", got=str(half.dtype), hint=hint)


def _check_pieces(
    made: Callable,
    right: Callable,
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    gamma: float,
    pieces: int,
    given: str,
) -> None:
    items = labels.ne(-100).sum()
    parts = list(zip(logits.chunk(pieces), labels.chunk(pieces), strict=True))
    got = torch.stack([
        as_tensor(ask(made, {"logits": a}, b.clone(), num_items_in_batch=items, given=given), torch.tensor(0.0), given,
                "one number")
        for a, b in parts
    ])  # fmt: skip
    expected = torch.stack([right({"logits": a}, b, items) for a, b in parts])

    def each(weights: Tensor, power: float, own: bool = False) -> Tensor:
        found = []
        for a, b in parts:
            a, b = a[b != -100], b[b != -100]
            losses = weights[b] * solutions.solution_3(a, b, power)
            found.append(losses.sum() / (len(b) if own else items))
        return torch.stack(found)

    weights = counts.sum() / (len(counts) * counts)
    inverse = 1 / counts
    suspects = [
        (each(weights, gamma, own=True), "The mean of each micro-batch: divide by num_items_in_batch instead."),
        (each(torch.ones(len(counts)), gamma), "All classes weigh the same: weights come from counts."),
        (each(weights, 0.0), "That is weighted cross-entropy: the focal factor is missing."),
        (each(inverse, gamma), "Weights 1 / n make the loss tiny: scale them so that a training row's mean is 1."),
        (each(inverse / inverse.sum() * len(counts), gamma), "Scaled to a sum of C: scale so that the mean over "
         "training rows is 1, counts.sum() / (C * counts)."),
        (each(counts / counts.sum() * len(counts), gamma), "Upside down: rare classes should weigh more."),
        (expected * items / len(labels), "Rows with label -100 were counted."),
    ]  # fmt: skip
    hint = "Closed form: sum over rows with a label of w_y (1 - p)^gamma (-log p) / num_items_in_batch."
    compare(got, expected, given, "a loss of each micro-batch", suspects, hint)
