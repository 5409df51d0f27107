"""Figures of lesson 15: what lies on each GPU under every strategy, and how it changes during a step, and
what a step's time is spent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.launch.planner.memory import GIB
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.launch.planner.plan import Plan

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
    ("exposed", COLORS["orange"], "waiting for communication"),
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
    """Stacked memory of one GPU at its tightest moment, one bar per strategy, with the GPU's limit.

    Args:
        plans: of one run on one kind of GPU, as ``course_utils.launch.planner.plan.strategies`` returns them.
    """
    figure, axis = new_figure(height=0.42 * len(plans) + 1.9)
    _stack(axis, [one.name for one in plans], [one.memory for one in plans])
    limit = plans[0].limit / GIB
    _draw_limit(axis, limit, "top")
    widest = max(one.total for one in plans) / GIB
    for row, one in enumerate(plans):
        text = f" {one.total / GIB:.0f}" + ("" if one.fits else " - too much")
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the limit's line may run behind the number
        axis.text(one.total / GIB, row, text, va="center", fontsize=10.5, bbox=paper)
    axis.set(xlim=(0, max(widest * 1.3, limit * 1.1)), xlabel="memory of one GPU when it is tightest (GiB)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=10.5)
    return figure


def step_memory(one: Plan) -> Figure:
    """The same stack at the four moments of a step: activations go while gradients come."""
    figure, axis = new_figure(height=3.6)
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
    figure, axes = new_figure(1, len(panels), height=1.7 + 0.36 * count, sharey=True, squeeze=False)
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
