"""What failures cost, drawn: goodput against the checkpoint interval, and against the number of GPUs (lesson 15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.launch.planner import goodput
from course_utils.launch.planner.goodput import Failures
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course_utils.launch.planner.plan import Plan

MINUTES = (0.5, 600)  # between checkpoints, as drawn


def goodput_chart(plan: Plan, gpus: Sequence[int] = (64, 512, 4096, 16_384)) -> Figure:
    """Goodput of the plan's checkpoints and assumptions on other numbers of GPUs.

    Args:
        plan: its checkpoint's size, ``storage``, ``gpu_mtbf`` and ``restart`` are kept.
        gpus: one curve each, at most four.
    """
    alt = (
        "Two charts of goodput, the share of the time whose steps count. Left, against the time between checkpoints, "
        "on a logarithmic axis, a curve for each number of GPUs: each rises, has a flat top and falls; with more GPUs "
        "the top is lower and lies at shorter intervals. Right, at the best interval, against the number of GPUs: "
        "saving while training stands still falls faster than saving in the background."
    )
    figure, (left, right) = new_figure(columns=2, height=3.8, alt=alt, sharey=True)
    spec, (blocking, behind) = plan.spec, goodput.ways_to_save(plan)
    minutes = np.geomspace(*MINUTES, 200)
    colors = [COLORS[name] for name in ("green", "blue", "orange", "red")]
    for number, color in zip(gpus, colors, strict=False):
        failures = Failures(spec.gpu_mtbf * 3600 / number, spec.restart)
        shares = [goodput.goodput(60 * one, failures, blocking) for one in minutes]
        left.plot(minutes, shares, color=color, label=f"{number:,} GPUs")
        best = goodput.best_interval(failures, blocking)
        left.plot(best / 60, goodput.goodput(best, failures, blocking), "o", color=color)
    left.set(xscale="log", xlabel="minutes between checkpoints", ylabel="goodput", ylim=(0, 1.02))
    left.set_title("Training stands still while saving", fontsize=12)
    left.legend(loc="lower center", fontsize=10)
    many = np.geomspace(8, 65_536, 60)
    for saving, color, style in ((blocking, COLORS["black"], "-"), (behind, COLORS["purple"], "--")):
        shares = []
        for number in many:
            failures = Failures(spec.gpu_mtbf * 3600 / number, spec.restart)
            shares.append(goodput.goodput(goodput.best_interval(failures, saving), failures, saving))
        right.plot(many, shares, color=color, linestyle=style, label=saving.kind)
    right.set(xscale="log", xlabel="GPUs")
    right.set_title("At the best interval", fontsize=12)
    right.legend(loc="lower left")
    for axis in (left, right):
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure
