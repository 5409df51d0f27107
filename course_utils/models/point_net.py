"""PointNet: a classifier of point clouds, whose result does not depend on the order of the points (lesson 07).

Source: Qi, Su, Mo & Guibas 2017, "PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation",
equation 1: f({x1, ..., xn}) = g(max over i of h(xi)). Without the paper's two alignment networks, and with LayerNorm in
place of BatchNorm, so that a cloud's result does not depend on its neighbours in the batch; one more stands behind the
maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput


@dataclass
class ClassifierOutput(ModelOutput):
    """What the Trainer reads: ``loss`` (scalar, None without labels), ``logits`` (B, classes)."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class PointNet(nn.Module):
    """The same small network for every point, the maximum over the points, a classifier.

    Args:
        widths: of the network h that sees one point; the last one is the width F of a cloud's feature.
        num_classes: number of labels, >= 2.
        coordinates: numbers per point.

    Raises:
        ValueError: ``widths`` is empty, or ``num_classes`` below 2.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128), num_classes: int = 10, coordinates: int = 3):
        super().__init__()
        if not widths:
            raise ValueError("widths=() is empty; allowed: at least one width, such as (32, 64, 128)")
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} is out of range; allowed: a whole number >= 2")
        layers: list[nn.Module] = []
        for inside, outside in zip([coordinates, *widths], widths, strict=False):
            layers += [nn.Linear(inside, outside), nn.LayerNorm(outside), nn.ReLU()]
        self.per_point = nn.Sequential(*layers[:-1])  # the maximum bends the last layer's output
        last = widths[-1]
        self.classifier = nn.Sequential(
            nn.LayerNorm(last), nn.Linear(last, last // 2), nn.ReLU(), nn.Linear(last // 2, num_classes)
        )

    def features(self, points: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The maximum over the points and which point gave it.

        Args:
            points: (B, N, coordinates).
            mask: (B, N) bool, False on padding; None: all points are real.

        Returns:
            ``(values (B, F), places (B, F) int64)``; the points named in ``places`` are the paper's critical points.

        Raises:
            ValueError: shapes that do not fit, or a cloud without a real point.
        """
        if points.ndim != 3:
            raise ValueError(f"points has shape {tuple(points.shape)}; allowed: (batch, points, coordinates)")
        hidden = self.per_point(points)
        if mask is not None:
            if mask.shape != points.shape[:2]:
                raise ValueError(f"mask has shape {tuple(mask.shape)}; allowed: {tuple(points.shape[:2])}")
            if not mask.any(dim=1).all():
                raise ValueError("mask leaves a cloud without points; allowed: at least one real point a cloud")
            hidden = hidden.masked_fill(~mask.bool().unsqueeze(-1), -torch.inf)
        values, places = hidden.max(dim=1)
        return values, places

    def forward(self, points: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> ClassifierOutput:
        """Classify clouds.

        Args:
            points, mask: as in ``features``.
            labels: (B,) int64; with them the output has a loss, the mean cross-entropy.
        """
        logits = self.classifier(self.features(points, mask)[0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ClassifierOutput(loss=loss, logits=logits)
