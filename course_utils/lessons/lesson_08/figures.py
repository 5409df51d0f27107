"""Charts of lesson 08: two runs on one axis, forgotten prepares, schedules, local SGD. Drawings: ``diagrams``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

from course_utils.lessons.lesson_08.diagrams import difference, flow, gathered, who_gets_what, wrapped
from course_utils.lessons.lesson_08.task import farthest
from course_utils.teach.figure import COLORS, new_figure
from course_utils.training.paired import paired_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "difference",
    "flow",
    "forgotten",
    "gathered",
    "local_sgd",
    "scheduler_rates",
    "two_runs",
    "who_gets_what",
    "wrapped",
]


def two_runs(one: Sequence[float], two: Sequence[float]) -> Figure:
    """Training losses of one process and of two at the same effective batch, and how far apart they are."""
    alt = (
        "Training losses of one process and of two ranks lie on one another and fall. Below, on a logarithmic axis, "
        "their distance, a dot a step: as small as the rounding errors of float32."
    )
    figure, (top, bottom) = new_figure(2, 1, height=2.2, alt=alt, sharex=True)
    steps = range(1, len(one) + 1)
    top.plot(steps, one, color=COLORS["sky"], linewidth=5, label="one process, 32 rows")
    top.plot(steps, two, color=COLORS["black"], linewidth=1.3, linestyle="--", label="two ranks, 16 rows each")
    top.set(ylabel="loss (nats)", title="The same run")
    top.legend()
    apart = [abs(a - b) or nan for a, b in zip(one, two, strict=True)]
    bottom.semilogy(steps, apart, "o", color=COLORS["red"], markersize=4)
    bottom.text(1, 2e-8, "no dot: equal", fontsize=10, color="#444444")
    bottom.set(xlabel="optimizer step", ylabel="distance", ylim=(1e-8, 10), yticks=(1e-8, 1e-6, 1e-4, 1e-2, 1))
    return figure


def forgotten(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure:
    """What each forgotten ``prepare`` does: rows, agreement of the ranks, learning rate, loss.

    Args:
        runs: what was forgotten, the first "nothing" -> for each seed the results of both ranks.
    """
    alt = (
        "Five variants, four measurements. Without the loader both ranks see the same rows. Without the optimizer or "
        "the model the ranks' weights differ. Without the scheduler the rate is zero for half of the run. Last, for "
        "three seeds, how much higher the validation loss is than with everything prepared: dots, mean and interval."
    )
    figure, axes = new_figure(1, 4, height=3.1, alt=alt, sharey=True)
    names = list(runs)[::-1]
    labels = ["all prepared" if name == "nothing" else f"no {name}" for name in names]
    seen = [len({row for rank in runs[name][0] for row in rank["seen"]}) for name in names]
    apart = [farthest(*(rank["weights"] for rank in runs[name][0])) for name in names]
    first = [runs[name][0][0]["rates"] for name in names]
    spent = [100 * sum(rate == 0 for rate in rates) / len(rates) for rates in first]
    panels = ((axes[0], seen, "different rows", "{:.0f}"), (axes[1], apart, "ranks apart", "{:.1g}"))
    for axis, values, title, form in (*panels, (axes[2], spent, "steps at rate 0", "{:.0f}%")):
        usual = values[-1]
        colors = [COLORS["grey"] if value == usual else COLORS["red"] for value in values]
        bars = axis.barh(labels, values, color=colors, height=0.6)
        axis.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=10)
        axis.set(xlim=(0, 1.55 * (max(values) or 1)), xticks=[])
        axis.set_title(title, fontsize=11)
        axis.grid(visible=False)
    _dots(axes[3], [losses_above(runs, name) for name in names], labels)
    axes[3].set_title("loss, added", fontsize=11)
    axes[3].tick_params(labelsize=9.5)
    return figure


def losses_above(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], name: str) -> list[float]:
    """What forgetting ``name`` adds to the validation loss, seed by seed."""
    return [pair[0]["loss"] - whole[0]["loss"] for pair, whole in zip(runs[name], runs["nothing"], strict=True)]


def _dots(axis: Axes, groups: Sequence[Sequence[float]], labels: Sequence[str]) -> None:
    """Differences of three seeds as dots, their mean, and its 95% interval, a line a group; zero is marked."""
    for place, values in enumerate(groups):
        found = paired_interval(values, [0.0] * len(values))
        half = found.high - found.value
        axis.errorbar(found.value, place, xerr=half, fmt="D", color=COLORS["blue"], capsize=4, markersize=6)
        axis.plot(values, [place] * len(values), "o", color=COLORS["black"], markersize=3.5)
    axis.axvline(0, color=COLORS["black"], linewidth=1)
    axis.set_yticks(range(len(groups)), labels)
    axis.grid(axis="y", visible=False)


def scheduler_rates(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Learning rates of two ranks under three ways to write the schedule, beside the planned one."""
    alt = (
        "The planned rate rises over a tenth of the run and falls to zero at its end. A prepared schedule of 100 steps "
        "does so twice as fast and is zero from the middle on. Twice the length, or one step per call, gives the "
        "planned one."
    )
    figure, axis = new_figure(height=3.2, alt=alt)
    styles = (("-", 7, "#D5D5D5"), ("-", 2.2, COLORS["red"]), ("--", 2, COLORS["blue"]), (":", 2.6, COLORS["black"]))
    for (name, rates), (style, width, color) in zip(curves.items(), styles, strict=True):
        axis.plot(rates, style, linewidth=width, color=color, label=name)
    axis.set(xlabel="optimizer step", ylabel="learning rate / peak", title="Two ranks: who counts twice?")
    axis.legend(fontsize=10)
    return figure


def local_sgd(runs: Mapping[int, Sequence[Mapping[str, Any]]]) -> Figure:
    """How far the ranks are apart during a run, and its validation loss, with an exchange every n steps."""
    alt = (
        "Left: with an exchange at every step the ranks never differ; with one every eight steps their distance grows "
        "and falls to zero at each average, like the teeth of a saw. Right: what the rarer exchange adds to the "
        "validation loss, for three seeds, with mean and interval."
    )
    figure, (left, right) = new_figure(1, 2, height=3.1, alt=alt)
    for (every, results), color in zip(runs.items(), (COLORS["blue"], COLORS["orange"]), strict=True):
        label = "every step" if every == 1 else f"every {every} steps"
        left.plot(range(1, len(results[0]["apart"]) + 1), results[0]["apart"], color=color, label=label)
    left.set(xlabel="step", ylabel="largest difference of a weight", title="Between the ranks", ylim=(0, None))
    left.legend(fontsize=10, loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
    usual, rare = runs.values()
    added = [late["loss"] - each["loss"] for late, each in zip(rare, usual, strict=True)]
    _dots(right, [added], [f"every {max(runs)} steps"])
    right.set(xlabel="validation loss, added", title="Three seeds, 95% interval", ylim=(-0.6, 0.6))
    return figure
