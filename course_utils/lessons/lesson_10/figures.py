"""The figures of lesson 10; its diagrams stand in ``diagrams`` and are figures of this module, too."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.lessons.lesson_10.diagrams import PALE, adapter, marked, phases, token_strip, visible  # noqa: F401
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def before_after(found: Mapping[str, Mapping[str, float]], majority: float) -> Figure:
    """Groups of bars: model -> {"library": 0 to 1, "topic": 0 to 1}; dashed: the most frequent library."""
    from course_utils.teach.charts import grouped_bars
    from course_utils.teach.figure import describe

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where nothing is right all bars are 0, and so is the axis
        figure = grouped_bars({k: dict(v) for k, v in found.items()}, "share of the validation rows")
    axis = figure.axes[0]
    axis.set_ylim(0, 1.25 * max(majority, *(max(row.values()) for row in found.values())))
    line = {"color": COLORS["black"], "linestyle": "--", "linewidth": 1.2, "zorder": 0}
    axis.axhline(majority, label="most frequent library", **line)
    axis.legend(loc="upper left", ncols=3)
    return describe(
        figure,
        "Two groups of bars, blue for the library and orange for the topic. The base has no blue bar and a tall orange "
        "one; after fine-tuning the blue bar stands well above the dashed line of the most frequent library, and the "
        "orange one is nearly gone.",
    )


def dots(
    runs: Mapping[str, Sequence[float]], label: str, line: tuple[str, float] | None = None, alt: str = ""
) -> Figure:
    """One row per setting: a dot for each seed, a bar for the mean; a dashed line for a baseline."""
    figure, axis = new_figure(height=0.9 + 0.48 * len(runs), alt=alt)
    colors = ["blue", "orange", "green", "red", "purple", "sky"]
    for place, values in enumerate(reversed(runs.values())):
        color = COLORS[colors[(len(runs) - 1 - place) % len(colors)]]
        apart = np.linspace(0.12, -0.12, len(values)) if len(values) > 1 else 0  # equal values stay visible
        axis.plot(values, np.full(len(values), place) + apart, "o", color=color, markersize=7, alpha=0.8)
        axis.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=3)
    if line:
        axis.axvline(line[1], color=COLORS["black"], linestyle="--", linewidth=1.2)
        axis.text(line[1], len(runs) - 0.42, f" {line[0]}", fontsize=10, va="bottom")
    axis.set_yticks(range(len(runs)), list(runs)[::-1])
    axis.set_ylim(-0.6, len(runs) + 0.05)
    axis.set(xlabel=label)
    axis.grid(axis="y", visible=False)
    return figure


def answers_learnt(runs: Mapping[str, Sequence[float]], majority: float) -> Figure:
    return dots(
        runs,
        "exact match on validation rows (a dot a seed, a bar the mean)",
        ("most frequent answer", majority),
        "Dots for full fine-tuning lie furthest right, those of LoRA in the middle, and LoRA on a random base on the "
        "line of the most frequent answer.",
    )


def forgetting(runs: Mapping[str, Sequence[float]], base: float) -> Figure:
    return dots(
        runs,
        "loss on plain text, nats a token",
        ("the base", base),
        "Loss on plain text after fine-tuning. Full fine-tuning lies well above the line of the base, LoRA with its "
        "adapters on further still; LoRA with its adapters switched off lies on the line.",
    )


def masking(runs: Mapping[str, Sequence[float]], majority: float) -> Figure:
    return dots(
        runs,
        "exact match on validation rows (a dot a seed, a bar the mean)",
        ("most frequent answer", majority),
        "Dots of three seeds each: with labels on the answer only they lie further right than with "
        "labels on all tokens.",
    )


def memory(found: Mapping[str, Mapping[str, int]]) -> Figure:
    """Bytes kept in training: model -> {weights, gradients, moments}."""
    figure, axis = new_figure(
        height=2.4,
        alt="Two stacked bars in megabytes. Full fine-tuning: weights, gradients as large, moments twice "
        "as large. LoRA: "
        "the same weights and a sliver for the rest.",
    )
    names = list(found)[::-1]
    left = np.zeros(len(names))
    for part, color in zip(("weights", "gradients", "moments"), ("grey", "orange", "red"), strict=True):
        sizes = np.array([found[name][part] / 1e6 for name in names])
        axis.barh(names, sizes, 0.55, left=left, color=COLORS[color], label=part)
        left += sizes
    axis.set(xlabel="MB kept between two steps, activations not counted")
    axis.grid(axis="y", visible=False)
    axis.legend(ncols=3, loc="lower right", fontsize=10.5)
    return figure


def sweep(grid: Mapping[str, Mapping[str, Sequence[float]]], full: Sequence[float]) -> Figure:
    """Exact match against the learning rate: a line for each rank, the range of its seeds shaded.

    Args:
        grid: rank -> learning rate -> exact match of each seed.
        full: of full fine-tuning at its best rate, each seed: the dashed line and the grey band.
    """
    figure, axis = new_figure(
        height=3.5,
        alt="Exact match against the learning rate on a logarithmic axis, a line for each rank. At the smallest rate "
        "low ranks learn next to nothing. The highest rank lies above the others for small rates, and falls at the "
        "largest. All lines stay below the dashed line of full fine-tuning and its grey band.",
    )
    for rank, row in grid.items():
        rates = [float(rate) for rate in row]
        means = [np.mean(values) for values in row.values()]
        lines = axis.plot(rates, means, "o-", label=f"rank {rank}")
        low, high = ([pick(values) for values in row.values()] for pick in (min, max))
        axis.fill_between(rates, low, high, color=lines[0].get_color(), alpha=0.15)
    axis.axhspan(min(full), max(full), color=COLORS["black"], alpha=0.1, linewidth=0)
    axis.axhline(np.mean(full), color=COLORS["black"], linestyle="--", linewidth=1.2)
    axis.set(xscale="log", xlabel="learning rate", ylabel="exact match", ylim=(-0.03, max(full) + 0.08))
    axis.text(min(rates), max(full), "full fine-tuning, best rate", fontsize=10, va="bottom")
    axis.legend(fontsize=10.5)
    return figure


def levels(nf4: Sequence[float], even: Sequence[float]) -> Figure:
    """The 16 levels of NF4 and of plain int4 under a bell curve."""
    figure, axis = new_figure(
        height=3.0,
        alt="A bell curve over the scaled weights. Below it two rows of 16 ticks: those of NF4 stand close together "
        "in the middle and far apart at the ends, from -1 to 1; those of int4 are evenly spaced, the lowest at -1.14.",
    )
    x = np.linspace(-1.15, 1.15, 300)
    axis.fill_between(x, np.exp(-((x / 0.36) ** 2) / 2), color=PALE["blue"])
    for place, (name, values, color) in enumerate((("int4", even, "grey"), ("NF4", nf4, "orange"))):
        y = -0.42 + 0.22 * place
        axis.vlines(values, y - 0.08, y + 0.08, color=COLORS[color], linewidth=2.4)
        axis.text(1.22, y, name, va="center", fontsize=11)
    axis.set(yticks=[], xlabel="weight / largest absolute weight of its block of 64", xlim=(-1.3, 1.4))
    axis.grid(visible=False)
    return figure


def preference(steps: Sequence[float], margins: Sequence[float], losses: Sequence[float]) -> Figure:
    """DPO's loss and margin over the steps."""
    figure, (left, right) = new_figure(
        1,
        2,
        height=2.9,
        alt="Two curves over the steps of DPO: the loss falls from log 2, the margin of rewards rises.",
    )
    left.plot(steps, losses, color=COLORS["blue"])
    left.axhline(np.log(2), color=COLORS["black"], linestyle="--", linewidth=1.2)
    left.set(xlabel="step", title="DPO loss (dashed: log 2)")
    right.plot(steps, margins, color=COLORS["orange"])
    right.set(xlabel="step", title="Margin of the rewards")
    return figure


def reinforced(starts: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], steps: int) -> Figure:
    """A run of GRPO by its start: reward while training, then what held-out rows say; means, ranges of seeds shaded.

    Args:
        starts: start -> a record per seed, as `reinforce.grpo_run` returns it.
        steps: of the run.
    """
    figure, axes = new_figure(
        columns=3,
        height=3.3,
        alt="Three panels over the steps of training, a line for each of three starts. Reward rises for the start with "
        "little fine-tuning, rises a little for the well fine-tuned one, and stays at zero for the base. The share of "
        "right answers on held-out rows falls somewhat for both. The share of the most frequent answer rises for both, "
        "to one for the start with little fine-tuning.",
    )
    panels = {"reward": "reward in training", "right": "right answers", "most_frequent": "same answer"}
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for start, runs in starts.items():
            values = np.array([run[name] for run in runs])
            if name == "reward":  # a mean of ten steps: 64 answers alone are noise
                values = values.reshape(len(runs), -1, 10).mean(2)
            x = np.linspace(steps / values.shape[1] if name == "reward" else 0, steps, values.shape[1])
            (line,) = axis.plot(x, values.mean(0), "o-", markersize=3, label=start)
            axis.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)
        axis.set(title=title, xlabel="step", ylim=(-0.03, 1.05))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10.5)
    return figure


def divisors() -> Figure:
    """Two answers of different length: what each token weighs when the loss is meaned per batch or per token."""
    figure, axes = new_figure(
        1,
        2,
        height=2.6,
        sharey=True,
        alt="Bars for eight answer tokens of two micro-batches. Per token all weigh the same; with the "
        "mean of means the "
        "two tokens of the short micro-batch weigh three times as much as the six of the long one.",
    )
    for axis, title, weights in zip(
        axes,
        ("sum / tokens of the window", "mean of means"),
        ([1 / 8] * 8, [1 / 4] * 2 + [1 / 12] * 6),
        strict=True,
    ):  # fmt: skip
        axis.bar(range(8), weights, 0.8, color=[COLORS["orange"]] * 2 + [COLORS["blue"]] * 6)
        axis.set(title=title, xticks=[0.5, 4.5])
        axis.set_xticklabels(["short answers", "long answers"])
        axis.grid(axis="x", visible=False)
    axes[0].set(ylabel="weight of a token")
    return figure
