"""Figures of lesson 15: what lies on each GPU under every strategy, and how it changes during a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.launch.memory import GIB
from course_utils.teach.figures.core import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.launch.plan import Plan

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
        plans: of one run on one kind of GPU, as ``course_utils.launch.plan.strategies`` returns them.
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
