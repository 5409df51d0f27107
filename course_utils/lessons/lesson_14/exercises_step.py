"""Checker of exercise 14.5: the loss of a whole step, from patches to weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.lessons.lesson_14 import solutions
from course_utils.teach.exercise import Wrong, ask, exercise


def _case(rows: int, k: int, patches: int, seed: int) -> tuple[dict[str, Any], nn.Module]:
    generator = torch.Generator().manual_seed(seed)
    vocabulary, vision, width, length = 11, 4, 6, k + 6
    torch.manual_seed(seed)
    embed, projector, head = nn.Embedding(vocabulary, width), nn.Linear(vision, width), nn.Linear(width, vocabulary)
    places = torch.randn(length, width, generator=generator)

    def decoder(embeddings: Tensor) -> Tensor:
        return head(torch.tanh(embeddings * places).cumsum(1))  # causal, and the order counts

    input_ids = torch.randint(1, vocabulary, (rows, length), generator=generator)
    input_ids[:, :k] = 0
    labels = input_ids.clone()
    labels[:, : k + 2] = -100
    labels[0, -1] = -100
    given = {
        "features": torch.randn(rows, patches, vision, generator=generator),
        "scores": torch.rand(rows, patches, generator=generator),
        "projector": projector,
        "embed": embed,
        "decoder": decoder,
        "input_ids": input_ids,
        "labels": labels,
        "relevance": 0.1 + torch.rand(rows, length, generator=generator),
        "image_id": 0,
    }
    return given, decoder


@exercise(
    "14.5",
    "A step's loss, from patches to weights",
    hints=(
        "Four steps: choose patches, project and put them in place, run the decoder, weigh and divide. k is the number "
        "of image tokens in a row.",
        "topk, then sort the places; gather wants an index of the features' shape; masked_scatter puts vectors where a "
        "mask is true. Shift logits against labels and relevance; the divisor is the targets' sum of relevance.",
    ),
)
def check_step(answer: Callable) -> None:
    """``answer(features, scores, projector, embed, decoder, input_ids, labels, relevance, image_id)``: one number."""
    for rows, k, patches, seed in ((2, 2, 5, 0), (3, 3, 8, 1), (1, 4, 16, 2)):
        case, decoder = _case(rows, k, patches, seed)
        given = f"{rows} rows, {k} image tokens each, {patches} patches"
        inputs = {name: value.clone() if isinstance(value, Tensor) else value for name, value in case.items()}
        got = ask(answer, *inputs.values(), given=given, expected="one number")
        if not isinstance(got, Tensor) or got.ndim or not got.requires_grad:
            hint = "Return the loss as a tensor with one number, so that backward() can be called on it."
            raise Wrong(given=given, expected="a scalar tensor", got=str(got)[:60], hint=hint)
        right = solutions.solution_5(**case)
        if abs(got.item() - right.item()) > 1e-4 * max(1.0, abs(right.item())):
            hint = _why_step(case, decoder, got.item())
            raise Wrong(given=given, expected=f"{right.item():.4f}", got=f"{got.item():.4f}", hint=hint)


def _why_step(case: dict[str, Any], decoder: Callable, got: float) -> str:
    def loss(order: str = "grid", shift: int = 1, divisor: str = "weights", relevance: str = "targets") -> float:
        k = int((case["input_ids"][0] == case["image_id"]).sum())
        kept = case["scores"].topk(k, dim=-1).indices
        if order == "grid":
            kept = kept.sort(dim=-1).values
        elif order == "first":
            kept = torch.arange(k).expand_as(kept)
        elif order == "worst":
            kept = (-case["scores"]).topk(k, dim=-1).indices.sort(dim=-1).values
        chosen = case["features"].gather(1, kept[..., None].expand(-1, -1, case["features"].shape[-1]))
        is_image = (case["input_ids"] == case["image_id"])[..., None]
        logits = decoder(case["embed"](case["input_ids"]).masked_scatter(is_image, case["projector"](chosen)))
        labels, weights = case["labels"][:, shift:], case["relevance"][:, shift:]
        logits = logits[:, : labels.shape[1]]
        if relevance == "one early":
            weights = case["relevance"][:, : labels.shape[1]]
        is_target = labels != -100
        weights = torch.ones_like(weights) if relevance == "none" else weights
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        total = (weights * losses).sum()
        parts = {
            "weights": (weights * is_target).sum(),
            "count": is_target.sum(),
            "all weights": weights.sum(),
            "positions": torch.tensor(float(labels.numel())),
        }
        return (total / parts[divisor]).item()

    suspects = {
        "Divided by the number of targets: not renormalised.": {"divisor": "count"},
        "The relevance of image and question is in the divisor: only targets count.": {"divisor": "all weights"},
        "A plain mean over all positions: divide by the targets' sum of relevance.": {"divisor": "positions"},
        "The relevance is not in it.": {"relevance": "none"},
        "The relevance belongs to the predicted token: shift it with the labels.": {"relevance": "one early"},
        "Not shifted: the logits of position t predict token t + 1.": {"shift": 0},
        "In the order of the scores: sort the places, so that they stand as in the scene.": {"order": "score"},
        "The first k patches were taken, whatever their scores.": {"order": "first"},
        "The least relevant patches were kept.": {"order": "worst"},
    }
    fitting = (hint for hint, change in suspects.items() if abs(loss(**change) - got) < 1e-4 * max(1.0, abs(got)))
    return next(fitting, "Compare step by step with the model of section 2; then the closed form of section 6.")
