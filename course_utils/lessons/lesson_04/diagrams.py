"""Diagrams of lesson 04: what flows where in an evaluation, and which rank sees which rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _box(axis: Axes, x: float, text: str, color: str, width: float = 1.5) -> None:
    from matplotlib.patches import FancyBboxPatch

    axis.add_patch(
        FancyBboxPatch((x, 0.2), width, 0.9, boxstyle="round,pad=0.05", facecolor=color + "22", edgecolor=color, lw=1.6)
    )
    axis.text(x + width / 2, 0.65, text, ha="center", va="center", fontsize=10)


def flow() -> Figure:
    """What goes where in an evaluation, with shapes."""
    figure, axis = new_figure(
        height=1.9,
        alt="Flow of an evaluation: batches go through the model to logits of shape B by C; logits of all batches are "
        "collected to N by C; compute_metrics turns logits and N labels into a dictionary; it goes to the log and to "
        "the choice of the best checkpoint.",
    )
    steps = (
        ("batches\n(B, T)", "grey"),
        ("model\nlogits (B, C)", "blue"),
        ("collect all\n(N, C), (N,)", "sky"),
        ("compute_metrics\nonce, all rows", "green"),
        ("dict: log,\nbest checkpoint", "orange"),
    )
    for place, (text, color) in enumerate(steps):
        _box(axis, place * 2.0, text, COLORS[color])
        if place:
            arrow = {"arrowstyle": "->", "lw": 1.6, "color": COLORS["black"]}
            axis.annotate("", (place * 2.0 - 0.07, 0.65), (place * 2.0 - 0.42, 0.65), arrowprops=arrow)
    axis.text(3.0, -0.12, "preprocess_logits_for_metrics acts here", fontsize=9.5, ha="center", color=COLORS["red"])
    arrow = {"arrowstyle": "->", "lw": 1.2, "color": COLORS["red"]}
    axis.annotate("", (3.75, 0.5), (3.0, -0.02), arrowprops=arrow)
    axis.set(xlim=(-0.15, 9.75), ylim=(-0.3, 1.35))
    axis.set_axis_off()
    return figure


def padded_ranks(rows: int, batch: int, ranks: int = 2) -> Figure:
    """Which rank sees which rows; the last turn is filled up with rows from the start."""
    figure, axis = new_figure(
        height=2.6,
        alt="Rows of an evaluation set in batches that two ranks take in turn. The last turn is filled up with the "
        "first rows of the set, hatched, which are seen twice.",
    )
    total = -(-rows // (batch * ranks)) * batch * ranks
    for place in range(total):
        number, slot = divmod(place, batch)
        rank, turn = number % ranks, number // ranks
        again = place >= rows
        color = COLORS["red"] if again else COLORS["blue" if rank == 0 else "green"]
        x = turn * (batch + 0.7) + slot
        axis.add_patch(_square(x, ranks - 1 - rank, color, again))
        axis.text(x + 0.45, ranks - 1 - rank + 0.4, str(place % rows), ha="center", va="center", fontsize=11)
    turns = total // (batch * ranks)
    for turn in range(turns):
        axis.text(turn * (batch + 0.7) + batch / 2, ranks + 0.05, f"turn {turn + 1}", ha="center", fontsize=10)
    for rank in range(ranks):
        axis.text(-0.3, ranks - 1 - rank + 0.4, f"rank {rank}", ha="right", va="center", fontsize=11)
    note = f"hatched: seen a second time. {total} rows come back, {rows} exist."
    axis.text(-0.3, -0.45, note, fontsize=10, color=COLORS["red"])
    axis.set(xlim=(-1.9, turns * (batch + 0.7)), ylim=(-0.6, ranks + 0.4))
    axis.set_axis_off()
    return figure


def _square(x: float, y: float, color: str, again: bool):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 0.9, 0.8, facecolor=color + "33", edgecolor=color, hatch="//" if again else "", lw=1.4)
