"""Figures of lesson 01: bias correction, decay, schedules, step times, accumulation, the training curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bias_correction(steps: Sequence[int], raw: Sequence[float], corrected: Sequence[float], target: float) -> Figure:
    """A moving average that starts at zero, before and after bias correction, beside what it estimates."""
    figure, axis = new_figure()
    axis.axhline(target, color=COLORS["black"], linewidth=1.2, linestyle=":", label="the gradient itself")
    axis.plot(steps, raw, color=COLORS["orange"], label=r"$m$: starts at zero, too small")
    axis.plot(steps, corrected, color=COLORS["blue"], linestyle="--", label=r"$\hat m = m / (1 - \beta_1^t)$")
    axis.set(
        xlabel="step t", ylabel="estimate", ylim=(0, target * 1.25), title="Bias correction repairs the first steps"
    )
    axis.legend(loc="lower right")
    return figure


def decay_paths(paths: Mapping[str, Sequence[float]]) -> Figure:
    """Two weights under AdamW and under Adam + L2, without a signal in the gradient: only decay moves them.

    Args:
        paths: ``"AdamW, large gradients"``, ``"AdamW, small gradients"``, and the same with ``"Adam + L2"``: the
            weight after each step.
    """
    figure, axes = new_figure(1, 2, height=3.5, sharey=True)
    for axis, version in zip(axes, ("AdamW", "Adam + L2"), strict=True):
        for size, color, style in (("large", "blue", "-"), ("small", "orange", "--")):
            path = paths[f"{version}, {size} gradients"]
            axis.plot(path, color=COLORS[color], linestyle=style, label=f"weight with {size} gradients")
        axis.set(title=version, xlabel="optimizer step")
    axes[0].set(ylabel="weight", ylim=(0, 1.05))
    axes[0].legend(loc="lower left")
    return figure


def step_times(
    seconds: Mapping[str, float], recorded: Mapping[str, float], machine: str, reference: str = "torch fused"
) -> Figure:
    """Horizontal bars: time of one ``optimizer.step()`` as a multiple of ``reference``'s; diamonds: recorded ratios.

    Args:
        seconds: version -> seconds of one step, measured now.
        recorded: version -> multiple of ``reference``, measured earlier on ``machine``; it may hold more versions.
    """
    names = list(recorded | seconds)[::-1]
    figure, axis = new_figure(height=0.55 * len(names) + 1.5)
    ratios = [seconds[name] / seconds[reference] if name in seconds else 0 for name in names]
    colors = [COLORS["blue"] if name.startswith("own") else COLORS["grey"] for name in names]
    axis.barh(names, ratios, color=colors, height=0.62)
    axis.plot(
        [recorded[name] for name in names if name in recorded],
        [name for name in names if name in recorded],
        color=COLORS["orange"],
        marker="D",
        markersize=8,
        markeredgecolor=COLORS["black"],
        linestyle="none",
        label=f"recorded: {machine}",
    )
    for name, ratio in zip(names, ratios, strict=True):
        here = f"{ratio:.1f}x  ({seconds[name] * 1e3:.1f} ms)" if name in seconds else "not timed here"
        before = f"; recorded {recorded[name]:.1f}x" if name in recorded else ""
        axis.text(max(ratio, recorded.get(name, 0)) + 0.2, name, here + before, fontsize=11, va="center")
    axis.axvline(1, color=COLORS["black"], linewidth=1.2, linestyle=":", zorder=0)
    longest = max(*ratios, *recorded.values())
    axis.set(xlim=(0, longest * 1.7), xlabel=f"time of one step, in multiples of {reference}")
    axis.set_title("optimizer.step(), measured here: blue is ours, grey is torch's")
    axis.legend(loc="upper center", bbox_to_anchor=(0.42, -0.16), fontsize=11)
    axis.grid(axis="y", visible=False)
    return figure


def accumulation_bug(counts: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """What dividing by the number of micro-batches does.

    Args:
        counts: targets in each micro-batch of one window.
        errors: ``"loss / k"`` and ``"all targets"``: relative error of the accumulated gradient against the big batch,
            one value per window.
    """
    figure, (left, right) = new_figure(1, 2, height=3.7)
    fair, places = 1 / sum(counts), range(len(counts))
    weights = [1 / (len(counts) * count) / fair for count in counts]
    bars = left.bar(places, weights, color=COLORS["orange"], width=0.65)
    left.bar_label(bars, [f"{weight:.1f}x" for weight in weights], fontsize=11, padding=2)
    left.axhline(1, color=COLORS["black"], linewidth=1.2, linestyle=":")
    left.set_xticks(places, [f"{count} targets" for count in counts], fontsize=10)
    left.set(ylabel="relative to a fair share", title="Weight under loss / k", ylim=(0, max(weights) * 1.18))
    for (name, values), color, marker in zip(errors.items(), ("orange", "blue"), ("o", "s"), strict=True):
        right.semilogy(range(1, len(values) + 1), values, marker=marker, color=COLORS[color], label=name)
    right.set(xlabel="window", ylabel="relative gradient error", title="Against the big batch")
    right.set_xticks(range(1, len(next(iter(errors.values()))) + 1))
    wrong, exact = errors["loss / k"], errors["all targets"]
    right.text(1, max(wrong) * 4, f"{min(wrong):.0%} to {max(wrong):.0%}", fontsize=11)
    right.text(1, max(exact) * 4, "rounding", fontsize=11)
    right.set_ylim(min(exact) / 30, max(wrong) * 200)
    right.legend(loc="center right")
    return figure


def training_curve(history: Sequence[Mapping[str, float]], max_grad_norm: float, smooth: int = 25) -> Figure:
    """Training loss (running mean), validation loss, and below it the gradient norm with the clipping threshold."""
    figure, (top, bottom) = new_figure(2, 1, height=2.7, sharex=True)
    steps = [record["step"] for record in history]
    losses = [record["loss"] for record in history]
    means = [sum(losses[max(0, i - smooth + 1) : i + 1]) / min(i + 1, smooth) for i in range(len(losses))]
    top.plot(steps, losses, color=COLORS["sky"], alpha=0.35, linewidth=0.8)
    top.plot(steps, means, color=COLORS["blue"], label=f"training, mean of {smooth} steps")
    checked = [record for record in history if "eval_loss" in record]
    top.plot(
        [record["step"] for record in checked],
        [record["eval_loss"] for record in checked],
        color=COLORS["red"],
        marker="o",
        linestyle="--",
        label="validation",
    )
    top.set(ylabel="loss (nats: natural log)", title="Loss")
    top.legend()
    norms = [record["grad_norm"] for record in history]
    bottom.semilogy(steps, norms, color=COLORS["green"], linewidth=1)
    bottom.axhline(max_grad_norm, color=COLORS["black"], linewidth=1.2, linestyle=":", label="clipped above this")
    bottom.set(xlabel="optimizer step", ylabel="gradient norm (L2)", title="Gradient norm before clipping")
    bottom.legend(loc="upper right")
    return figure


def learning_rate_bug(right: Sequence[float], wrong: Sequence[float], accumulation: int) -> Figure:
    """The learning rate of a run whose scheduler is stepped once per micro-batch, beside the intended one."""
    figure, axis = new_figure(height=3.1)
    axis.plot(right, color=COLORS["blue"], label="one scheduler step per optimizer step")
    axis.plot(wrong, color=COLORS["red"], linestyle="--", label=f"one per micro-batch (accumulation {accumulation})")
    axis.set(xlabel="optimizer step", ylabel="learning rate factor", title="The schedule runs out early")
    axis.legend()
    return figure
