"""Charts of lesson 11: gradients, equal runs, bytes, timelines, broken variants. Drawings: ``diagrams``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.lessons.lesson_11.diagrams import buckets, collectives, dealt, ring, ring_history, who_is_who
from course_utils.parallel.collectives import ring_bytes
from course_utils.teach.figure import COLORS, new_figure
from course_utils.training.paired import mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "all_reduce_times",
    "buckets",
    "bytes_sent",
    "collectives",
    "dealt",
    "equality",
    "gradients",
    "ring",
    "ring_history",
    "seeds",
    "timelines",
    "traces",
    "two_runs",
    "who_is_who",
]


def gradients(own: Sequence[Any], average: Any, alone: Any) -> Figure:
    """The gradient of one weight matrix on two ranks, their average, and that of one process on all rows.

    Args:
        own: ``{"gradient": (rows, columns), "targets": int}`` of each rank.
        average, alone: (rows, columns).
    """
    alt = (
        "Four heat maps of one weight matrix's gradient. Those of rank 0 and rank 1 differ. Their average, weighted by "
        "targets, looks like neither, and exactly like the gradient that one process computes on all rows. All "
        "share one scale: orange is negative, white zero, purple positive."
    )
    figure, axes = new_figure(1, 4, height=1.75, alt=alt)
    pictures = {f"rank {r}: {part['targets']} targets": part["gradient"] for r, part in enumerate(own)}
    pictures |= {"averaged": average, "one process": alone}
    limit = max(abs(value) for part in own for row in part["gradient"] for value in row) / 2
    for axis, (name, values) in zip(axes, pictures.items(), strict=True):
        image = axis.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axis.set_title(name, fontsize=10.5)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, ticks=[-limit, 0, limit], format="%.3f", fraction=0.04, pad=0.01)
    bar.ax.tick_params(labelsize=9)
    return figure


def two_runs(one: Sequence[float], two: Sequence[float]) -> Figure:
    """Losses of one process and of two ranks on the same rows."""
    alt = "Training losses of one process and of two ranks by hand: they fall and lie on one another."
    figure, axis = new_figure(height=2.6, alt=alt)
    steps = range(1, len(one) + 1)
    axis.plot(steps, one, color=COLORS["sky"], linewidth=6, label="one process, 8 rows a step")
    axis.plot(steps, two, color=COLORS["black"], linewidth=1.4, linestyle="--", label="two ranks, 4 rows each")
    axis.set(xlabel="optimizer step", ylabel="loss per target (nats)", title="The same run")
    axis.legend()
    return figure


def bytes_sent(counted: Mapping[str, Mapping[int, int]], tensor_bytes: int) -> Figure:
    """What the busiest rank sends in an all-reduce, in sizes of the tensor, against the number of ranks.

    Args:
        counted: "naive" and "ring" -> ranks -> bytes sent by the rank that sends most.
    """
    alt = (
        "Bytes sent by the busiest rank against the number of ranks. With the naive way they rise in a straight line. "
        "With the ring they approach twice the tensor; the counted points lie on the formula 2(N-1)/N."
    )
    figure, axis = new_figure(height=2.8, alt=alt)
    sizes = list(counted["ring"])
    axis.plot(sizes, [b / tensor_bytes for b in counted["naive"].values()], "s-", color=COLORS["red"], label="naive")
    formula = [ring_bytes(tensor_bytes // 4, size) / tensor_bytes for size in sizes]
    axis.plot(sizes, formula, color=COLORS["sky"], linewidth=6, label="2(N-1)/N")
    axis.plot(sizes, [b / tensor_bytes for b in counted["ring"].values()], "o", color=COLORS["black"], label="ring")
    axis.set(xlabel="ranks N", ylabel="sent / tensor's bytes", title="The busiest rank sends", xticks=sizes)
    axis.set_ylim(0, None)
    axis.legend()
    return figure


def timelines(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """When backward and the exchanges of one step ran, on rank 0.

    Args:
        runs: "naive", "bucketed" -> what ``on_ranks.timeline`` returns.
    """
    alt = (
        "Two timelines of one step. Naive: a bar for backward, and behind it a row of all-reduces. In buckets: the "
        "all-reduces begin while backward is still running, and several are on their way at once."
    )
    figure, axes = new_figure(2, 1, height=2.1, alt=alt, sharex=True)
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        start, end = run["backward"]
        axis.barh(1.05, end - start, left=start, color=COLORS["blue"], height=0.6)
        axis.axvline(end, color="#444444", linestyle=":", linewidth=1.4)
        count = len(run["exchanges"])
        lanes = _lanes(run["exchanges"])
        height = 1.1 / (max(lanes, default=0) + 1)
        for lane, (number, begun, ended) in zip(lanes, run["exchanges"], strict=True):
            color = COLORS["orange"] if number % 2 else COLORS["red"]
            axis.barh(0.6 - height * (lane + 0.5), ended - begun, left=begun, color=color, height=0.8 * height)
        axis.set_yticks([1.05, 0.05], ["backward", "all-reduce"])
        axis.set_ylim(-0.55, 1.45)
        axis.set_title(f"{name}: {count} all-reduces", fontsize=11.5)
        axis.grid(axis="y", visible=False)
    axes[-1].set_xlabel("milliseconds since backward began (this machine)")
    return figure


def traces(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """What the profiler of rank 0 recorded of a backward pass, a panel a run.

    Args:
        runs: name -> what ``on_ranks.traced`` returns.
    """
    alt = (
        "Three recorded timelines of a backward pass: autograd's operations with a tick for each finished gradient, "
        "below them a triangle for each call of all-reduce, below that the threads that carry them out. Naive: all "
        "calls lie behind the last gradient. In buckets and in DDP: most calls and exchanges lie among the gradients, "
        "the last ones at their end."
    )
    figure, axes = new_figure(len(runs), 1, height=1.6, alt=alt)
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        axis.broken_barh([(b, e - b) for b, e in run["backward"]], (0.75, 0.5), color=COLORS["blue"])
        axis.vlines(run["gradients"], 1.3, 1.6, color=COLORS["black"], linewidth=0.8)
        axis.axvline(run["gradients"][-1], color="#444444", linestyle=":", linewidth=1.4)
        axis.plot(run["calls"], [0.45] * len(run["calls"]), "v", color=COLORS["red"], markersize=6, linestyle="none")
        threads = sorted({thread for thread, _, _ in run["exchanges"]})
        height = 0.6 / max(1, len(threads))
        for thread, begin, end in run["exchanges"]:
            low = 0.2 - height * (threads.index(thread) + 1)
            axis.broken_barh([(begin, end - begin)], (low, 0.85 * height), color=COLORS["orange"])
        axis.set_yticks([1.45, 1.0, 0.45, -0.1], ["gradients", "backward", "calls", "all-reduce"], fontsize=9.5)
        axis.set_ylim(-0.5, 1.7)
        axis.set_title(f"{name}: {len(run['calls'])} calls", fontsize=11)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="x", labelsize=9.5)
    axes[-1].set_xlabel("milliseconds since backward began (this machine, slowed by the profiler)")
    return figure


def _lanes(exchanges: Sequence[Sequence[float]]) -> list[int]:
    """For each exchange ``(number, begun, ended)`` the first lane that is free; there are two lanes at least."""
    free_at, found = [float("-inf")] * 2, []
    for number, begun, ended in exchanges:
        free = [lane for lane, moment in enumerate(free_at) if moment <= begun]
        lane = number % 2 if int(number) % 2 in free else min(free, default=len(free_at))
        free_at[lane : lane + 1] = [ended]
        found.append(int(lane))
    return found


def equality(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How far each run's final weights are from one process: with as many micro-batches, and in one batch.

    Args:
        runs: name -> what ``train_data_parallel`` returned on rank 0.
    """
    alt = (
        "Largest difference of a final weight, on a logarithmic axis with zero at its left end. Against one "
        "process with two micro-batches: zero for all five ways. Against one process in one batch: some millionths. "
        "Only the Trainer that divides by each rank's own targets is thousands of times farther away."
    )
    figure, axis = new_figure(height=3.0, alt=alt)
    names = list(runs)[::-1]
    for column, label, marker, color in (
        ("from_micro_batches", "one process, two micro-batches", "s", COLORS["blue"]),
        ("from_alone", "one process, one batch", "o", COLORS["red"]),
    ):
        values = [runs[name][column] for name in names]
        axis.plot(values, range(len(names)), marker, color=color, markersize=9, label=label)
    axis.set_xscale("symlog", linthresh=1e-8, linscale=0.6)
    axis.set_xlim(-3e-9, 0.3)
    axis.set_xticks([0, 1e-7, 1e-5, 1e-3, 1e-1], ["0", "1e-7", "1e-5", "1e-3", "0.1"])
    axis.minorticks_off()
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set(xlabel="largest difference of a weight after the run")
    axis.legend(title="against", loc="upper right", fontsize=10, title_fontsize=10)
    return figure


def seeds(apart: Mapping[str, Sequence[float]], worse: Sequence[float]) -> Figure:
    """Models that began different: how far apart they stay, and what that costs.

    Args:
        apart: name -> distance between the ranks after each step.
        worse: for each seed, loss of rank 0's model without an equal start minus the loss with one.
    """
    alt = (
        "Left: the distance between two ranks that began with different weights hardly falls; with rank 0's "
        "weights for all it is zero. Right: for three seeds, how much higher the loss on unseen rows is without the "
        "equal start, with the interval of the mean."
    )
    figure, (left, right) = new_figure(1, 2, height=2.9, alt=alt)
    for (name, values), color in zip(apart.items(), (COLORS["red"], COLORS["blue"]), strict=True):
        left.plot(range(1, len(values) + 1), values, color=color, label=name)
    left.set(xlabel="step", ylabel="largest difference", title="Between the ranks", ylim=(-0.01, None))
    left.legend(fontsize=10, loc="center right")
    interval = mean_interval(worse)
    half = interval.high - interval.value
    right.errorbar(interval.value, 0.3, xerr=half, fmt="D", color=COLORS["blue"], capsize=5, markersize=8)
    right.plot(worse, [0] * len(worse), "o", color=COLORS["black"])
    right.axvline(0, color="#444444", linewidth=1.2)
    right.set_yticks([0, 0.3], ["three seeds", "mean, 95%\n(Student's t)"])
    right.set(ylim=(-0.4, 0.7), xlabel="loss without minus with equal start", title="On unseen rows")
    right.grid(axis="y", visible=False)
    right.locator_params(axis="x", nbins=5)
    return figure


def all_reduce_times(sizes: Sequence[int], times: Mapping[str, Sequence[float]]) -> Figure:
    """Milliseconds of an all-reduce against its size, both axes logarithmic."""
    alt = (
        "Time of an all-reduce against the number of bytes, on logarithmic axes: torch's and the ring by hand. For "
        "small tensors it hardly depends on the size; for large ones it grows with it."
    )
    figure, axis = new_figure(height=2.8, alt=alt)
    for (name, values), marker in zip(times.items(), ("o", "s"), strict=True):
        axis.loglog([4 * size for size in sizes], values, f"{marker}-", label=name)
    axis.set(xlabel="bytes", ylabel="milliseconds", title="Two ranks on this machine (gloo)")
    axis.legend()
    return figure
