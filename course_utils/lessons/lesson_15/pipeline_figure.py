"""A pipeline's step, drawn: what each stage computes when, and where it waits for the others (lesson 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.launch.planner import pipeline, speed
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course_utils.launch.planner.plan import Plan


def pipeline_chart(plan: Plan) -> Figure:
    """One step of a pipelined plan: a lane per stage, a box per pass, with the number of its micro-batch.

    Args:
        plan: of a few stages and micro-batches, else the boxes are too narrow for their numbers.
    """
    alt = (
        "A lane for each stage over the time of one step. Micro-batch 1 goes down through all stages, forward, and "
        "comes up again, backward. In between each stage does one forward and one backward pass in turn. Later stages "
        "begin later and end earlier, earlier ones wait in the middle: what is empty is the bubble."
    )
    stages, number = plan.pipeline.stages, plan.pipeline.micro_batches
    forward = speed.forward_share(plan.spec, plan.shape)
    seconds = [(stage.seconds * forward, stage.seconds * (1 - forward)) for stage in stages]
    figure, axis = new_figure(height=0.55 * len(stages) + 1.6, alt=alt)
    looks = {"forward": ("sky", "black"), "backward": ("blue", "white")}
    for (kind, one, place), (start, end) in pipeline.schedule(seconds, number).items():
        color, ink = looks[kind]
        label = kind if one == place == 0 else None
        axis.barh(place, end - start, left=start, height=0.8, color=COLORS[color], edgecolor="white", label=label)
        axis.text((start + end) / 2, place, str(one + 1), ha="center", va="center", color=ink, fontsize=9.5)
    axis.invert_yaxis()
    axis.set_yticks(range(len(stages)), [f"stage {place + 1}" for place in range(len(stages))])
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="seconds of computing in one step")
    axis.set_title(f"{len(stages)} stages, {number} micro-batches: bubble {plan.pipeline.bubble:.0%}", fontsize=12)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=10)
    return figure
