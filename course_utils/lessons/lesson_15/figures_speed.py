"""Figures of lesson 15 about time: what a step is spent on, per strategy and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.teach.figures.core import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course_utils.launch.plan import Plan

# Part of ``Speed``, its color, its name in the legend.
PARTS = (
    ("compute", COLORS["blue"], "computing"),
    ("exposed", COLORS["orange"], "waiting for communication"),
    ("offload", COLORS["purple"], "waiting for host memory"),
)


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
