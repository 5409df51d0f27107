"""Charts that more than one lesson draws; what a single lesson draws stands in that lesson's ``figures.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LINES = 3  # learning rates that can be told apart on one axis; more get a panel each


def schedules(curves: Mapping[str, Sequence[float]], warmup_steps: int) -> Figure:
    """Learning rate against the optimizer step; the warm-up is shaded.

    Args:
        curves: schedule -> learning rate at each step; up to ``MOST_LINES`` share an axis, more get a panel each and
            are then shares of their peak.
    """
    return _one_axis(curves, warmup_steps) if len(curves) <= MOST_LINES else _panels(curves, warmup_steps)


def _one_axis(curves: Mapping[str, Sequence[float]], warmup_steps: int) -> Figure:
    figure, axis = new_figure()
    axis.axvspan(0, warmup_steps, color="#EFEFEF")
    axis.text(warmup_steps * 1.1, 0, "warm-up ends", fontsize=10, color=COLORS["grey"], va="bottom")
    for (name, rates), style in zip(curves.items(), ("-", "--", ":"), strict=False):
        axis.plot(rates, linestyle=style, label=name)
    axis.set(xlabel="optimizer step", ylabel="learning rate", title="Up in a tenth of the run, then down")
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.legend()
    return figure


def _panels(curves: Mapping[str, Sequence[float]], warmup_steps: int) -> Figure:
    columns = 4
    rows = -(-len(curves) // columns)
    figure, axes = new_figure(rows, columns, height=1.9, sharex=True, sharey=True, squeeze=False)
    for axis, (name, curve) in zip(axes.flat, curves.items(), strict=False):
        axis.axvspan(0, warmup_steps, color="#EFEFEF")
        axis.plot(range(len(curve)), curve, color=COLORS["blue"])
        axis.set_title(name, fontsize=9.5)
        axis.set_ylim(0, 1.08)
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    figure.supxlabel("optimizer step (grey: warm-up)", fontsize=12)
    figure.supylabel("learning rate / peak", fontsize=12)
    return figure


def score_bars(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Accuracy and macro-F1 of several models, side by side; several runs of a model show as dots on their mean.

    Args:
        scores: model -> one ``{"accuracy": ..., "macro_f1": ...}`` per run, each between 0 and 1.
    """
    figure, axes = new_figure(1, 2, height=3.2, sharey=True)
    names = list(scores)[::-1]
    for axis, score, title in zip(axes, ("accuracy", "macro_f1"), ("Accuracy", "Macro-F1"), strict=True):
        values = [[run[score] for run in scores[name]] for name in names]
        means = [sum(runs) / len(runs) for runs in values]
        bars = axis.barh(names, means, height=0.6, color=[COLORS["blue"], *[COLORS["grey"]] * (len(names) - 1)])
        axis.bar_label(bars, [f"{mean:.3f}" for mean in means], padding=10)
        for name, runs in zip(names, values, strict=True):
            if len(runs) > 1:
                axis.plot(runs, [name] * len(runs), "o", color=COLORS["black"], markersize=4)
        axis.set(xlim=(0, 0.9), title=title)
        axis.grid(axis="y", visible=False)
    return figure


def grouped_bars(values: dict[str, dict[str, float]], label: str, spread: dict | None = None) -> Figure:
    """Bars in groups: ``values[group][series]``; ``spread`` of the same form draws half-widths of error bars."""
    figure, axis = new_figure(1, 1, height=3.4)
    groups, series = list(values), list(next(iter(values.values())))
    width = 0.8 / len(series)
    for number, name in enumerate(series):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        heights = [values[group][name] for group in groups]
        errors = [spread[group][name] for group in groups] if spread else None
        color = list(COLORS.values())[number]
        bars = axis.bar(places, heights, 0.92 * width, label=name, color=color, yerr=errors, capsize=4)
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=11)
    axis.set_xticks(range(len(groups)), groups)
    highest = max(max(group.values()) for group in values.values())
    axis.set(ylabel=label, ylim=(0, 1.25 * highest if highest > 0 else 1))  # all zero: an axis needs a height
    axis.legend(loc="upper left", ncols=len(series))
    axis.grid(axis="x", visible=False)
    return figure
