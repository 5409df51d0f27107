"""Charts of lesson 13: bytes per rank, distances to one process, buckets, rates, volumes, plans. Drawings: diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.lessons.lesson_13.diagrams import annotated, filled, flow, gathering, table
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "annotated",
    "bytes_per_rank",
    "buckets",
    "by_size",
    "distances",
    "filled",
    "flow",
    "gathering",
    "offload",
    "rates",
    "table",
    "volumes",
]
KINDS = {
    "parameters": COLORS["blue"],
    "gradients": COLORS["orange"],
    "master copies": COLORS["sky"],
    "optimizer": COLORS["green"],
}
PLANNED = ("weights", "gradients", "master copies", "optimizer")  # the same kinds in the planner's words


def bytes_per_rank(
    measured: Mapping[str, Mapping[str, int]], predicted: Mapping[str, Mapping[str, float]], alt: str = ""
) -> Figure:
    """Stacked bars, one a run, of bytes on rank 0 in MB; black marks show the predicted ends of the parts.

    Args:
        measured: run -> kind of state -> bytes.
        predicted: the same by the formula.
    """
    alt = alt or (
        "Four stacked bars, each shorter than the one above: bytes on rank 0 of two in data parallel, ZeRO-1, 2 and 3. "
        "The optimizer's part halves from stage 1 on, where a part of master copies comes in; gradients halve from "
        "stage 2 on, parameters in stage 3. Black marks, the predicted ends of the parts, lie on the measured ends; in "
        "ZeRO-2 the gradients, and all that follows, end a little beyond them."
    )
    figure, axis = new_figure(height=3.3, alt=alt)
    names = list(measured)[::-1]
    for place, name in enumerate(names):
        left = mark = 0.0
        for kind, color in KINDS.items():
            size = measured[name][kind] / 1e6
            label = kind if place == len(names) - 1 else None
            axis.barh(place, size, left=left, color=color, height=0.6, label=label)
            left += size
            mark += predicted[name][kind] / 1e6
            axis.plot([mark, mark], [place - 0.38, place + 0.38], color="black", linewidth=1.4)
        axis.text(left + 0.03, place, f"{left:.2f} MB", va="center", fontsize=10.5)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="MB on rank 0 (black: predicted)", title="What a rank holds between two micro-batches")
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 1.22 * max(sum(m.values()) for m in measured.values()) / 1e6)
    axis.set_ylim(-0.6, len(names) + 0.1)
    axis.legend(ncols=4, loc="upper left", fontsize=10, columnspacing=1.0, handlelength=1.2)
    return figure


def distances(
    rows: Sequence[tuple[str, float, float]], title: str = "Largest difference to one process", alt: str = ""
) -> Figure:
    """A dot a row on a logarithmic axis, and a tick at its bound.

    Args:
        rows: (name, difference, bound).
    """
    beyond = [name for name, value, bound in rows if value > bound]
    alt = alt or (
        "One dot a way of training, on a logarithmic axis: the largest difference of a final weight to one process. "
        f"{'All but one' if len(beyond) == 1 else 'All'} lie left of their bounds, at the size of float32 rounding, "
        "with hardly a difference between them."
        + "".join(f" {name}, in red, lies right of its bound, a dotted mark." for name in beyond)
    )
    figure, axis = new_figure(height=0.9 + 0.27 * len(rows), alt=alt)
    floor = 1e-8
    for place, (_, value, bound) in enumerate(reversed(rows)):
        inside = value <= bound
        color = COLORS["blue"] if inside else COLORS["red"]
        axis.plot(max(value, floor), place, "o", color=color, markersize=7, clip_on=False)
        style = "-" if inside else ":"
        axis.plot([bound, bound], [place - 0.35, place + 0.35], style, color="black", linewidth=1.6)
        if value == 0:
            axis.text(floor * 1.6, place, "equal, bit for bit", fontsize=9.5, va="center", color="#444444")
    axis.set_xscale("log")
    axis.set_xlim(floor, 3e-2)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)], fontsize=10)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set(xlabel="largest difference of a weight (black: the bound)", title=title)
    return figure


def buckets(counts: Mapping[int, Mapping[str, int]]) -> Figure:
    """Collectives of a step for several ``reduce_bucket_size``, stages 2 and 3 side by side."""
    alt = (
        "Pairs of bars: calls that reduce gradients in a step, for falling bucket sizes. Everything in one bucket is "
        "one call; the smaller the bucket, the more calls, in stage 2 as in stage 3."
    )
    figure, axis = new_figure(height=2.8, alt=alt)
    for offset, (stage, color) in zip((-0.2, 0.2), (("ZeRO-2", "blue"), ("ZeRO-3", "orange")), strict=True):
        values = [count[stage] for count in counts.values()]
        bars = axis.bar([i + offset for i in range(len(counts))], values, 0.38, color=COLORS[color], label=stage)
        axis.bar_label(bars, fontsize=10, padding=2)
    axis.set_xticks(range(len(counts)), [f"{size:,}" for size in counts])
    top = max(max(count.values()) for count in counts.values())
    axis.set(xlabel="reduce_bucket_size, elements", ylabel="calls a step", ylim=(0, 1.25 * top))
    axis.set_title("Reductions of gradients in one step")
    axis.legend(loc="upper left")
    axis.grid(axis="x", visible=False)
    return figure


def rates(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Learning rates step by step, the planned one as a wide grey line."""
    alt = (
        "Learning rates that fall to zero. Stepped by the engine alone the rate follows the plan. Stepped by the "
        "engine and by the loop it falls twice as fast and is zero in the middle of the run."
    )
    figure, axis = new_figure(height=2.7, alt=alt)
    styles = (("-", 8, "#D5D5D5"), ("--", 2, COLORS["blue"]), ("-", 2.2, COLORS["red"]))
    for (name, values), (style, width, color) in zip(curves.items(), styles, strict=True):
        axis.plot(range(1, len(values) + 1), values, style, linewidth=width, color=color, label=name)
    axis.set(xlabel="optimizer step", ylabel="learning rate", title="One schedule, stepped once and stepped twice")
    axis.legend(fontsize=10)
    return figure


def volumes(parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """What a step moves, in model sizes, by collective; an all-reduce counts twice.

    Args:
        parts: way of training -> collective -> model sizes moved.
    """
    alt = (
        "Stacked bars of what a step of one micro-batch moves, in model sizes. Data parallel two; ZeRO-1 and ZeRO-2 of "
        "DeepSpeed three, an all-reduce and an all-gather; ZeRO-3 and FSDP2 two where weights are kept after the "
        "forward pass, a reduce-scatter and an all-gather; FSDP2 three where they are freed and gathered again, "
        "ZeRO-3 more than that."
    )
    figure, axis = new_figure(height=0.9 + 0.36 * len(parts), alt=alt)
    colors = {"all-reduce": COLORS["orange"], "reduce-scatter": COLORS["sky"], "all-gather": COLORS["blue"]}
    names = list(parts)[::-1]
    for place, name in enumerate(names):
        left = 0.0
        for kind, color in colors.items():
            size = parts[name].get(kind, 0.0)
            axis.barh(place, size, left=left, color=color, height=0.62)
            left += size
        axis.text(left + 0.05, place, f"{left:.2f}", va="center", fontsize=10.5)
    for kind, color in colors.items():
        axis.barh(0, 0, color=color, label=kind)
    axis.set_yticks(range(len(names)), names, fontsize=10.5)
    most = max(sum(part.values()) for part in parts.values())
    axis.set(
        xlabel="model sizes moved in a step of one micro-batch", xlim=(0, 1.15 * most), ylim=(-0.6, len(names) + 0.3)
    )
    axis.legend(ncols=3, loc="upper left", fontsize=10)
    axis.grid(axis="y", visible=False)
    return figure


def offload(plans: Mapping[str, tuple[float, float]], limit: float, host: float) -> Figure:
    """GiB on each GPU and in the machine's memory, a row a way; lines show what there is.

    Args:
        plans: name -> (GiB on a GPU, GiB of host memory).
        limit: GiB of a GPU.
        host: GiB of the machine.
    """
    alt = (
        "Two panels of bars. Left, memory on each GPU: without offloading a large model does not fit, with the "
        "optimizer in host memory it does, with parameters there too it needs least. Right, the machine's memory, "
        "which offloading fills instead."
    )
    figure, (left, right) = new_figure(1, 2, height=2.9, alt=alt, sharey=True)
    names = list(plans)[::-1]
    for axis, index, most, title in ((left, 0, limit, "on each GPU"), (right, 1, host, "in the machine")):
        values = [plans[name][index] for name in names]
        colors = [COLORS["red"] if value > most else COLORS["blue"] for value in values]
        bars = axis.barh(names, values, color=colors, height=0.6)
        axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=10)
        axis.axvline(most, color="black", linestyle="--", linewidth=1.4)
        axis.set(xlim=(0, 1.25 * max([*values, most])), xlabel="GiB (dashed: what there is)")
        axis.set_title(title, fontsize=12)
        axis.grid(axis="y", visible=False)
    left.tick_params(axis="y", labelsize=10)
    return figure


def by_size(plans: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A grid: models by strategies, GiB on a GPU, green where it fits; the fastest that fits in a frame.

    Args:
        plans: model -> strategy -> plan (``course_utils.launch.planner.plan.Plan``).
    """
    from matplotlib.patches import Rectangle

    alt = (
        "A grid of models, small ones on top, by strategies on eight GPUs, from data parallel on the left to "
        "offloading on the right. The smallest models are green in every column; the larger the model, the more "
        "columns turn red, from the left; the largest is green in the offloading columns only. Frames, the fastest "
        "that fit, lie on data parallel where it fits, on ZeRO-3 and FSDP2 where they fit, and on optimizer "
        "offloading for the largest model; never on ZeRO-1 or 2."
    )
    models, ways = list(plans), list(next(iter(plans.values())))
    figure, axis = new_figure(height=0.9 + 0.46 * len(models), alt=alt)
    for row, model in enumerate(reversed(models)):
        found = plans[model]
        fitting = [way for way in ways if found[way].fits]
        best = max(fitting, key=lambda way: found[way].speed.tokens_per_second) if fitting else None
        for column, way in enumerate(ways):
            color = "#DDF1EA" if found[way].fits else "#F8DDCC"
            axis.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor="white", linewidth=2))
            text = f"{found[way].total / 2**30:,.0f}"
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=11)
        if best is not None:
            for way in ways:  # ties: planned speeds within 1 %
                speed = found[way].speed.tokens_per_second
                if found[way].fits and speed >= 0.99 * found[best].speed.tokens_per_second:
                    place = (ways.index(way) + 0.05, row + 0.06)
                    axis.add_patch(Rectangle(place, 0.9, 0.88, fill=False, edgecolor="black", linewidth=1.8))
    axis.set(xlim=(0, len(ways)), ylim=(0, len(models)))
    axis.set_xticks([i + 0.5 for i in range(len(ways))], ways, fontsize=9.5)
    axis.set_yticks([i + 0.5 for i in range(len(models))], list(reversed(models)), fontsize=10.5)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    has = found[ways[0]].limit / 2**30
    axis.set_title(f"GiB on a GPU, which has {has:.1f}; green: fits; frame: fastest that fits", fontsize=12)
    return figure
