"""Charts of lesson 12: bytes a rank holds, gathered memory over a step, volumes. Drawings: ``diagrams``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from course_utils.lessons.lesson_12.diagrams import cut, dtensor, meshes, one_step, stages, two_linears
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cut", "dtensor", "gathered", "held_bytes", "meshes", "one_step", "stages", "two_linears", "volumes"]
STATE_COLORS = {"parameters": COLORS["purple"], "gradients": "#C4C4C4", "optimizer": COLORS["green"]}
GATHERED = {"facecolor": "white", "edgecolor": COLORS["purple"], "hatch": "////"}
CALL_COLORS = {"all-reduce": COLORS["purple"], "all-gather": COLORS["sky"], "reduce-scatter": COLORS["orange"]}


def held_bytes(
    measured: Mapping[str, Mapping[str, int]], formula: Mapping[str, Mapping[str, float]], parameters: int
) -> Figure:
    """Stacked bars: bytes per parameter on a rank by state; a black line where the formula puts the sum.

    Args:
        measured, formula: way -> {"parameters", "gradients", "optimizer", "gathered"} in bytes.
        parameters: of the model.
    """
    alt = (
        "Stacked bars of bytes per parameter on one of two ranks. DDP holds all parameters, gradients and optimizer "
        "state. ZeRO-1 halves the optimizer state, ZeRO-2 the gradients too, ZeRO-3 and fully_shard all three. Hatched "
        "beside these, what is gathered when the forward pass has ended: with ZeRO-3 and fully_shard a little, without "
        "resharding all parameters, more than half of what the states take. A black line on each bar marks the "
        "formula; it lies at the bar's end."
    )
    figure, axis = new_figure(height=3.9, alt=alt)
    names = list(measured)
    left = [0.0] * len(names)
    for state, color in STATE_COLORS.items():
        widths = [measured[name][state] / parameters for name in names]
        axis.barh(names, widths, left=left, color=color, height=0.62, label=state, edgecolor="white")
        for place, (start, width) in enumerate(zip(left, widths, strict=True)):
            axis.text(start + width / 2, place, f"{width:.3g}", ha="center", va="center", fontsize=10.5)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    widths = [measured[name]["gathered"] / parameters for name in names]
    axis.barh(names, widths, left=left, height=0.62, label="gathered", **GATHERED)
    left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, name in enumerate(names):
        x = sum(formula[name].values()) / parameters
        axis.plot([x, x], [place - 0.4, place + 0.4], color=COLORS["black"], linewidth=2.5)
        axis.text(x + 0.2, place, f"{left[place]:.3g}", va="center", fontsize=11, fontweight="bold")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(
        xlim=(0, 18.2),
        xticks=range(0, 17, 4),
        xlabel="bytes per parameter on one rank (line: formula)",
        title="Two ranks, fp32, AdamW",
    )
    axis.legend(ncols=1, fontsize=10.5, loc="lower right")
    return figure


def gathered(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Bytes of gathered parameters over one step, a panel a run; the dashed line is the whole model.

    Args:
        runs: name -> ``task.gathered_over_a_step``'s result.
    """
    alt = (
        "Gathered memory over one step in three panels. Per layer: a flat line, the part outside of the layers, with a "
        "tooth for each layer in the forward and again in the backward pass. Without resharding: stairs up in the "
        "forward pass, stairs down in the backward pass. As one unit: everything until the one exchange of gradients "
        "near the end of the backward pass."
    )
    figure, axes = new_figure(1, len(runs), height=3.0, alt=alt, sharey=True, squeeze=False)
    for axis, (name, run) in zip(axes.flat, runs.items(), strict=True):
        seen, turn = [*run["forward"], *run["backward"]], len(run["forward"])
        axis.axvspan(0, turn, color="#EFF5FA")
        axis.fill_between(range(len(seen)), [100 * value / run["whole"] for value in seen], color=COLORS["sky"])
        axis.axhline(100, color=COLORS["black"], linestyle="--", linewidth=1.2)
        axis.text(turn / 2, 109, "forward", ha="center", fontsize=10)
        axis.text((turn + len(seen)) / 2, 109, "backward", ha="center", fontsize=10)
        axis.set(xlim=(0, len(seen)), ylim=(0, 121), xticks=[])
        axis.set_title(name, fontsize=11.5)
        axis.set_xlabel("operations", fontsize=10.5)
    axes.flat[0].set_ylabel("gathered, % of the model", fontsize=11)
    return figure


def volumes(steps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """What one step exchanges, in multiples of the number of parameters, by collective.

    Args:
        steps: way -> ``task.exchanged_in_a_step``'s result.
    """
    alt = (
        "Stacked bars of the volume of one step. DDP, ZeRO-1 and ZeRO-2 move twice the number of parameters: an "
        "all-reduce, or a reduce-scatter and an all-gather. ZeRO-3 and fully_shard move nearly three times, two "
        "all-gathers and a reduce-scatter. Without resharding it is two again."
    )
    figure, axis = new_figure(height=3.3, alt=alt)
    names = list(steps)
    left = [0.0] * len(names)
    for call, color in CALL_COLORS.items():
        factor = 2 if call == "all-reduce" else 1
        widths = [
            factor * sum(size for name, size in steps[way]["calls"] if name == call) / steps[way]["parameters"]
            for way in names
        ]
        axis.barh(names, widths, left=left, color=color, height=0.6, label=call, edgecolor="white")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, value in enumerate(left):
        axis.text(value + 0.04, place, f"{value:.2f}", va="center", fontsize=11, fontweight="bold")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlim=(0, 4.3), xlabel="elements moved / parameters of the model", title="One step on two ranks")
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=10.5, loc="center right")
    return figure
