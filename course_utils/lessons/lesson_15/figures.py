"""Charts of lesson 15: memory under every strategy and during a step, what a step's time is spent on, its overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.launch.planner import memory, speed
from course_utils.launch.planner.memory import GIB
from course_utils.lessons.lesson_15.diagrams import collectives, flow, rendezvous, requeue, sharding
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.launch.planner.plan import Plan

__all__ = [
    "collectives", "flow", "overlap", "rendezvous", "requeue", "sharding",
    "step_memory", "step_times", "strategy_memory",
]  # fmt: skip

# What is drawn as one colour: the planner's components, from what must be there to what a smaller batch would save.
GROUPS = {
    "weights and copies": ("weights", "master copies", "autocast copies"),
    "gradients, buckets": ("gradients", "buckets"),
    "optimizer": ("optimizer",),
    "whole gradients (accumulation)": ("whole gradients",),
    "gathered units": ("gathered units",),
    "activations": ("activations",),
    "logits": ("logits",),
    "margin": ("margin",),
}
COLOR_OF = dict(zip(GROUPS, ("blue", "sky", "green", "sky", "purple", "orange", "red", "grey"), strict=True))
# Told apart without any colour, too.
HATCHED = {"whole gradients (accumulation)": "\\\\", "gathered units": "//", "logits": "xx", "margin": ".."}


# Part of ``Speed``, its color, its name in the legend.
PARTS = (
    ("compute", COLORS["blue"], "computing"),
    ("exposed", COLORS["red"], "waiting for communication"),
    ("offload", COLORS["purple"], "waiting for host memory"),
)


def _stack(axis: Axes, rows: Sequence[str], memories: Sequence[Mapping[str, int]]) -> None:
    """Horizontal stacked bars, one per row, in GiB; the first row on top."""
    left = [0.0] * len(rows)
    for group, components in GROUPS.items():
        sizes = [sum(memory[name] for name in components) / GIB for memory in memories]
        look = {"color": COLORS[COLOR_OF[group]], "hatch": HATCHED.get(group), "edgecolor": "white", "linewidth": 0.5}
        axis.barh(rows, sizes, left=left, height=0.66, label=group, **look)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def _draw_limit(axis: Axes, limit: float, where: str) -> None:
    """The GPU's memory as a line, with its name at the given end (``"top"`` or ``"bottom"`` of the line)."""
    axis.axvline(limit, color=COLORS["black"], linewidth=1.6, linestyle="--")
    place = {"top": (1.005, "bottom"), "bottom": (0.0, "top")}[where]
    axis.text(
        limit, place[0], f"one GPU: {limit:.1f} GiB", transform=axis.get_xaxis_transform(), ha="center", va=place[1]
    )


def strategy_memory(plans: Sequence[Plan]) -> Figure:
    """Stacked memory of one GPU at its tightest moment, one bar per strategy, the GPU's limit, and what stays free.

    Args:
        plans: of one run on one kind of GPU, as ``course_utils.launch.planner.plan.strategies`` returns them.
    """
    alt = (
        "Stacked memory of one GPU when it is tightest, a bar per strategy, with the GPU's limit as a dashed line. A "
        "thin line from a bar's end to the limit is what stays free, in GiB at the right, with the seconds of a step. "
    )
    if any(one.total > one.limit for one in plans):
        alt += "Bars beyond the limit say by how much. "
    alt += "Sharding shrinks the states; activations and logits stay."
    figure, axis = new_figure(height=0.42 * len(plans) + 1.9, alt=alt)
    _stack(axis, [one.name for one in plans], [one.memory for one in plans])
    limit = plans[0].limit / GIB
    _draw_limit(axis, limit, "top")
    widest = max([limit, *(one.total / GIB for one in plans)])
    for row, one in enumerate(plans):
        total = one.total / GIB
        if total <= limit:
            axis.hlines(row, total, limit, color=COLORS["green"], linewidth=1.4)
        free = f"{limit - total:.0f} GiB free, {one.speed.step:.2f} s a step"
        text = free if total <= limit else f"{total - limit:.0f} GiB too much"
        color = "#333333" if total <= limit else COLORS["red"]
        axis.text(max(total, limit) + 0.015 * widest, row, text, va="center", fontsize=10.5, color=color)
    axis.set(xlim=(0, widest * 1.5), xlabel="memory of one GPU when it is tightest (GiB)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=10.5)
    return figure


def step_memory(one: Plan) -> Figure:
    """The same stack at the four moments of a step: activations go while gradients come."""
    alt = (
        "Stacked memory of one GPU at four moments of a step, with the GPU's limit. It is largest when the loss is "
        "differentiated, with all activations and the logits, shrinks as the backward pass frees activations and "
        "gradients come, and is smallest at the optimizer's update."
    )
    figure, axis = new_figure(height=3.6, alt=alt)
    moments = {"loss": "loss is differentiated", "last layer": "backward: last layer"}
    moments |= {"first layer": "backward: first layer", "step": "optimizer step"}
    _stack(axis, [moments[moment] for moment in one.moments], list(one.moments.values()))
    limit = one.limit / GIB
    _draw_limit(axis, limit, "top")
    axis.set(xlim=(0, max(one.total / GIB, limit) * 1.1), xlabel="memory of one GPU (GiB)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=10.5)
    return figure


def step_times(panels: Mapping[str, Sequence[Plan]]) -> Figure:
    """Seconds of an optimizer step, stacked by what they are spent on; one panel per title, one bar per plan.

    Args:
        panels: title -> plans, in the same order in every panel.
    """
    count = max(map(len, panels.values()))
    alt = (
        "Time of an optimizer step, a panel per network and a bar per strategy: computing, the same for all, then "
        "waiting. On the fast network only DDP and, a little, ZeRO-1 and ZeRO-2 wait. On the slow one waiting is most "
        "of every bar except FSDP2 with two replicas, for which it is a third."
    )
    figure, axes = new_figure(1, len(panels), alt=alt, height=1.7 + 0.36 * count, sharey=True, squeeze=False)
    longest = max(plan.speed.step for plans in panels.values() for plan in plans)
    parts = [part for part in PARTS if any(getattr(p.speed, part[0]) for plans in panels.values() for p in plans)]
    for axis, (title, plans) in zip(axes.flat, panels.items(), strict=True):
        left = [0.0] * len(plans)
        for part, color, label in parts:
            widths = [getattr(plan.speed, part) for plan in plans]
            axis.barh(range(len(plans)), widths, left=left, height=0.62, color=color, label=label)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for row, (plan, end) in enumerate(zip(plans, left, strict=True)):
            note = f"{end:.1f} s" if plan.fits else f"{end:.1f} s, does not fit"
            axis.text(end + 0.015 * longest, row, note, va="center", fontsize=9.5, color="#333333")
        axis.set(xlabel="seconds per optimizer step", xlim=(0, longest * 1.3))
        axis.set_title(title, fontsize=12)
        axis.set_yticks(range(len(plans)), [plan.name for plan in plans])
        axis.grid(axis="y", visible=False)
    axes.flat[0].invert_yaxis()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(parts), fontsize=10)
    return figure


def overlap(plans: Sequence[Plan]) -> Figure:
    """One step over time: what a GPU computes, what it sends meanwhile, and where it waits; two lanes per plan.

    Micro-batches run one after the other; a pass ends when both its computing and its communication have ended.
    """
    alt = (
        "For each plan two lanes over time. The upper lane: forward and backward passes of the micro-batches, with "
        "gaps where the GPU waits; the lower lane: what is sent. Gradients that are reduced once are sent during the "
        "last backward pass only, and stick out behind it; reduced in every micro-batch they stick out each time. "
        "ZeRO-1 then also waits for the updated weights."
    )
    figure, axes = new_figure(len(plans), 1, height=1.15, alt=alt, sharex=True, squeeze=False)
    looks = {"forward": COLORS["sky"], "backward": COLORS["blue"], "sends": COLORS["orange"]}
    for axis, one in zip(axes.flat, plans, strict=True):
        end = 0.0
        for name, computing, sending in _passes(one):
            if computing:
                color = looks["forward" if name == "forward" else "backward"]
                axis.barh(1, computing, left=end, height=0.74, color=color, edgecolor="white", linewidth=0.8)
            axis.barh(0, sending, left=end, height=0.74, color=looks["sends"], edgecolor="white", linewidth=0.8)
            if sending > computing:
                wait = sending - computing
                look = {"color": "white", "edgecolor": COLORS["red"], "hatch": "////", "linewidth": 0.8}
                axis.barh(1, wait, left=end + computing, height=0.74, **look)
            end += max(computing, sending)
        axis.set_yticks((0, 1), ("sends", "computes"))
        axis.set_title(f"{one.name}: {end:.1f} s", fontsize=11.5)
        axis.grid(axis="y", visible=False)
    axes.flat[-1].set_xlabel("seconds of one optimizer step")
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=name) for name, color in looks.items()]
    handles.append(Patch(facecolor="white", edgecolor=COLORS["red"], hatch="////", label="waits"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=10)
    return figure


def _passes(one: Plan) -> list[tuple[str, float, float]]:
    """(window, seconds of computing, seconds of sending) of every pass of a step, in the order in which they run."""
    found = speed.windows(one.spec, one.shape, memory.parameters(one.spec, one.shape), one.reduction)
    g = one.spec.accumulation_steps
    passes = []
    for index in range(g):
        forward = found["forward"]
        passes.append(("forward", forward.compute / g, forward.communication / g))
        window = found["last backward" if index == g - 1 else "backward"]
        share = 1 if index == g - 1 else g - 1
        passes.append(("backward", window.compute / share, window.communication / share))
    return [*passes, ("update", 0.0, found["update"].communication)]
