"""Figures of lesson 01 that are about optimizers; ``figures`` hands them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from course_utils.lessons.lesson_01.comparisons import effect
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RULE_COLORS = ("grey", "orange", "sky", "green", "blue")


def learning_curves(curves: Mapping[str, Sequence[Sequence[float]]], smooth: int = 10) -> Figure:
    """Training loss of several update rules, a running mean; the thin lines are the single seeds.

    Args:
        curves: rule -> one list of losses per seed.
    """
    figure, axis = new_figure(
        height=3.8,
        alt="Training loss against the step for five update rules. All fall; the lines of the adaptive rules end "
        "below that of plain SGD; Adam and the RMS step lie on each other, AdamW ends a little lower.",
    )
    for (name, runs), color in zip(curves.items(), RULE_COLORS, strict=False):
        smoothed = [running_mean(losses, smooth) for losses in runs]
        for line in smoothed:
            axis.plot(range(1, len(line) + 1), line, color=COLORS[color], linewidth=0.6, alpha=0.5)
        average = [mean(values) for values in zip(*smoothed, strict=True)]
        style = "--" if name == "AdamW" else "-"
        axis.plot(range(1, len(average) + 1), average, color=COLORS[color], linestyle=style, label=name)
    axis.set(xlabel="optimizer step", ylabel="training loss (mean of 10 steps)", title="One change at a time")
    axis.legend(ncols=2)
    return figure


def bias_correction(steps: Sequence[int], factors: Sequence[float]) -> Figure:
    """How many times too long Adam's step is without bias correction.

    Args:
        steps: optimizer steps from 1; the axis is logarithmic.
        factors: length of the uncorrected step / length of the corrected one, for a constant gradient.
    """
    figure, axis = new_figure(
        height=3.2,
        alt="Without bias correction the first step is about three times too long. The factor grows to more than six "
        "after a dozen steps and only returns to one after thousands.",
    )
    axis.semilogx(steps, factors, color=COLORS["orange"], label="without the correction")
    axis.axhline(1, color=COLORS["blue"], linestyle="--", label="with it")
    top = max(range(len(steps)), key=lambda i: factors[i])
    axis.plot(steps[top], factors[top], "o", color=COLORS["black"])
    axis.annotate(
        f"{factors[top]:.1f}x at step {steps[top]}",
        (steps[top], factors[top]),
        (10, 8),
        textcoords="offset points",
        fontsize=12,
    )
    axis.set(xlabel="optimizer step t (logarithmic)", ylabel="step is too long by", ylim=(0, max(factors) * 1.25))
    axis.set_title("Two averages that start at zero do not cancel")
    axis.legend(loc="upper right")
    return figure


def decay_paths(paths: Mapping[str, Sequence[float]]) -> Figure:
    """Two weights under AdamW and under Adam + L2, without a signal in the gradient: only decay moves them.

    Args:
        paths: ``"AdamW, large gradients"``, ``"AdamW, small gradients"``, and the same with ``"Adam + L2"``: the
            weight after each step.
    """
    figure, axes = new_figure(
        1,
        2,
        height=3.5,
        sharey=True,
        alt="Under AdamW both weights shrink on the same curve. Under Adam plus L2 the weight with small gradients "
        "shrinks much faster, and the one with large gradients keeps nearly all of its value.",
    )
    for axis, version in zip(axes, ("AdamW", "Adam + L2"), strict=True):
        for size, color, style in (("large", "blue", "-"), ("small", "orange", "--")):
            path = paths[f"{version}, {size} gradients"]
            axis.plot(path, color=COLORS[color], linestyle=style, label=f"weight with {size} gradients")
        axis.set(title=version, xlabel="optimizer step")
    axes[0].set(ylabel="weight", ylim=(0, 1.05))
    axes[0].legend(loc="lower left")
    return figure


def outlier(steps: Sequence[int], lengths: Mapping[str, Sequence[float]]) -> Figure:
    """Length of Adam's steps, in learning rates, around one gradient that is far too large.

    Args:
        steps: numbers of the steps, 0 is the outlier's.
        lengths: ``"not clipped"`` and ``"clipped"``: the length of each of these steps.
    """
    figure, axis = new_figure(
        height=3.2,
        alt="Step lengths around an outlier. Unclipped, the outlier's step is ten times as long as the others and the "
        "steps stay long for a while, then become shorter than before. Clipped, the line hardly moves.",
    )
    for (name, values), color, style in zip(lengths.items(), ("orange", "blue"), ("-", "--"), strict=True):
        axis.plot(steps, values, color=COLORS[color], linestyle=style, label=name)
    axis.axvline(0, color=COLORS["black"], linewidth=1, linestyle=":")
    axis.set(xlabel="steps after the outlier", ylabel="mean length (learning rates)", ylim=(0, None))
    axis.set_title("One gradient 100 times too large, under Adam")
    axis.legend()
    return figure


def because(losses: Mapping[str, Mapping[str, Sequence[float]]], names: Mapping[str, str]) -> Figure:
    """What leaving one technique out does to the validation loss: a dot per seed, the mean and its 95 % interval.

    Args:
        losses: learning rate -> what was left out -> validation loss of each seed; ``"nothing"`` is the whole recipe.
        names: what can be left out -> its name on the axis.
    """
    figure, axes = new_figure(
        1,
        len(losses),
        height=3.4,
        sharey=True,
        alt="For each technique left out, the change of the validation loss: a dot per seed, the mean and its 95 "
        "percent interval, in a panel for each learning rate. The rate that does not fall lies to the right of zero in "
        "both: falling helps, at the larger rate only just. The other intervals contain zero, except the tiny one of "
        "the decay groups at the smaller rate, just right of it.",
    )
    places = list(names)[::-1]
    for axis, (rate, runs) in zip(axes, losses.items(), strict=True):
        for place, name in enumerate(places):
            differences = [without - whole for without, whole in zip(runs[name], runs["nothing"], strict=True)]
            center, half = effect(runs, name)
            axis.plot(differences, [place] * len(differences), "o", color=COLORS["grey"], markersize=5)
            axis.errorbar(center, place, xerr=half, fmt="D", color=COLORS["blue"], capsize=5, markersize=7)
        axis.axvline(0, color=COLORS["black"], linewidth=1.2, linestyle=":")
        axis.set(ylim=(-0.6, len(places) - 0.4), title=f"learning rate {rate}")
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(places)), [names[name] for name in places])
    figure.supxlabel("validation loss without it, minus with it (right of zero: it helps)", fontsize=12)
    return figure


def step_times(seconds: Mapping[str, float], reference: str = "torch fused") -> Figure:
    """Horizontal bars: time of one ``optimizer.step()`` as a multiple of ``reference``'s, as measured now.

    Args:
        seconds: version -> seconds of one step.
    """
    figure, axis = new_figure(
        height=0.5 * len(seconds) + 1.3,
        alt="Bars of the time of one optimizer step, measured here: torch's fused version is the fastest; for-loop and "
        "foreach versions, torch's and ours, take several times as long on a CPU.",
    )
    names = list(seconds)[::-1]
    ratios = [seconds[name] / seconds[reference] for name in names]
    colors = [COLORS["blue"] if name.startswith("own") else COLORS["grey"] for name in names]
    bars = axis.barh(names, ratios, color=colors, height=0.62)
    labels = [f"{ratio:.1f}x  ({seconds[name] * 1e3:.1f} ms)" for name, ratio in zip(names, ratios, strict=True)]
    axis.bar_label(bars, labels, padding=4, fontsize=11)
    axis.set(xlim=(0, max(ratios) * 1.35), xlabel=f"time of one step, in multiples of {reference}")
    axis.set_title("optimizer.step(), measured here: blue is ours, grey is torch's")
    axis.grid(axis="y", visible=False)
    return figure


def running_mean(values: Sequence[float], smooth: int) -> list[float]:
    return [mean(values[max(0, i - smooth + 1) : i + 1]) for i in range(len(values))]
