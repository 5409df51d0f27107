"""Drawings of lesson 01 that hold no measurement: shapes, a window of accumulation, the save of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#DCEBF5", "orange": "#FBEBC8", "green": "#D3EEE5", "grey": "#EFEFEF", "red": "#F9DFCD"}


def _canvas(width: float, height: float, inches: float, alt: str) -> tuple[Figure, Axes]:
    figure, axis = new_figure(height=inches, alt=alt)
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def _box(axis: Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 11) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.12"
    edge = COLORS[color]
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PALE[color], edgecolor=edge))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": COLORS[color], "linewidth": 1.4})


def shape_flow(batch: int, tokens: int, hidden: int, classes: int) -> Figure:
    """From token ids to logits, with the shape after each part of the model."""
    figure, axis = _canvas(
        10.4,
        3.6,
        2.9,
        "A row of boxes from left to right. Token ids of shape B, T go through the embedding and become B, T, H; the "
        "layers keep that shape; the mean over the tokens gives B, H; the head gives B, C: a score per class.",
    )
    parts = [
        ("token ids", "input_ids\n+ mask", "grey", "(B, T)", (batch, tokens)),
        ("embedding", "a vector\nper token", "blue", "(B, T, H)", (batch, tokens, hidden)),
        ("layers", "attention\n+ small network", "blue", "(B, T, H)", (batch, tokens, hidden)),
        ("mean", "over the\nreal tokens", "green", "(B, H)", (batch, hidden)),
        ("head", "a score\nper class", "orange", "(B, C)", (batch, classes)),
    ]
    for number, (name, what, color, shape, sizes) in enumerate(parts):
        x = 0.1 + 2.08 * number
        _box(axis, x, 1.35, 1.72, 1.25, what, color)
        axis.text(x + 0.86, 2.85, name, ha="center", fontsize=13, fontweight="bold")
        axis.text(x + 0.86, 0.85, shape, ha="center", fontsize=13, family="monospace")
        axis.text(x + 0.86, 0.35, " x ".join(map(str, sizes)), ha="center", fontsize=11, color=COLORS["grey"])
        if number:
            _arrow(axis, (x - 0.34, 1.97), (x - 0.02, 1.97))
    return figure


def accumulation_window(counts: Sequence[int]) -> Figure:
    """One optimizer step of several micro-batches: forward and backward each, gradients add up, one step.

    Args:
        counts: targets in each micro-batch.
    """
    figure, axis = _canvas(
        10.4,
        4.6,
        3.5,
        "A window of three micro-batches of different size. Each goes forward and backward and adds its share to the "
        "gradient; then clip, optimizer step, scheduler step and zero happen once.",
    )
    total, step = sum(counts), 2.3
    for number, count in enumerate(counts):
        x = 0.15 + step * number
        height = 0.5 + 0.9 * count / max(counts)
        axis.text(
            x + 0.95,
            3.55 + 0.5 * (height + 0.25) + 0.2,
            f"micro-batch {number + 1}",
            ha="center",
            fontsize=12,
            fontweight="bold",
        )
        _box(axis, x, 3.55 - 0.5 * (height - 0.25), 1.9, height, f"{count} rows", "grey", 12)
        _arrow(axis, (x + 0.95, 3.5 - 0.5 * (height - 0.25)), (x + 0.95, 2.35))
        _box(axis, x, 1.45, 1.9, 0.85, f"sum of losses / {total}\nbackward", "blue")
        _arrow(axis, (x + 0.95, 1.4), (x + 0.95, 0.95))
    width = step * len(counts) - 0.4
    _box(axis, 0.15, 0.3, width, 0.6, ".grad: the shares add up", "green", 12)
    x = 0.15 + width
    _arrow(axis, (x + 0.05, 0.6), (x + 0.42, 0.6))
    _box(
        axis,
        x + 0.5,
        0.2,
        2.7,
        2.1,
        "once per window:\n\nclip\noptimizer.step()\nscheduler.step()\nzero_grad()",
        "orange",
    )
    return figure


def save_timeline() -> Figure:
    """What lies in the run's folder while a checkpoint is written; at every moment a complete one is there."""
    figure, axis = _canvas(
        10.4,
        4.2,
        3.3,
        "A timeline of one save. The old checkpoint stays complete all the time. The new one grows under a hidden "
        "name, is flushed to the disk, and gets its final name in one instant, the rename. A kill before the rename "
        "leaves the old checkpoint as the newest, a kill after it the new one.",
    )
    axis.plot([0.2, 10.2], [0.9, 0.9], color=COLORS["black"], linewidth=1)
    _arrow(axis, (9.8, 0.9), (10.3, 0.9))
    axis.text(10.2, 0.55, "time", fontsize=11, ha="right")
    axis.text(0.2, 3.75, "in the folder", fontsize=12, fontweight="bold")
    _box(axis, 0.2, 2.85, 9.8, 0.62, "step-00000050   complete", "green", 12)
    _box(axis, 1.5, 1.7, 3.2, 0.85, ".step-00000100.tmp\nfiles are written", "grey")
    _box(axis, 4.7, 1.7, 1.9, 0.85, "flush:\nbytes on disk", "grey")
    _box(axis, 6.6, 1.7, 3.4, 0.85, "step-00000100   complete", "green", 12)
    axis.plot([6.6, 6.6], [0.75, 2.75], color=COLORS["red"], linewidth=2.4)
    axis.text(6.6, 0.4, "rename", fontsize=12, ha="center", color=COLORS["red"], fontweight="bold")
    axis.text(3.9, 1.18, "killed here: newest is step 50", fontsize=11, ha="center")
    axis.text(8.35, 1.18, "killed here: newest is step 100", fontsize=11, ha="center")
    return figure
