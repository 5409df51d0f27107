"""Figures of lesson 06 from measured values: recall by class, who divides, settings, paired differences, parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.lessons.lesson_06.diagrams import boundary, flow, focal, tokens, weights, window
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course_utils.training.intervals import Interval

__all__ = [
    "boundary",
    "differences",
    "divided",
    "flow",
    "focal",
    "loss_against_k",
    "parts",
    "recall_by_class",
    "settings",
    "tokens",
    "weights",
    "window",
]


def recall_by_class(names: Sequence[str], counts: Sequence[int], found: Mapping[str, Sequence[float]]) -> Figure:
    """Recall of each class under two losses, the classes ordered by their number of rows.

    Args:
        names: C names.
        counts: C numbers of training rows.
        found: loss -> C recalls; two losses.
    """
    figure, axis = new_figure(
        height=3.9,
        alt="For each class, from the rarest to the most frequent, its recall with plain cross-entropy and with a "
        "weighted loss. Plain cross-entropy finds almost none of the rarest classes; the weighted loss finds a part "
        "of them, though still nothing of the very rarest; of the frequent classes it loses some, in the middle most.",
    )
    order = np.argsort(counts)
    (plain, before), (other, after) = ((name, np.asarray(values)[order]) for name, values in found.items())
    places = np.arange(len(order))[::-1]
    axis.hlines(places, np.minimum(before, after), np.maximum(before, after), color="#BDBDBD", linewidth=3)
    axis.plot(before, places, "o", color=COLORS["grey"], markersize=9, label=plain)
    axis.plot(after, places, "o", color=COLORS["blue"], markersize=9, label=other)
    axis.set_yticks(places, [f"{names[i]} ({counts[i]:,})" for i in order])
    axis.set(xlim=(-0.03, 1.0), xlabel="recall: share of the class that is found", title="What a loss can change")
    axis.legend(loc="upper right", fontsize=10.5)
    return figure


def divided(factors: Mapping[str, Sequence[float]], columns: Sequence[str]) -> Figure:
    """A table in colour: factor on the full batch's gradient, by way to give a loss and by division of the rows.

    Args:
        factors: way -> factor for each column.
        columns: how the rows are divided.
    """
    figure, axis = new_figure(
        height=0.9 + 0.34 * len(factors),
        alt="A table of ways to give the Trainer a loss against divisions of the batch. Ways that divide by num_items "
        "for the whole window, or that let the Trainer divide, are one everywhere; means that claim to be scaled grow "
        "with micro-batches and processes; double division shrinks; a sum that forgets the processes is halved by two.",
    )
    for row, values in enumerate(factors.values()):
        for column, value in enumerate(values):
            right = abs(value - 1) < 1e-3
            color = "#D3EFE5" if right else "#FBE0A8" if value > 1 else "#F3BFA0"
            axis.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], color=color, ec="white")
            weight = "normal" if right else "bold"
            axis.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=11, weight=weight)
    axis.set_yticks([row + 0.5 for row in range(len(factors))], list(factors), fontsize=10.5)
    axis.set_xticks([column + 0.5 for column in range(len(columns))], columns, fontsize=10.5)
    axis.xaxis.tick_top()
    axis.set(xlim=(0, len(columns)), ylim=(len(factors), 0))
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


def loss_against_k(steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """Logged loss of the first step against the number of micro-batches, the rows being the same.

    Args:
        steps: numbers of micro-batches.
        curves: way -> logged loss / full batch's loss at each.
    """
    figure, axis = new_figure(
        height=3.2,
        alt="Logged loss against the number of micro-batches, both logarithmic. The right loss is flat; a mean that "
        "ignores the count rises in proportion; a loss divided twice falls in proportion.",
    )
    colors = (COLORS["red"], COLORS["green"], COLORS["purple"])
    for (name, values), color in zip(curves.items(), colors, strict=True):
        axis.plot(steps, values, "o-", color=color)
        axis.annotate(name, (steps[-1], values[-1]), (8, 0), textcoords="offset points", color=color, va="center")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(steps, [str(step) for step in steps])
    ticks = sorted({float(f"{value:.3g}") for values in curves.values() for value in values})
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="micro-batches k, the same 16 rows", ylabel="loss / full batch's", title="The same rows")
    axis.set_xlim(steps[0] * 0.9, steps[-1] * 3.2)
    return figure


def settings(tried: Mapping[str, Mapping[float, float]], base: float) -> Figure:
    """Macro-F1 on validation against each loss's setting; the chosen one is ringed.

    Args:
        tried: loss -> {setting: macro-F1}.
        base: macro-F1 of plain cross-entropy.
    """
    figure, axes = new_figure(
        1,
        len(tried),
        height=2.9,
        alt="Five panels, one a loss: validation macro-F1 at each setting tried, beside plain cross-entropy's as a "
        "dashed line. Class weights are best at a middle strength; the chosen settings are ringed.",
        sharey=True,
    )
    for axis, (name, values) in zip(axes, tried.items(), strict=True):
        places, heights = range(len(values)), list(values.values())
        axis.axhline(base, color=COLORS["black"], linestyle="--", linewidth=1.2)
        axis.plot(places, heights, "o-", color=COLORS["blue"])
        best = int(np.argmax(heights))
        axis.plot(best, heights[best], "o", markersize=15, markerfacecolor="none", color=COLORS["orange"])
        axis.set_xticks(list(places), [f"{value:g}" for value in values], fontsize=9)
        axis.set_title(name, fontsize=10)
        axis.set_xlim(-0.5, len(values) - 0.5)
    axes[0].set_ylabel("macro-F1, validation")
    return figure


def differences(
    found: Mapping[str, Mapping[str, Interval]], each: Mapping[str, Mapping[str, Sequence[float]]]
) -> Figure:
    """Paired differences to cross-entropy on the test split, with 95 % intervals and a dot for each seed.

    Args:
        found: score -> loss -> interval.
        each: score -> loss -> difference of each seed.
    """
    figure, axes = new_figure(
        1,
        len(found),
        height=3.5,
        alt="Three panels: difference to plain cross-entropy in accuracy, macro-F1 and rare-class recall, one line a "
        "loss with its interval. Class weights gain most in macro-F1 and rare-class recall, one of them at the "
        "cost of accuracy; focal loss gains less, logit adjustment little; label smoothing loses rare-class recall.",
        sharey=True,
    )
    for axis, (score, intervals) in zip(axes, found.items(), strict=True):
        for place, (name, (mean, low, high)) in enumerate(intervals.items()):
            clear = low > 0 or high < 0
            color = COLORS["grey"] if not clear else COLORS["green"] if mean > 0 else COLORS["red"]
            axis.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="butt")
            axis.plot(mean, place, "o", color=color, markersize=8)
            dots = each[score][name]
            axis.plot(dots, [place + 0.28] * len(dots), "o", color="#9A9A9A", markersize=3)
        axis.axvline(0, color=COLORS["black"], linewidth=1.2)
        axis.set_title(score, fontsize=11.5)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="x", labelsize=9.5)
    names = list(next(iter(found.values())))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel("difference to cross-entropy, same seed (grey: the interval holds 0)", fontsize=11)
    return figure


def parts(history: Sequence[Mapping[str, float]], names: Sequence[str]) -> Figure:
    """The logged loss and its parts.

    Args:
        history: ``trainer.state.log_history``.
        names: keys to draw.
    """
    figure, axis = new_figure(
        height=3.1,
        alt="Three falling curves against the optimizer step: the loss that is trained on and its two parts.",
    )
    for name, style in zip(names, ("-", "--", ":"), strict=False):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        axis.plot(*zip(*points, strict=True), style, label=name)
    axis.set(xlabel="optimizer step", ylabel="nats", ylim=(0, None), title="One loss, two parts")
    axis.legend()
    return figure
