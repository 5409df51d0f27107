"""Checkers of exercises 06.1 and 06.2, who divides and a repair, and what all checkers of lesson 06 share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.lessons.lesson_06 import solutions
from course_utils.teach.exercise import Wrong, ask, exercise

Suspects = Sequence[tuple[Tensor, str]]


def as_tensor(got: Any, expected: Tensor, given: str, what: str) -> Tensor:
    """``got`` as a tensor of the shape of ``expected``, or ``Wrong``."""
    if not isinstance(got, Tensor):
        hint = f"Return {what}, a torch tensor that gradients can flow through."
        raise Wrong(given=given, expected=what, got=f"{type(got).__name__}: {str(got)[:60]}", hint=hint)
    if got.shape != expected.shape:
        wanted = f"shape {tuple(expected.shape)}"
        hint = f"Return {what}: the shape should be {tuple(expected.shape)}, not {tuple(got.shape)}."
        raise Wrong(given=given, expected=wanted, got=f"shape {tuple(got.shape)}", hint=hint)
    return got.detach().double()


def compare(got: Any, expected: Tensor, given: str, what: str, suspects: Suspects, hint: str) -> None:
    value = as_tensor(got, expected, given, what)
    if not torch.allclose(value, expected.double(), rtol=1e-4, atol=1e-6):
        near = (why for wrong, why in suspects if torch.allclose(value, wrong.double(), rtol=1e-4, atol=1e-6))
        raise Wrong(given=given, expected=_text(expected), got=_text(value), hint=next(near, hint))


def _text(value: Tensor) -> str:
    return ", ".join(f"{x:.4g}" for x in value.flatten()[:5].tolist()) + (" ..." if value.numel() > 5 else "")


_QUESTIONS = {
    "a": "override returns sum / num_items with loss_is_scaled_for_ga = False, k=8 micro-batches, 1 process",
    "b": "override returns sum / num_items, k=2, 4 processes",
    "c": "override returns mean x num_processes with loss_is_scaled_for_ga = False, k=8, 4 processes",
    "d": "compute_loss_func returns a mean, k=2, 4 processes, average_tokens_across_devices=False",
}
_WHY = {
    "a": "The sum / num_items is right already, and the flag False makes the Trainer divide by k on top of it.",
    "b": "num_items counts all processes, and DistributedDataParallel averages over them once more. k plays no part.",
    "c": "The flag settles k. DistributedDataParallel averages means, and that is right: what does the factor do then?",
    "d": "The factor n comes from the Trainer, and only if average_tokens_across_devices is True. Who divides by k?",
}


@exercise(
    "06.1",
    "What becomes of the gradient",
    hints=(
        "k gradients are added. Ask for each case: who divides by k, who by the processes, who multiplies by them?",
        "Write the sum down: k micro-batches times a mean, divided by k as often as somebody does it; then the average "
        "over n processes, and the factor n where the Trainer or the override puts it.",
    ),
    kind="predict",
)
def check_factors(answer: Any) -> None:
    """``answer`` is a dictionary: case -> factor on the full batch's gradient."""
    if not isinstance(answer, dict) or not answer:
        hint = "Answer with a dictionary of four numbers, like {'a': 1, 'b': 1, 'c': 1, 'd': 1}."
        raise Wrong(given="your prediction", expected="a dict", got=str(answer)[:60], hint=hint)
    for case, expected in solutions.solution_1.items():
        got, given = answer.get(case), f"case {case}: {_QUESTIONS[case]}"
        if isinstance(got, bool) or not isinstance(got, int | float):
            hint = f"Case {case} has no number yet."
            raise Wrong(given=given, expected="a number", got=str(got)[:60], hint=hint)
        if abs(got - expected) > 1e-6:
            raise Wrong(given=given, expected="another factor", got=f"{got:g}", hint=_WHY[case])


class _Model(nn.Module):
    """Logits are a row of a table: small enough to see through."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(6, 3, generator=generator))

    def forward(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"logits": self.table[input_ids].mean(1)}


def _trainer(processes: int, accumulation: int) -> SimpleNamespace:
    return SimpleNamespace(
        class_weights=torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64),
        accelerator=SimpleNamespace(num_processes=processes),
        args=SimpleNamespace(gradient_accumulation_steps=accumulation, n_gpu=1),
    )


def _batches(accumulation: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(6, (8, 4), generator=generator)
    labels = torch.tensor([0, 2, 1, -100, 0, 0, 1, -100])
    return [
        {"input_ids": a, "labels": b} for a, b in zip(ids.chunk(accumulation), labels.chunk(accumulation), strict=True)
    ]


@exercise(
    "06.2",
    "Repair a weighted override",
    hints=(
        "Three things are wrong: the divisor depends on the micro-batch, somebody divides by k, and nobody thinks of "
        "the processes. The dtype of the weights is the fourth.",
        'Take reduction="none", multiply by the weight of each label (clamp -100 first), sum, divide by '
        "num_items_in_batch. Multiply by trainer.accelerator.num_processes.",
    ),
    kind="debug",
)
def check_override(answer: Callable) -> None:
    """``answer(trainer, model, inputs, return_outputs, num_items_in_batch)``, as the method would be called."""
    if not callable(answer):
        raise Wrong(given="your answer", expected="a function", got=type(answer).__name__, hint="Write a function.")
    for accumulation, processes, training in ((1, 1, True), (4, 1, True), (2, 2, True), (1, 2, False)):
        model = _Model().train(training)
        trainer = _trainer(processes, accumulation)
        given = f"{accumulation} micro-batches, {processes} processes, {'training' if training else 'evaluation'}"
        items = torch.tensor(6.0)
        losses, expected, suspects = [], [], {}
        for batch in _batches(accumulation):
            kept = dict(batch)
            found = ask(answer, trainer, model, batch, given=given, expected="a loss", num_items_in_batch=items)
            losses.append(as_tensor(found, torch.tensor(0.0), given, "one number"))
            right = solutions.solution_2(trainer, model, kept, num_items_in_batch=items).detach()
            expected.append(right.double())
            for name, value in _suspected(trainer, model, kept, right, accumulation, processes).items():
                suspects.setdefault(name, []).append(value.double())
        # Micro-batch by micro-batch: nan where a batch has no targets would hide in a sum's comparison.
        named = [(torch.stack(values), _OVERRIDE_HINTS[name]) for name, values in suspects.items()]
        compare(torch.stack(losses), torch.stack(expected), given, "a loss of each", named, _OVERRIDE_HINTS["other"])
    pair = ask(answer, _trainer(1, 1), _Model(), _batches(1)[0], True, torch.tensor(6.0), given="return_outputs=True")
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], dict)):
        hint = "With return_outputs=True the Trainer's evaluation wants a pair: (loss, outputs)."
        raise Wrong(given="return_outputs=True", expected="(loss, outputs)", got=type(pair).__name__, hint=hint)


_OVERRIDE_HINTS = {
    "unweighted": "The class weights are gone: multiply each row's loss by the weight of its label.",
    "weighted mean": "That still divides by the micro-batch's own weights: take reduction='none' and num_items.",
    "own count": "That divides by the micro-batch's own labels: its parts do not add up to the full batch's mean.",
    "over k": "Divided by the accumulation steps as well: num_items_in_batch already counts the whole window.",
    "no processes": "Right on one process. With more, DistributedDataParallel averages what you have already divided.",
    "training only": "In evaluation num_items counts all processes too, and losses are averaged: keep the factor.",
    "other": "Compare with the closed form: sum of weight x loss over rows with a label / num_items_in_batch.",
}


def _suspected(trainer: Any, model: nn.Module, batch: dict, right: Tensor, k: int, n: int) -> dict[str, Tensor]:
    logits, labels = model(batch["input_ids"])["logits"].detach(), batch["labels"]
    count = labels.ne(-100).sum()
    weights = trainer.class_weights.float()
    return {
        "no processes" if model.training else "training only": right / n,
        "over k": right / k,
        "own count": right * 6 / count.clamp(min=1),
        "unweighted": F.cross_entropy(logits, labels, reduction="sum") / 6 * n,
        "weighted mean": F.cross_entropy(logits, labels, weight=weights),
    }
