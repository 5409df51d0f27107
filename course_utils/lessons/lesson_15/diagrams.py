"""Drawings of lesson 15: from a spec to a checked run, collectives, sharding, rendezvous, a job that comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_utils.teach.drawing import arrow, box, canvas
from course_utils.teach.figure import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALE, SKY, SAND, LEAF = "#F2F2F2", "#CFE8F7", "#FBE3B0", "#C5E8DC"


def flow() -> Figure:
    """One spec; the plan, the files, what the tools make of them, what the ranks see."""
    alt = (
        "From left to right: one spec leads to a plan with memory, speed and cost, and to the launch files. Each file "
        "is read by its own tool, which gives the settings as resolved; started, the files give ranks, which write "
        "run.json. Two comparisons close the circle: resolved against the spec, run.json against the plan."
    )
    figure, axis = canvas(2.9, alt, 100, 36)
    box(axis, 1, 13, 16, 10, "spec\nwhat you ask for", SKY)
    box(axis, 25, 23, 21, 10, "plan\nmemory, speed, cost", LEAF)
    box(axis, 25, 4, 21, 10, "launch files\nYAML, JSON, scripts", SAND)
    box(axis, 55, 9, 17, 8, "resolved\nby each file's tool")
    box(axis, 82, 4, 17, 10, "ranks train\nand write run.json")
    arrow(axis, (17, 21), (25, 27))
    arrow(axis, (17, 15), (25, 10))
    arrow(axis, (46, 10), (55, 12.5))
    arrow(axis, (46, 6), (82, 6))
    axis.text(65, 3.2, "started", ha="center", fontsize=9.5)
    look = {"arrowstyle": "<|-|>", "color": COLORS["red"], "linewidth": 1.6, "linestyle": "--"}
    axis.annotate("", (17, 18), (55, 16), arrowprops=look)
    axis.annotate("", (46, 30), (90, 14), arrowprops=look | {"connectionstyle": "arc3,rad=0.12"})
    axis.text(58, 31, "same?", color=COLORS["red"], fontsize=11, fontweight="bold")
    axis.text(34, 18.5, "same?", color=COLORS["red"], fontsize=11, fontweight="bold")
    return figure


def collectives() -> Figure:
    """All-reduce, reduce-scatter and all-gather with two ranks and two numbers."""
    alt = (
        "Three panels, each with two ranks before and after. All-reduce: rank 0 has 1 and 2, rank 1 has 3 and 4; both "
        "end with the sums 4 and 6. Reduce-scatter: the same start, but rank 0 ends with 4 only, rank 1 with 6 only. "
        "All-gather: rank 0 has 4, rank 1 has 6; both end with 4 and 6."
    )
    figure, axis = canvas(2.5, alt, 102, 31)
    whole, sums = (("1", "2"), ("3", "4")), (("4", "6"), ("4", "6"))
    slices = (("4", ""), ("", "6"))
    panels = (("all-reduce", whole, sums), ("reduce-scatter", whole, slices), ("all-gather", slices, sums))
    for panel, (name, before, after) in enumerate(panels):
        x = 9 + 32 * panel
        axis.text(x + 12.5, 28, name, ha="center", fontsize=12, fontweight="bold")
        for rank in range(2):
            y = 14 - 11 * rank
            for place, numbers in ((x, before[rank]), (x + 15, after[rank])):
                for slot, text in enumerate(numbers):
                    color = (SKY, SAND)[slot] if text else "white"
                    box(axis, place + 5 * slot, y, 5, 6, text, color, 11)
            if not panel:
                axis.text(0, y + 3, f"rank {rank}", fontsize=10.5, va="center")
        arrow(axis, (x + 10.5, 11.5), (x + 14.5, 11.5))
        axis.text(x + 5, 22, "before", ha="center", fontsize=9)
        axis.text(x + 20, 22, "after", ha="center", fontsize=9)
    return figure


# Bytes per parameter of weights, gradients and optimizer state, and how many of the three are divided.
STATES = {
    "DDP": ((4, 4, 8), 0),
    "ZeRO-1": ((2, 2, 12), 1),
    "ZeRO-2": ((2, 2, 12), 2),
    "ZeRO-3": ((2, 2, 12), 3),
    "FSDP": ((4, 4, 8), 3),
}


def sharding() -> Figure:
    """What one of four ranks keeps: weights, gradients, optimizer state; and what is gathered for a while."""
    alt = (
        "Five columns: DDP, ZeRO-1, ZeRO-2, ZeRO-3, FSDP. Each has three bars, weights, gradients and optimizer state, "
        "as long as their bytes per parameter: 4, 4 and 8 for DDP and FSDP, 2, 2 and 12 for ZeRO. The coloured part is "
        "what one of four ranks keeps. DDP keeps everything. ZeRO-1 keeps a quarter of the optimizer state, ZeRO-2 "
        "also of the gradients, ZeRO-3 and FSDP a quarter of all three, and gather one layer's weights at a time, "
        "drawn as a small dashed box."
    )
    figure, axis = canvas(2.4, alt, 108, 30)
    for column, (name, (sizes, divided)) in enumerate(STATES.items()):
        x = 15 + 19 * column
        axis.text(x, 27, name, fontsize=12, fontweight="bold")
        for row, size in enumerate(sizes):
            y, length = 18 - 7 * row, 1.2 * size
            box(axis, x, y, length, 5, color="white")
            box(axis, x, y, length if row < 3 - divided else length / 4, 5, color=(SKY, SAND, LEAF)[row])
            axis.text(x + length + 0.6, y + 2.5, str(size), va="center", fontsize=9)
            if divided == 3 and not row:
                left = x + length + 3.2
                axis.plot([left, left + 1, left + 1, left, left], [y, y, y + 5, y + 5, y], "--", color="#6B6B6B", lw=1)
                axis.text(left + 1.8, y + 2.5, "a layer", va="center", fontsize=9)
    for row, state in enumerate(("weights", "gradients", "optimizer")):
        axis.text(13.5, 20.5 - 7 * row, state, ha="right", va="center", fontsize=10)
    return figure


def rendezvous(machines: int = 3, ranks: int = 4) -> Figure:
    """The same command on every machine, a different number in it, and one place to meet."""
    alt = (
        "Three machines, each with one torchrun that starts four ranks, numbered on from machine to machine. Only "
        "node-rank differs: 0, 1, 2. All three torchruns meet at the address and port of machine 0."
    )
    figure, axis = canvas(3.0, alt, 102, 36)
    for machine in range(machines):
        x = 1 + 34 * machine
        box(axis, x, 1, 31, 23, color="white")
        right = machine == machines - 1  # the arrows lean towards the middle
        axis.text(
            x + (30 if right else 1),
            21.3,
            f"machine {machine}",
            fontsize=10,
            va="center",
            ha="right" if right else "left",
        )
        box(axis, x + 2, 11.5, 27, 7, f"torchrun --node-rank={machine}", SAND)
        for local in range(ranks):
            box(axis, x + 2 + 7 * local, 3, 6, 5, f"{machine * ranks + local}", SKY, 10)
            arrow(axis, (x + 5 + 7 * local, 11.5), (x + 5 + 7 * local, 8))
        arrow(axis, (x + 20 - 2 * machine, 18.5), (51 + 14 * (machine - 1), 28.5), COLORS["red"])
    box(axis, 23, 28.5, 56, 6, "meeting point: machine 0, --master-addr : --master-port", LEAF)
    return figure


def requeue() -> Figure:
    """Two stays of one job: warned, saved, ended with 0, queued, resumed."""
    alt = (
        "A timeline of one job in two stays. First stay: steps and checkpoints, then the warning signal; the ranks "
        "finish the step, save, and end with code 0, all before the time limit. At once the job waits in the queue. "
        "Second stay: the same command reads the newest checkpoint and goes on with the next step."
    )
    figure, axis = canvas(2.5, alt, 102, 30)
    box(axis, 1, 12, 40, 6, color=SKY)
    axis.text(11, 15, "first stay: steps", ha="center", va="center", fontsize=10)
    box(axis, 41, 12, 9, 6, "save", LEAF)
    box(axis, 50, 12, 19, 6, "in the queue", "white")
    box(axis, 69, 12, 6, 6, "read", LEAF)
    box(axis, 75, 12, 26, 6, "second stay: steps", SKY)
    for x in (24, 34):
        axis.plot([x, x], [12, 18], color=COLORS["green"], linewidth=3)
    axis.text(29, 6, "checkpoints", ha="center", fontsize=10, color=COLORS["green"])
    notes: Sequence[tuple[float, float, str, float]] = (
        (41, 21, "warning: a signal", 18),
        (50, 7, "exit code 0", 12),
        (69, 21, "the same command", 18),
    )
    for x, y, text, end in notes:
        axis.text(x, y + (1 if y > 15 else -1), text, ha="center", va="bottom" if y > 15 else "top", fontsize=10)
        arrow(axis, (x, y), (x, end))
    axis.plot([55, 55], [18.5, 25], color=COLORS["red"], linestyle="--", linewidth=1.6)
    axis.text(55, 26.5, "time limit of the first stay", ha="center", fontsize=10, color=COLORS["red"])
    return figure
