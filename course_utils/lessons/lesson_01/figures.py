"""Figures of lesson 01: what is measured in it. The drawings without data are in ``diagrams``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.lessons.lesson_01.optimizer_figures import (
    because,
    bias_correction,
    decay_paths,
    learning_curves,
    outlier,
    running_mean,
    step_times,
)
from course_utils.teach import charts
from course_utils.teach.figure import COLORS, describe, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "accumulation_bug",
    "because",
    "bias_correction",
    "class_sizes",
    "decay_paths",
    "f1_by_class",
    "learning_curves",
    "learning_rate_bug",
    "outlier",
    "schedules",
    "scores",
    "step_times",
    "training_curve",
]


def scores(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Accuracy and macro-F1 of several models; arguments as ``charts.score_bars``."""
    return describe(
        charts.score_bars(found),
        "Bars of accuracy and macro-F1. The trained encoder, a dot per run, lies a little above word weights in both; "
        "macro-F1 is lower than accuracy for both models.",
    )


def class_sizes(sizes: Mapping[str, int]) -> Figure:
    """How many training rows each class has, the largest on top."""
    figure, axis = new_figure(
        height=3.3,
        alt="Bars of the number of training rows of each class, sorted: a few classes hold most rows, and the largest "
        "is about thirty times as long as the smallest.",
    )
    names = sorted(sizes, key=sizes.get)
    bars = axis.barh(names, [sizes[name] for name in names], color=COLORS["blue"], height=0.7)
    axis.bar_label(bars, padding=4, fontsize=11)
    axis.set(xlabel="training rows", xlim=(0, max(sizes.values()) * 1.12), title="Classes are far from equal")
    axis.grid(axis="y", visible=False)
    return figure


def accumulation_bug(counts: Sequence[int], errors: Sequence[float]) -> Figure:
    """What dividing by the number of micro-batches does.

    Args:
        counts: targets in each micro-batch of one window.
        errors: relative error of the accumulated gradient under ``loss / k``, one value per window.
    """
    figure, (left, right) = new_figure(
        1,
        2,
        height=3.5,
        alt="Left: under loss divided by k, a target in the shortest micro-batch weighs several times its fair share "
        "and one in the longest less than it. Right: the gradient is far off in every window.",
    )
    fair, places = 1 / sum(counts), range(len(counts))
    weights = [1 / (len(counts) * count) / fair for count in counts]
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    bars = left.bar(places, weights, color=COLORS["orange"], width=0.65)
    left.bar_label(bars, [f"{weight:.1f}x" for weight in weights], fontsize=11, padding=3, bbox=white, zorder=3)
    left.axhline(1, color=COLORS["black"], linewidth=1.2, linestyle=":")
    left.set_xticks(places, [f"{count}" for count in counts])
    left.set(xlabel="targets in the micro-batch", ylabel="weight of one target / fair share")
    left.set(title="Weight under loss / k", ylim=(0, max(weights) * 1.18))
    bars = right.bar(range(1, len(errors) + 1), [100 * error for error in errors], color=COLORS["orange"], width=0.65)
    right.bar_label(bars, [f"{error:.0%}" for error in errors], fontsize=11, padding=2)
    right.set(xlabel="window", ylabel="error of the gradient (%)", title="Against the big batch")
    right.set(ylim=(0, 118 * max(errors)))
    right.set_xticks(range(1, len(errors) + 1))
    for axis in (left, right):
        axis.grid(axis="x", visible=False)
    return figure


def training_curve(
    history: Sequence[Mapping[str, float]], max_grad_norm: float, steps_per_epoch: float, smooth: int = 25
) -> Figure:
    """Training loss (running mean), validation loss, and below it the gradient norm with the clipping threshold.

    Args:
        history: what ``train`` returns.
        steps_per_epoch: optimizer steps of one pass over the data; each boundary inside the run is marked.
    """
    drop = ", and drops at the dotted line where the second epoch begins" if steps_per_epoch < len(history) else ""
    checked = [record for record in history if "eval_loss" in record]
    lowest = min(range(len(checked)), key=lambda i: checked[i]["eval_loss"], default=0)
    turns = "is lowest before the end, then rises a little" if lowest < len(checked) - 1 else "falls to the end"
    alt = (
        f"The training loss falls steeply, then slowly{drop}; the validation loss {turns}. Below, on a logarithmic "
        "axis, the gradient norm falls too and lies above the clipping threshold nearly always."
    )
    figure, (top, bottom) = new_figure(2, 1, height=2.7, sharex=True, alt=alt)
    steps = [record["step"] for record in history]
    losses = [record["loss"] for record in history]
    top.plot(steps, losses, color=COLORS["sky"], alpha=0.35, linewidth=0.8)
    top.plot(steps, running_mean(losses, smooth), color=COLORS["blue"], label=f"training, mean of {smooth} steps")
    top.plot(
        [record["step"] for record in checked],
        [record["eval_loss"] for record in checked],
        color=COLORS["red"],
        marker="o",
        linestyle="--",
        label="validation",
    )
    top.set(ylabel="loss (nats)", title="Loss")
    norms = [record["grad_norm"] for record in history]
    bottom.semilogy(steps, norms, color=COLORS["green"], linewidth=1)
    bottom.axhline(max_grad_norm, color=COLORS["black"], linewidth=1.2, linestyle="--", label="clipped above this")
    bottom.set(xlabel="optimizer step", ylabel="gradient norm", title="Gradient norm before clipping")
    boundary = steps_per_epoch
    while boundary < steps[-1]:
        label = "a new epoch begins" if boundary == steps_per_epoch else None
        top.axvline(boundary, color=COLORS["grey"], linestyle=":", label=label)
        bottom.axvline(boundary, color=COLORS["grey"], linestyle=":")
        boundary += steps_per_epoch
    top.legend(loc="upper center")
    bottom.legend(loc="upper right")
    return figure


def f1_by_class(found: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> Figure:
    """F1 of each class for two models, classes in the order of their size.

    Args:
        found: model -> class -> F1.
        sizes: class -> training rows.
    """
    figure, axis = new_figure(
        height=4.6,
        alt="F1 of each class, the largest class on top, for word weights and the encoder. The three largest are found "
        "best and the three rarest worst, the last hardly at all; in between, size does not decide.",
    )
    names = sorted(sizes, key=sizes.get)
    for shift, (model, values), color in zip((-0.19, 0.19), found.items(), ("grey", "blue"), strict=True):
        axis.barh(
            [place + shift for place in range(len(names))],
            [values[name] for name in names],
            height=0.36,
            color=COLORS[color],
            label=model,
        )
    axis.set_yticks(range(len(names)), [f"{name} ({sizes[name]:,} training rows)" for name in names])
    axis.set(xlim=(0, 1), xlabel="F1 on the fresh test rows", title="Macro-F1 is the mean of these")
    axis.legend(loc="lower right")
    axis.grid(axis="y", visible=False)
    return figure


def learning_rate_bug(right: Sequence[float], wrong: Sequence[float], accumulation: int) -> Figure:
    """The learning rate of a run whose scheduler is stepped once per micro-batch, beside the intended one."""
    figure, axis = new_figure(
        height=3.0,
        alt="The intended rate rises and falls over the whole run. Stepped per micro-batch it rises four times faster "
        "and is zero after a quarter of the run.",
    )
    axis.plot(right, color=COLORS["blue"], label="one scheduler step per optimizer step")
    axis.plot(wrong, color=COLORS["red"], linestyle="--", label=f"one per micro-batch (accumulation {accumulation})")
    axis.set(xlabel="optimizer step", ylabel="learning rate", title="The schedule runs out early")
    axis.legend()
    return figure


def schedules(curves: Mapping[str, Sequence[float]], warmup_steps: int) -> Figure:
    """Learning rate against the step; arguments as ``charts.schedules``."""
    return describe(
        charts.schedules(curves, warmup_steps),
        "Both schedules rise in a straight line over the first tenth of the run. The linear one then falls in a "
        "straight line to zero; the cosine stays higher at first, falls fastest in the middle and flattens at the end.",
    )
