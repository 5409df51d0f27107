"""Figures of lesson 03: the Trainer's step as a timeline, curves of its runs, checkpoints on disk, number formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.teach import charts
from course_utils.teach.figure import COLORS, describe, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course_utils.training.trainer_trace import Call

KIND_COLORS = {
    "outer": "#C9C9C9",
    "data": COLORS["green"],
    "forward": COLORS["blue"],
    "backward": COLORS["orange"],
    "update": COLORS["red"],
    "callback": COLORS["black"],
    "logging": COLORS["purple"],
    "checkpoint": COLORS["sky"],
    "metrics": COLORS["sky"],
    "setup": "#6B6B6B",
}


def timeline(calls: Sequence[Call], title: str) -> Figure:
    """One row per traced method, in order of first call; bars are calls, black diamonds are callback events.

    Args:
        calls: from ``Trace.of_step`` or ``Trace.inside``.
        title: what was traced.
    """
    names = list(dict.fromkeys(call.name for call in calls))
    longest = "Forward and backward passes take" if "backward" in names else "The forward passes take"
    alt = (
        f"{title}, as a timeline: a row for each method, from the first called at the top to the last; bars are calls, "
        f"black diamonds are callback events. What a method calls lies below it, inside its time. {longest} nearly all "
        "of it."
    )
    depth = {call.name: call.depth for call in reversed(calls)}
    top, origin = min(depth.values()), min(call.start for call in calls)
    figure, axes = new_figure(height=0.9 + 0.29 * len(names), alt=alt)
    end = max(call.start + call.seconds for call in calls) - origin
    for row, name in enumerate(names):
        own = [call for call in calls if call.name == name]
        total = 1e3 * sum(call.seconds for call in own)
        color = KIND_COLORS[own[0].kind]
        starts = [1e3 * (call.start - origin) for call in own]
        if own[0].kind == "callback":
            axes.plot(starts, [row] * len(own), "D", color=color, markersize=5, clip_on=False)
        else:
            # A call too short to see still gets a sliver, around its middle: so it stays in line with its neighbours.
            widths = [1e3 * max(call.seconds, 0.003 * end) for call in own]
            # White edges part calls that follow each other at once; a sliver keeps its colour.
            edges = ["white" if width > 0.012 * 1e3 * end else color for width in widths]
            spans = [
                (start - (width - 1e3 * call.seconds) / 2, width)
                for call, start, width in zip(own, starts, widths, strict=True)
            ]
            axes.broken_barh(spans, (row - 0.36, 0.72), facecolors=color, edgecolors=edges, linewidth=1.2)
        duration = f"{total:.0f} ms" if total >= 10 else f"{total:.2f} ms"
        text = duration + (f" in {len(own)} calls" if len(own) > 1 else "")
        axes.text(1e3 * end * 1.03, row, text, va="center", fontsize=10, color="#444444", clip_on=False)
    labels = ["   " * (depth[name] - top) + name for name in names]
    axes.set_yticks(range(len(names)), labels, fontfamily="monospace", fontsize=10, ha="left")
    # Left-aligned labels show the nesting; the padding makes room for the longest.
    axes.tick_params(axis="y", pad=7.2 * max(map(len, labels)), length=0)
    axes.set(xlabel="time (milliseconds)", title=title, xlim=(0, 1e3 * end * 1.015), ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    return figure


def schedules(curves: Mapping[str, Sequence[float]], warmup_steps: int) -> Figure:
    """Eight schedules, a panel each (``charts.schedules``)."""
    alt = (
        "Eight panels, each one schedule: all rise linearly in the warm-up; linear falls in a straight line, cosine "
        "in a half wave, one stays constant, one falls with the inverse square root, the polynomial of power 2 in a "
        "parabola, one falls in three half waves and restarts twice, one ends at a tenth of the peak, one is flat and "
        "falls only at the end."
    )
    return describe(charts.schedules(curves, warmup_steps), alt)


def training_curves(history: Sequence[Mapping[str, float]], best_step: int | None = None) -> Figure:
    """Training and validation loss on the left; accuracy and macro-F1 of the validation rows on the right.

    Args:
        history: ``trainer.state.log_history``.
        best_step: optimizer step of the best checkpoint, marked by a dashed line.
    """
    alt = (
        "Left: the training loss falls to the end; the validation loss falls, turns and rises. A dashed line marks the "
        "best checkpoint, at the lowest validation loss, long before the end. Right: accuracy and macro-F1 of the "
        "validation rows rise beyond that line and flatten."
    )

    def points(key: str) -> tuple[list[int], list[float]]:
        found = [(entry["step"], entry[key]) for entry in history if key in entry]
        return [step for step, _ in found], [value for _, value in found]

    figure, (left, right) = new_figure(1, 2, height=4.0, alt=alt)
    left.plot(*points("loss"), color=COLORS["sky"], label="training (mean since last log)")
    left.plot(*points("eval_loss"), "o-", color=COLORS["blue"], label="validation")
    left.set(xlabel="optimizer step", ylabel="cross entropy (nats)", title="Loss")
    right.plot(*points("eval_accuracy"), "s-", color=COLORS["green"], label="accuracy")
    right.plot(*points("eval_macro_f1"), "o-", color=COLORS["orange"], label="macro-F1")
    right.set(xlabel="optimizer step", ylabel="share (0 to 1)", title="Validation metrics", ylim=(0, 1))
    for axis in (left, right):
        if best_step:
            axis.axvline(best_step, color=COLORS["black"], linestyle="--", linewidth=1.2, label="best checkpoint")
        # Below the panel: inside it the legend would lie on a curve or on the line of the best checkpoint.
        axis.legend(fontsize=9.5, loc="upper left", bbox_to_anchor=(0, -0.2))
    return figure


def checkpoints_on_disk(kept: Mapping[int, Sequence[int]], best: Mapping[int, int | None]) -> Figure:
    """Which checkpoints lie on the disk after each save.

    Args:
        kept: step of a save -> steps of the checkpoints on disk right after it.
        best: step of a save -> step of the best checkpoint known then (None: none yet).
    """
    alt = (
        "A grid: saves from left to right, checkpoints from bottom to top. After each save at most two checkpoints are "
        "on disk: the newest and the best so far. Once the best is passed it stays, and those after it are deleted."
    )
    saves = sorted(kept)
    position = {step: i for i, step in enumerate(saves)}
    figure, axes = new_figure(height=0.9 + 0.45 * len(saves), alt=alt)
    for x, save in enumerate(saves):
        for step in saves[: x + 1]:
            on_disk, is_best = step in kept[save], step == best[save]
            face = COLORS["orange"] if is_best else COLORS["sky"] if on_disk else "white"
            axes.scatter(x, position[step], s=560, marker="s", color=face, edgecolor="#9A9A9A")
            if is_best:
                axes.text(x, position[step], "best", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(saves)), saves)
    axes.set_yticks(range(len(saves)), saves)
    axes.set(xlabel="after the save at optimizer step", ylabel="checkpoint", title="On disk: filled; deleted: empty")
    axes.set(xlim=(-0.6, len(saves) - 0.4), ylim=(-0.7, len(saves) - 0.3))
    return figure


def number_formats(formats: Mapping[str, Mapping[str, float]]) -> Figure:
    """Range and spacing of floating point formats.

    Args:
        formats: name -> ``smallest`` (subnormal), ``tiny`` (smallest normal), ``max``, ``eps`` (distance from 1 to
            the next larger number), as ``torch.finfo`` gives them.
    """
    alt = (
        "Left: bfloat16 covers the range of float32, from 1e-38 to 1e38; float16 only that from 6e-5 to 65504, and "
        "less exactly down to 6e-8. Right: between 1 and 1.032 float16 has 33 numbers, bfloat16 has 5."
    )
    figure, (left, right) = new_figure(1, 2, height=3.0, alt=alt)
    colors = [COLORS["blue"], COLORS["green"], COLORS["orange"], COLORS["red"]]
    for row, ((_, info), color) in enumerate(zip(formats.items(), colors, strict=False)):
        low, normal, high = (np.log10(info[key]) for key in ("smallest", "tiny", "max"))
        left.barh(row, high - normal, left=normal, height=0.5, color=color)
        left.barh(row, normal - low, left=low, height=0.5, color=color, alpha=0.35)
        ticks = np.arange(1, 1.0321, info["eps"]) if info["eps"] > 1e-4 else None
        if ticks is None:
            right.plot([1, 1.032], [row, row], linewidth=9, color=color, solid_capstyle="butt")
        else:
            right.plot(ticks, [row] * len(ticks), "|", markersize=20, markeredgewidth=1.6, color=color)
    left.axvline(0, color=COLORS["black"], linewidth=1)
    left.set_yticks(range(len(formats)), list(formats))
    left.set(xlabel="magnitude (power of ten)", title="Range (pale: subnormal)", xticks=range(-40, 40, 20))
    right.set_yticks(range(len(formats)), [])
    right.set(xlabel="numbers that exist from 1 to 1.032", title="Precision", xlim=(0.999, 1.033))
    right.set_xticks([1, 1.01, 1.02, 1.03])
    for axis in (left, right):
        axis.set_ylim(len(formats) - 0.5, -0.5)
    return figure


def gradient_underflow(magnitudes: Sequence[float], smallest: float, tiny: float, scale: float) -> Figure:
    """Histogram of gradient magnitudes against the range of fp16, plain and multiplied by ``scale``.

    Args:
        magnitudes: absolute values of gradients, all > 0.
        smallest, tiny: fp16's smallest positive number and its smallest normal number.
        scale: the loss scale, a power of two.
    """
    alt = (
        "Histogram of gradient magnitudes. A large part lies where fp16 loses digits; multiplied by the loss scale "
        "nearly the whole histogram lies in the normal range of fp16, left of its largest number."
    )
    logs = np.log10(np.asarray(magnitudes, dtype=float))
    weights = np.full(len(logs), 100 / len(logs))
    figure, axes = new_figure(height=3.6, alt=alt)
    axes.axvspan(-16, np.log10(smallest / 2), color="#BDBDBD", zorder=0, label="rounds to 0 in fp16")
    axes.axvspan(np.log10(smallest / 2), np.log10(tiny), color="#E6E6E6", zorder=0, label="subnormal: digits are lost")
    for values, color, label in (
        (logs, COLORS["blue"], "gradients"),
        (logs + np.log10(scale), COLORS["orange"], f"gradients of loss x {scale:,.0f}"),
    ):
        axes.hist(values, bins=110, range=(-16, 6), color=color, alpha=0.7, weights=weights)
        axes.plot([], [], color=color, linewidth=8, alpha=0.7, label=label)
    axes.axvline(np.log10(65504), color=COLORS["black"], linestyle="--", linewidth=1.2, label="fp16's largest: 65504")
    axes.set(xlabel="gradient magnitude (power of ten)", ylabel="share of gradients (%)", xlim=(-13, 6))
    axes.set_title("Loss scaling moves gradients into fp16's range")
    axes.legend(fontsize=9.5, loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def kept_minus_last(gains: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Test scores of kept weights minus those of the last: a dot per seed, the mean with its 95 % interval over seeds.

    Args:
        gains: by what the weights were chosen -> score -> one difference per seed.
    """
    from course_utils.training.paired import mean_interval

    alt = (
        "Two panels, kept weights minus the last ones on the test rows, a row for each way to choose. Chosen by the "
        "lowest loss: both intervals are below zero, less loss and less macro-F1. Chosen by the highest macro-F1: "
        "both means are nearer to zero, and both intervals hold it: nothing measurable over the last weights."
    )
    figure, axes = new_figure(1, 2, height=2.8, sharey=True, alt=alt)
    for axis, (score, label) in zip(axes, (("loss", "loss"), ("macro_f1", "macro-F1")), strict=True):
        axis.axvline(0, color=COLORS["black"], linewidth=1.2)
        for row, scores in enumerate(gains.values()):
            mean = mean_interval(scores[score])
            axis.plot([mean.low, mean.high], [row, row], color=COLORS["blue"], linewidth=2, solid_capstyle="butt")
            axis.plot(mean.value, row, "s", color=COLORS["blue"], markersize=9, label="mean, 95 % interval over seeds")
            values = scores[score]
            axis.plot(values, [row - 0.25] * len(values), "o", color=COLORS["orange"], markersize=7, label="a seed")
        axis.set(xlabel=f"{label}, kept minus last", ylim=(len(gains) - 0.6, -0.6))
        axis.locator_params(axis="x", nbins=5)
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(gains)), list(gains))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside upper center", ncols=2)
    return figure


def hidden_nan(logs: Mapping[str, Sequence[tuple[int, float]]], bad_step: int) -> Figure:
    """What the log says of one run whose loss becomes NaN, with the filter and without it.

    Args:
        logs: name -> logged ``(step, loss)``; a NaN is drawn as a cross in a band above the numbers.
        bad_step: the first step whose loss is NaN.
    """
    alt = (
        "Logged training loss of the same run twice. With the filter, which is the default, the curve falls to zero "
        "after the step where the loss became NaN and stays there. Without the filter there are no values after that "
        "step, only crosses for NaN, in a band above the scale."
    )
    figure, axes = new_figure(1, len(logs), height=3.0, sharey=True, alt=alt)
    top = max(value for points in logs.values() for _, value in points if value == value)
    for axis, (name, points) in zip(axes, logs.items(), strict=True):
        numbers = [point for point in points if point[1] == point[1]]
        axis.plot(*zip(*numbers, strict=True), "o-", color=COLORS["blue"], markersize=5, label="logged loss")
        missing = [step for step, value in points if value != value]
        # No number, so no height: the crosses stand in a band of their own.
        if missing:
            axis.axhspan(1.1 * top, 1.35 * top, color="#EEEEEE", zorder=0)
            axis.text(points[0][0], 1.225 * top, "no number", va="center", fontsize=10, color="#444444")
        axis.plot(missing, [1.225 * top] * len(missing), "x", color=COLORS["red"], markersize=8, label="NaN: no number")
        axis.axvline(bad_step, color=COLORS["black"], linestyle="--", linewidth=1.2, label="the loss becomes NaN")
        axis.set(xlabel="optimizer step", title=name, ylim=(-0.05 * top, 1.35 * top))
    axes[0].set_ylabel("loss (nats)")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
