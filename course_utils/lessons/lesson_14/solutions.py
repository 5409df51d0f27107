"""Solutions of lesson 14's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def solution_1(image_id: int, k: int, question: list[int], answer: list[int], end_id: int) -> dict[str, list[int]]:
    """Only the answer and its end are labels; labels stand where the tokens stand: the model shifts."""
    prompt = [image_id] * k + question
    target = [*answer, end_id]
    return {"input_ids": prompt + target, "labels": [-100] * len(prompt) + target}


def solution_2(logits: Tensor, labels: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """Accuracy of the word in front of the end, which the position before it predicts."""
    right = []
    for row, target in zip(logits, labels, strict=True):
        word = int((target != -100).nonzero()[-1]) - 1  # the last target is the end
        right.append(bool(row[word - 1].argmax() == target[word]))
    found = {"all": sum(right) / len(right)}
    for kind in set(kinds):
        of_kind = [r for r, name in zip(right, kinds, strict=True) if name == kind]
        found[kind] = sum(of_kind) / len(of_kind)
    return found


def solution_3(model: nn.Module, parts: Sequence[str]) -> dict[str, int]:
    """``named_parameters`` gives a tied tensor once; the dot keeps `tower` and `tower_head` apart."""
    return {
        part: sum(
            p.numel()
            for name, p in model.named_parameters()
            if p.requires_grad and (name == part or name.startswith(f"{part}."))
        )
        for part in parts
    }


# Weights 0.25 x 4 + 1 x 2 = 3 over 6 targets: 0.5. AdamW divides by the gradient's size; clipping makes 3 and 1.5 a 1.
solution_4 = {"gradient": 0.5, "sgd step": 0.5, "adamw step": 1, "clipped gradient": 1}


def solution_5(
    features: Tensor,
    scores: Tensor,
    projector: Callable,
    embed: Callable,
    decoder: Callable,
    input_ids: Tensor,
    labels: Tensor,
    relevance: Tensor,
    image_id: int,
) -> Tensor:
    """The lesson in ten lines: choose patches, project them, put them in place, weigh the loss and renormalise."""
    k = int((input_ids[0] == image_id).sum())
    kept = scores.topk(k, dim=-1).indices.sort(dim=-1).values  # (B, k), in the order of the grid
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))  # (B, k, V)
    is_image = (input_ids == image_id)[..., None]
    embeddings = embed(input_ids).masked_scatter(is_image, projector(chosen))
    logits = decoder(embeddings)[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")  # 0 where the label is -100
    weights = relevance[:, 1:].masked_fill(labels[:, 1:] == -100, 0)
    return (weights * losses).sum() / weights.sum()


def example_batch(seed: int) -> dict[str, Tensor]:
    """Logits (4, 7, 9) and labels of four rows, half of the answers predicted, for the metric."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 7, 9, generator=generator)
    labels = torch.full((4, 7), -100)
    for row, (start, stop) in enumerate(((3, 5), (2, 6), (4, 7), (1, 4))):
        labels[row, start:stop] = torch.randint(9, (stop - start,), generator=generator)
        word = stop - 2
        if (row + seed) % 2:
            logits[row, word - 1, labels[row, word]] += 9
        if row % 2:
            logits[row, stop - 2, labels[row, stop - 1]] += 9  # the end
    return {"logits": logits, "labels": labels}
