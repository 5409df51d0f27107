"""Diagrams of lesson 14, drawn without measuring: what flows where, what each stage trains, a row's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#D6E8F4", "orange": "#FBE9C6", "green": "#D3EFE5", "grey": "#EEEEEE"}


def _box(axis: Axes, x: float, y: float, text: str, color: str, width: float, height: float = 0.95) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner, edge = (x - width / 2, y - height / 2), COLORS[color]
    shape = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", fc=PALE[color], ec=edge, linewidth=1.6)
    axis.add_patch(shape)
    axis.text(x, y, text, ha="center", va="center", fontsize=10)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style)


def flow() -> Figure:
    """From a scene and a question to an answer, with shapes."""
    figure, axis = new_figure(
        height=3.5,
        alt="A scene of shape B by 1 by 32 by 32 goes through the vision tower, which gives a vector for each of 16 "
        "patches. A scorer compares question and patches and keeps the k best. A projector turns them into k image "
        "tokens of the language model's width, and the scores of the kept patches go into them. "
        "They stand in front of the question's tokens, and the language model "
        "predicts the answer.",
    )
    axis.set(xlim=(0, 12.4), ylim=(0, 4.6))
    axis.set_axis_off()
    _box(axis, 1.05, 3.6, "scene\n(B, 1, 32, 32)", "grey", 1.8)
    _box(axis, 3.5, 3.6, "vision tower\n(B, 16, V)", "green", 2.0)
    _box(axis, 6.1, 3.6, "keep k patches\n(B, k, V)", "orange", 2.2)
    _box(axis, 8.75, 3.6, "projector\n(B, k, D)", "blue", 1.9)
    _box(axis, 1.05, 0.9, "question\n(B, Q)", "grey", 1.8)
    _box(axis, 4.75, 2.1, "scorer: relevance (B, 16)", "orange", 3.5, 0.75)
    _box(axis, 6.1, 0.9, "word embeddings (B, Q, D)", "blue", 3.4, 0.8)
    _box(axis, 11.1, 2.2, "causal language\nmodel\n(B, k + Q, D)", "blue", 2.2, 1.5)
    for start, end in (
        ((1.97, 3.6), (2.47, 3.6)),
        ((4.52, 3.6), (4.97, 3.6)),
        ((7.22, 3.6), (7.77, 3.6)),
        ((9.72, 3.6), (10.5, 2.97)),
        ((3.5, 3.1), (3.9, 2.5)),
        ((5.4, 2.5), (5.9, 3.1)),
        ((6.52, 2.2), (8.3, 3.1)),
        ((1.6, 1.39), (3.2, 1.75)),
        ((1.97, 0.9), (4.37, 0.9)),
        ((7.82, 0.9), (10.0, 1.7)),
        ((11.1, 1.43), (11.1, 0.85)),
    ):
        _arrow(axis, start, end)
    axis.text(7.6, 2.25, "scores", ha="left", va="center", fontsize=10)
    axis.text(11.1, 0.5, '"seven <end>"', ha="center", va="center", fontsize=11, weight="bold")
    return figure


def stages() -> Figure:
    """Which part is trained on what in each stage."""
    figure, axis = new_figure(
        height=2.9,
        alt="A table of four stages against four parts. Stage one trains the tower with a label for each patch. Stage "
        "two trains the scorer from answers, the tower is frozen. Stage three trains projector and language model, "
        "tower and scorer are frozen. Stage four, shorter, also trains the tower, at a tenth of the rate.",
    )
    parts = ("tower", "scorer", "projector", "language model")
    rows = (
        ("1  a label for each patch", ("trained", "", "", "")),
        ("2  answers", ("frozen", "trained", "", "")),
        ("3  answers, as text", ("frozen", "frozen", "trained", "trained")),
        ("4  the same, shorter", ("rate / 10", "frozen", "trained", "trained")),
    )
    colors = {"trained": "#D6E8F4", "frozen": "#E4E4E4", "rate / 10": "#D3EFE5", "": "#FFFFFF"}
    for row, (_, cells) in enumerate(rows):
        for column, text in enumerate(cells):
            corners = ([column, column + 1, column + 1, column], [row, row, row + 1, row + 1])
            axis.fill(*corners, color=colors[text], ec="white", linewidth=2)
            axis.text(column + 0.5, row + 0.5, text or "not used", ha="center", va="center", fontsize=11)
    axis.set_xticks([number + 0.5 for number in range(4)], parts)
    axis.set_yticks([number + 0.5 for number in range(4)], [name for name, _ in rows])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.set(xlim=(0, 4), ylim=(4, 0))
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


def tokens(words: Sequence[str], is_target: Sequence[bool]) -> Figure:
    """A row's tokens, those that are labels in colour."""
    figure, axis = new_figure(
        height=1.25,
        alt="The tokens of a row from left to right: image tokens, the question's words, the answer, the end. Only the "
        "answer and the end are coloured: they are the labels.",
    )
    shown = ["image" if word == "<image>" else word.strip("<>") for word in words]
    widths = [0.5 + 0.19 * len(word) for word in shown]
    x = 0.0
    for word, target, width in zip(shown, is_target, widths, strict=True):
        color = COLORS["orange"] if target else "#E4E4E4"
        axis.fill([x, x + width, x + width, x], [0, 0, 1, 1], color=color)
        axis.text(x + width / 2, 0.5, word, ha="center", va="center", fontsize=9.5)
        x += width + 0.12
    axis.text(0, -0.45, "grey: -100, no label", fontsize=9.5, color="#555555")
    axis.text(x, -0.45, "orange: predicted", fontsize=9.5, color="#8A5F00", ha="right")
    axis.set(xlim=(-0.1, x), ylim=(-0.7, 1.15))
    axis.set_axis_off()
    return figure
