"""Drawings of lesson 11: collectives as ranks x chunks, the ring's steps, who is who, buckets, dealt rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from course_utils.parallel.collectives import all_reduce_ring
from course_utils.parallel.links import in_threads
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

RANK_COLORS = ("#A9D6F2", "#F7D491", "#E7BCD3", "#D5D5D5")  # pale sky, orange, purple, grey: black text stays legible
SUM = "#8FD3BC"
LETTERS = "ABCD"
TINY_EDGE = "#6B6B6B"


def _cell(axis: Axes, x: float, y: float, text: str, color: str, size: float = 10, **edge) -> None:
    from matplotlib.patches import Rectangle

    options = {"edgecolor": TINY_EDGE, "linewidth": 0.8} | edge
    axis.add_patch(Rectangle((x, y), 0.94, 0.86, facecolor=color, **options))
    axis.text(x + 0.47, y + 0.43, text, ha="center", va="center", fontsize=size)


def _grid(axis: Axes, x: float, cells: Sequence[Sequence[str]]) -> None:
    """A row a rank, rank 0 on top; a cell says whose chunk it is (A0: rank 0's chunk 0), or that it is the sum."""
    ranks = len(cells)
    for rank, row in enumerate(cells):
        for chunk, text in enumerate(row):
            color = "white" if not text else SUM if text[0] == "Σ" else RANK_COLORS[LETTERS.index(text[0])]
            _cell(axis, x + chunk, ranks - 1 - rank, text, color)


def collectives() -> Figure:
    """Four collectives on four ranks, before and after; in each grid a row is a rank and a column a chunk."""
    alt = (
        "Four collectives on four ranks with four chunks each, before and after. Broadcast: all have rank 0's chunks. "
        "All-reduce: all have all sums. Reduce-scatter: rank r has the sum of chunk r. All-gather: from one chunk on "
        "each rank, all have all chunks."
    )
    figure, axes = new_figure(2, 2, height=2.25, alt=alt)
    whole = [[f"{letter}{chunk}" for chunk in range(4)] for letter in LETTERS]
    sums = [[f"Σ{chunk}" for chunk in range(4)] for _ in range(4)]
    own = [[text if rank == chunk else "" for chunk, text in enumerate(row)] for rank, row in enumerate(whole)]
    only_root = [whole[0], *[[""] * 4] * 3]
    diagonal = [[whole[chunk][chunk] for chunk in range(4)] for _ in range(4)]
    own_sums = [[f"Σ{chunk}" if rank == chunk else "" for chunk in range(4)] for rank in range(4)]
    panels = {
        "broadcast": (only_root, [whole[0]] * 4),
        "all-reduce": (whole, sums),
        "reduce-scatter": (whole, own_sums),
        "all-gather": (own, diagonal),
    }
    for axis, (name, (before, after)) in zip(axes.flat, panels.items(), strict=True):
        _grid(axis, 0, before)
        _grid(axis, 6, after)
        axis.annotate("", (5.8, 2), (4.2, 2), arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.8})
        for rank in range(4):
            axis.text(-0.25, 3.43 - rank, f"rank {rank}", ha="right", va="center", fontsize=9.5)
        axis.set(xlim=(-2, 10.1), ylim=(-0.1, 4.05))
        axis.set_title(name, fontsize=12)
        axis.set_axis_off()
    return figure


def ring_history(ranks: int = 4) -> list[tuple[str, list[list[int]]]]:
    """A real ring all-reduce on pretended ranks: after each step, who is in each chunk of each rank.

    Rank r brings the number 2**r in every chunk, so a sum says which ranks are in it.

    Returns:
        ``(name of the step, [rank][chunk] -> sum)``, the start first.
    """
    start = [[2**rank] * ranks for rank in range(ranks)]

    def run(link):
        seen = []
        numbers = torch.full((ranks,), float(2**link.rank))
        all_reduce_ring(link, numbers, lambda phase, step, parts: seen.append((f"{phase} {step}", torch.cat(parts))))
        return [(name, values.int().tolist()) for name, values in seen]

    by_rank = in_threads(run, ranks)
    steps = [(group[0][0], [values for _, values in group]) for group in zip(*by_rank, strict=True)]
    return [("start", start), *steps]


def ring(history: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> Figure:
    """The chunks after each step of a ring all-reduce; what has just arrived has a thick edge."""
    alt = (
        "A ring all-reduce on four ranks in six steps. In the first three each rank adds one chunk from its left "
        "neighbour, until each rank has one complete sum. In the last three the complete sums travel on around the "
        "ring until all ranks have all four."
    )
    figure, axes = new_figure(2, 4, height=2.05, alt=alt)
    places = [0, 1, 2, 3, 5, 6, 7]
    ranks = len(history[0][1])
    before = history[0][1]
    for place, (name, state) in zip(places, history, strict=True):
        axis = axes.flat[place]
        for rank, row in enumerate(state):
            for chunk, mask in enumerate(row):
                who = "".join(letter for bit, letter in enumerate(LETTERS) if mask >> bit & 1)
                full = len(who) == ranks
                color = SUM if full else RANK_COLORS[LETTERS.index(who)] if len(who) == 1 else "#FFF3B8"
                edge = {"edgecolor": COLORS["red"], "linewidth": 2.6} if mask != before[rank][chunk] else {}
                _cell(axis, chunk, ranks - 1 - rank, f"Σ{chunk}" if full else who, color, 9.5, **edge)
        before = state
        axis.set(xlim=(-0.15, 4.05), ylim=(-0.15, 4.05))
        axis.set_title(name, fontsize=10.5)
    for axis in axes.flat:
        axis.set_axis_off()
    words = "A row is a rank,\na column a chunk.\n\nRed edge: arrived\nfrom the row above\n(row 0: from row 3)."
    words += "\n\nYellow: partial sum.\nGreen: complete."
    axes.flat[4].text(0, 0.5, words, fontsize=10, va="center", transform=axes.flat[4].transAxes)
    return figure


def who_is_who() -> Figure:
    """Two nodes with two ranks each, and the variables that torchrun gives to each."""
    alt = (
        "Two nodes, drawn as frames, with two ranks in each. RANK counts from 0 to 3 over both nodes, LOCAL_RANK from "
        "0 to 1 inside a node, WORLD_SIZE is 4 for all. All meet at MASTER_ADDR and MASTER_PORT, which is rank 0's."
    )
    figure, axis = new_figure(height=2.7, alt=alt)
    from matplotlib.patches import FancyBboxPatch

    for node in range(2):
        x = 51 * node
        frame = FancyBboxPatch((x + 0.5, 8), 48, 24, boxstyle="round,pad=0,rounding_size=1.5", facecolor="#F5F5F5")
        axis.add_patch(frame)
        axis.text(x + 24.5, 29, f"node {node}: one torchrun", ha="center", va="center", fontsize=11, fontweight="bold")
        for local in range(2):
            rank = 2 * node + local
            box = (x + 3 + 22 * local, 10)
            shape = FancyBboxPatch(box, 20.5, 15.5, boxstyle="round,pad=0,rounding_size=1", facecolor=RANK_COLORS[rank])
            axis.add_patch(shape)
            words = f"RANK={rank}\nLOCAL_RANK={local}\nWORLD_SIZE=4"
            axis.text(box[0] + 10.2, 17.7, words, ha="center", va="center", fontsize=10.5, family="monospace")
    axis.text(50, 3.2, "all: MASTER_ADDR=<node 0>  MASTER_PORT=29500", ha="center", fontsize=11, family="monospace")
    axis.set(xlim=(0, 100), ylim=(0, 33))
    axis.set_axis_off()
    return figure


def buckets(model: nn.Module, grouped: Sequence[Sequence[nn.Parameter]]) -> Figure:
    """The model's parameters in their order, as wide as they are large, coloured by the bucket they travel in."""
    alt = (
        "A strip with the parameters in the order of the model, as wide as they have numbers. Bucket 0 holds the last "
        "ones, the last bucket the first ones: backward goes from right to left and fills them in this order."
    )
    figure, axis = new_figure(height=2.0, alt=alt)
    place = {id(parameter): number for number, bucket in enumerate(grouped) for parameter in bucket}
    colors = [COLORS[name] for name in ("sky", "orange", "green", "purple", "grey")]
    x, spans = 0.0, {}
    for parameter in model.parameters():
        number = place[id(parameter)]
        width = parameter.numel() / 1000
        axis.barh(0, width, left=x, color=colors[number % 5], edgecolor="white", height=0.8, linewidth=0.8)
        low, high = spans.get(number, (x, x))
        spans[number] = (min(low, x), max(high, x + width))
        x += width
    for number, (low, high) in spans.items():
        axis.text((low + high) / 2, 0.52, f"bucket {number}", ha="center", va="bottom", fontsize=10)
    axis.annotate("", (0, -0.72), (x, -0.72), arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.8})
    axis.text(x / 2, -0.8, "backward", ha="center", va="top", fontsize=11)
    axis.set(ylim=(-1.25, 0.95), xlim=(-0.5, x + 0.5), yticks=[], xlabel="parameters in the model's order, thousands")
    axis.grid(visible=False)
    axis.spines[["left"]].set_visible(False)
    return figure


def dealt(ways: Mapping[str, Sequence[Sequence[int]]]) -> Figure:
    """Which rank reads which rows in an epoch; rows that are read a second time have a red edge.

    Args:
        ways: setting -> for each rank its row numbers.
    """
    alt = (
        "Eleven rows dealt to three ranks. Filled up: four rows each, one row is read twice and has a red edge. With "
        "drop_last: three rows each, two rows are read by nobody."
    )
    figure, axes = new_figure(1, len(ways), height=2.2, alt=alt)
    for axis, (name, ranks) in zip(axes, ways.items(), strict=True):
        seen: set[int] = set()
        for place in range(max(map(len, ranks))):
            for rank, rows in enumerate(ranks):
                if place < len(rows):
                    again = rows[place] in seen
                    seen.add(rows[place])
                    edge = {"edgecolor": COLORS["red"], "linewidth": 3} if again else {}
                    _cell(axis, place, len(ranks) - 1 - rank, str(rows[place]), RANK_COLORS[rank], 11, **edge)
        for rank in range(len(ranks)):
            axis.text(-0.2, len(ranks) - 0.57 - rank, f"rank {rank}", ha="right", va="center", fontsize=10.5)
        axis.set(xlim=(-1.2, 4.2), ylim=(-0.1, 3.05))
        axis.set_title(name, fontsize=11.5)
        axis.set_axis_off()
    return figure
