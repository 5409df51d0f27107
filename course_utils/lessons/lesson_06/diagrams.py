"""Diagrams of lesson 06, drawn without measuring: where the loss is made and divided, windows, boundaries, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#D6E8F4", "orange": "#FBE9C6", "green": "#D3EFE5", "red": "#F8DFCF", "grey": "#EEEEEE"}


def _box(axis: Axes, x: float, y: float, text: str, color: str, width: float = 1.9, height: float = 1.0) -> None:
    """A box with its centre at (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    edge = COLORS.get(color, COLORS["grey"])
    axis.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", fc=PALE[color], ec=edge, linewidth=1.6)
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=10.5)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    style = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style)
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        axis.text(middle[0], middle[1] + 0.18, text, ha="center", fontsize=9.5, color="#444444")


def _canvas(width: float, height: float, alt: str, inches: float) -> tuple[Figure, Axes]:
    figure, axis = new_figure(height=inches, alt=alt)
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def flow() -> Figure:
    """From a batch to a gradient: three places where a loss can come from, and everything that divides it."""
    alt = (
        "A batch goes into the model, which gives logits of shape B by C. The loss is made in one of three places: in "
        "the model, in a compute loss function, or in an overridden compute_loss, which calls the model itself. Then "
        "the loss may be multiplied by the number of processes n and divided by the number of micro-batches k, "
        "backward runs, and with several processes the gradients are averaged."
    )
    figure, axis = _canvas(12, 5.2, alt, 3.8)
    _box(axis, 1.1, 3.6, "batch\nids (B, T)\nlabels (B,)", "grey", 1.7, 1.7)
    _box(axis, 4.0, 4.1, "model\nlogits (B, C)", "grey", 1.9, 1.1)
    _arrow(axis, (1.97, 4.1), (3.02, 4.1))
    _arrow(axis, (1.97, 3.1), (2.92, 2.5))
    for x, y, text, color, width in (
        (7.6, 4.6, "1  the model's own loss", "orange", 3.2),
        (7.6, 3.6, "2  compute_loss_func", "blue", 3.2),
        (6.1, 2.5, "3  override compute_loss: it calls the model itself", "green", 6.2),
    ):
        _box(axis, x, y, text, color, width, 0.75)
        _arrow(axis, (9.22, y), (10.15, 3.6))
    for y in (4.6, 3.6):
        _arrow(axis, (4.97, 4.1), (5.97, y))
    _box(axis, 11.0, 3.6, "loss\nscalar", "grey", 1.6, 1.5)
    note = "each is given num_items_in_batch: the labels of the whole window"
    axis.text(6.1, 1.72, note, ha="center", fontsize=10, color="#444444")
    _arrow(axis, (11.0, 2.83), (11.0, 1.42))
    row = (
        (10.55, "times n or not\n(the Trainer, or you)", "red"),
        (7.5, "divide by k\nor not (the Trainer)", "red"),
        (4.5, "backward: gradients\nadd up over k", "grey"),
        (1.45, "average over n\nprocesses (DDP)", "red"),
    )
    for x, text, color in row:
        _box(axis, x, 0.9, text, color, 2.6, 0.95)
    for start, end in zip(row, row[1:], strict=False):
        _arrow(axis, (start[0] - 1.33, 0.9), (end[0] + 1.35, 0.9))
    return figure


def window(counts: Sequence[int] = (4, 1, 2)) -> Figure:
    """A window of micro-batches with different numbers of targets, and the weight of a target in two means.

    Args:
        counts: targets of each micro-batch.
    """
    figure, axes = new_figure(
        1,
        2,
        height=3.1,
        alt="Left: with sum divided by num_items every target of three micro-batches has the same weight. Right: with "
        "the mean of the micro-batches' means a target in a small micro-batch weighs several times as much.",
        sharey=True,
    )
    total, colors = sum(counts), [COLORS["blue"], COLORS["orange"], COLORS["green"]]
    for axis, title, means in zip(axes, ("sum / num_items", "mean of means"), (False, True), strict=True):
        place = 0
        for number, count in enumerate(counts):
            weight = 1 / (len(counts) * count) if means else 1 / total
            places = [place + i for i in range(count)]
            noun = "target" if count == 1 else "targets"
            axis.bar(places, weight, 0.85, color=colors[number], label=f"micro-batch {number + 1}: {count} {noun}")
            place += count + 0.6
        axis.set(title=title, xticks=[], xlabel="targets of one window")
        axis.grid(axis="x", visible=False)
    axes[0].set(ylabel="weight of a target")
    axes[0].legend(fontsize=10, loc="upper left")
    return figure


def focal(gammas: Sequence[float] = (0, 0.5, 1, 2, 5)) -> Figure:
    """Focal loss and its gradient against the probability of the right class."""
    figure, (left, right) = new_figure(
        1,
        2,
        height=3.5,
        alt="Two panels against the probability of the right class. Left: the loss falls to zero at one, the earlier "
        "the larger gamma is. Right: its gradient. For rows that are badly wrong it is larger than cross-entropy's; "
        "left of the middle the curves cross it, and above that the pull fades, the earlier the larger gamma is.",
    )
    p = np.linspace(0.002, 0.9999, 400)
    shades = ["#000000", COLORS["sky"], COLORS["blue"], COLORS["orange"], COLORS["red"]]
    for gamma, color in zip(gammas, shades, strict=True):
        label = f"$\\gamma$ = {gamma:g}" + (" (cross-entropy)" if gamma == 0 else "")
        left.plot(p, -((1 - p) ** gamma) * np.log(p), color=color, label=label)
        right.plot(p, (1 - p) ** gamma * (1 - p - gamma * p * np.log(p)), color=color)
    left.set(ylim=(0, 4), xlabel="p, the right class's probability", ylabel="loss (nats)", title="Loss of a row")
    right.set(xlabel="p, the right class's probability", ylabel="|d loss / d logit|", title="Pull on its logit")
    left.legend(fontsize=10)
    return figure


def boundary(share: float = 0.05) -> Figure:
    """Two classes on a line, one rare: where the best boundary lies for accuracy, and where for equal recall.

    Args:
        share: of the rare class.
    """
    figure, axis = new_figure(
        height=3.2,
        alt="Two bell curves on a line, a tall one for the frequent class and a flat one for the rare class. The "
        "boundary with fewest errors lies far inside the rare class; the boundary with equal classes in the middle.",
    )
    x = np.linspace(-4.5, 5, 500)
    bell = lambda centre: np.exp(-((x - centre) ** 2) / 2) / np.sqrt(2 * np.pi)  # noqa: E731
    axis.fill_between(x, (1 - share) * bell(-1), color=PALE["blue"])
    axis.plot(x, (1 - share) * bell(-1), color=COLORS["blue"], label=f"frequent class, {1 - share:.0%} of the rows")
    axis.fill_between(x, share * bell(1), color=PALE["orange"])
    axis.plot(x, share * bell(1), color=COLORS["orange"], label=f"rare class, {share:.0%}")
    # Log odds 2 x + log(share / (1 - share)) are 0 at the boundary.
    fewest = -np.log(share / (1 - share)) / 2
    sides = ((0, "as if classes were equal", "green", "right"), (fewest, "fewest errors", "red", "left"))
    for place, text, color, side in sides:
        axis.axvline(place, color=COLORS[color], linestyle="--")
        shift = 0.15 if side == "left" else -0.15
        axis.text(place + shift, 0.42, text, color=COLORS[color], fontsize=11, ha=side)
    axis.annotate("", (0, 0.27), (fewest, 0.27), arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6})
    axis.text(fewest / 2, 0.285, "log(ratio) / 2", ha="center", fontsize=10, color="#444444")
    axis.set(xlabel="a feature", ylabel="density", title="What a prior does to a boundary")
    axis.legend(fontsize=10, loc="center right")
    axis.set_ylim(0, 0.47)
    return figure


def weights(counts: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """Class weights against the number of rows, both axes logarithmic.

    Args:
        counts: rows of each class.
        curves: name -> weight of each class.
    """
    figure, axis = new_figure(
        height=3.5,
        alt="Class weights against rows of a class, on logarithmic axes. One over n falls in a straight line; one over "
        "the root of n half as steeply; the effective number starts like one over n and flattens for frequent classes.",
    )
    order = np.argsort(counts)
    marks = ("o-", "s-", "^-", "D-")
    for (name, values), mark in zip(curves.items(), marks, strict=False):
        axis.plot(np.asarray(counts)[order], np.asarray(values)[order], mark, markersize=5, label=name)
    axis.axhline(1, color=COLORS["black"], linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="training rows of the class", ylabel="weight")
    axis.set(title="The mean over rows is 1 for each")
    for side, ticks in ((axis.xaxis, (100, 200, 500, 1000, 2000, 5000)), (axis.yaxis, (0.25, 0.5, 1, 2, 4, 8))):
        side.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
        side.set_ticks([], minor=True)
    axis.legend(fontsize=10.5)
    return figure


def tokens(words: Sequence[str], relevance: Sequence[float], losses: Sequence[float]) -> Figure:
    """Tokens of a text, each with its loss (bar) and its relevance (shade).

    Args:
        words: T tokens.
        relevance: T weights from 0 to 1.
        losses: T cross-entropies in nats.
    """
    figure, axes = new_figure(
        2,
        1,
        height=1.9,
        alt="Two rows of bars over the tokens of a sentence. Above, the loss of each token. Below, the loss times "
        "its relevance: filler words shrink to a tenth, the answer keeps its height.",
        sharex=True,
    )
    shades = [COLORS["orange"] if value >= 1 else COLORS["sky"] for value in relevance]
    weighted = [value * weight for value, weight in zip(losses, relevance, strict=True)]
    for axis, heights, title in zip(axes, (losses, weighted), ("loss", "relevance x loss"), strict=True):
        axis.bar(range(len(words)), heights, 0.8, color=shades)
        axis.set_ylabel(title, fontsize=11)
        axis.set_ylim(0, 1.15 * max(losses))
        axis.grid(axis="x", visible=False)
    axes[1].set_xticks(range(len(words)), words, rotation=35, ha="right")
    return figure
