"""Drawings of lesson 12: what each stage divides, one step of FSDP, a flat buffer, DTensors, meshes, two linears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.teach.drawing import arrow, box, canvas
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANK_COLORS = (COLORS["sky"], COLORS["orange"], "#7FD1B9", "#E5B8D2")
EMPTY = "#F4F4F4"


def stages() -> Figure:
    """What each of two ranks keeps of parameters, gradients and optimizer state, stage by stage."""
    alt = (
        "Four columns: DDP, ZeRO-1, ZeRO-2, ZeRO-3 or FSDP. In each, two ranks with three bars: parameters, gradients "
        "and the twice as long optimizer state. The coloured part of a bar is what the rank keeps: all of it, or its "
        "own half; the pale half is only on the other rank. DDP keeps all whole; each stage halves one bar more."
    )
    figure, axis = canvas(3.4, alt, 104, 50)
    axis.set_ylim(-4, 46)
    divided = {"DDP": 0, "ZeRO-1": 1, "ZeRO-2": 2, "ZeRO-3 / FSDP": 3}
    rows = (("parameters", 8), ("gradients", 8), ("optimizer", 16))
    for column, (name, count) in enumerate(divided.items()):
        x = 17 + 22 * column
        axis.text(x + 8, 43.5, name, ha="center", fontsize=12, fontweight="bold")
        for rank in range(2):
            for row, (_, length) in enumerate(rows):
                y = 34 - 6 * row - 21 * rank
                box(axis, x, y, length, 4.4, color=EMPTY)
                is_divided = row >= 3 - count
                start = x + rank * length / 2 if is_divided else x
                box(axis, start, y, length / 2 if is_divided else length, 4.4, color=RANK_COLORS[rank])
    for rank in range(2):
        for row, (state, _) in enumerate(rows):
            axis.text(15.5, 36.2 - 6 * row - 21 * rank, state, ha="right", va="center", fontsize=10)
        axis.text(0, 40.6 - 21 * rank, f"rank {rank}", fontsize=11, fontweight="bold", va="center")
        box(axis, 17 + 3.2 * rank, -3, 2.8, 2.8, color=RANK_COLORS[rank])
    axis.text(24, -1.6, "kept by this rank", fontsize=10, va="center")
    box(axis, 61, -3, 2.8, 2.8, color=EMPTY)
    axis.text(64.8, -1.6, "kept by the other rank only", fontsize=10, va="center")
    return figure


def one_step() -> Figure:
    """Gather, compute, free: one step of a model with two layers under ZeRO-3, with the network running ahead."""
    alt = (
        "A timeline with three rows, network, compute and gathered. In the forward pass the network gathers the outer "
        "unit, then layer 1, then layer 2; the embedding, layer 1, layer 2 and the head are computed; a layer is freed "
        "after its computation. In the backward pass, which ends with the embedding, layer 2 is gathered again, then "
        "layer 1 while layer 2 is computed; each layer's gradients are reduce-scattered afterwards, the outer unit's "
        "last."
    )
    figure, axis = canvas(3.5, alt, 106, 45)
    gather, reduce, work = "#BFE0F5", "#F9DFA8", "#DDDDDD"
    for name, y in (("network", 34), ("compute", 24), ("gathered", 7)):
        axis.text(0, y + 2.5, name, fontsize=11, fontweight="bold", va="center")
    calls = [(13, "outer", gather), (21, "1", gather), (29, "2", gather), (54, "2", gather), (62, "1", gather)]
    calls += [(74, "2", reduce), (86, "1", reduce), (95, "outer", reduce)]
    for x, text, color in calls:
        box(axis, x, 34, 8 if color == gather else 9, 5, text, color, 9.5)
    computed = [(21, 8, "embed."), (29, 9, "layer 1"), (38, 9, "layer 2"), (47, 7, "head")]
    computed += [(54, 8, "head"), (62, 12, "layer 2"), (74, 12, "layer 1"), (86, 8, "embed.")]
    for x, w, text in computed:
        box(axis, x, 24, w, 5, text, work, 9.5)
    spans = [(21, 83, 3, "outer unit, from its first use until its gradients are reduced")]
    spans += [(29, 9, 8.5, "1"), (37, 10, 14, "2"), (62, 12, 8.5, "2"), (70, 16, 14, "1")]
    for x, w, y, text in spans:
        box(axis, x, y, w, 4.5, text, RANK_COLORS[0], 9.5)
    axis.plot([54, 54], [1, 40], color="#999999", linestyle=":", linewidth=1.2)
    axis.text(37, 41.5, "forward", ha="center", fontsize=10.5)
    axis.text(76, 41.5, "backward", ha="center", fontsize=10.5)
    for y, text, color in ((17.5, "all-gather", gather), (13.2, "reduce-scatter", reduce)):
        box(axis, 0, y, 2.6, 2.6, "", color)
        axis.text(3.6, y + 1.3, text, fontsize=9.5, va="center")
    return figure


def cut(shapes: Sequence[Sequence[int]], ranks: int = 2) -> Figure:
    """A unit: parameters laid end to end in one flat buffer, padded, a slice for each rank.

    Args:
        shapes: of the parameters.
    """
    from math import prod

    alt = (
        "Three parameters of different shapes are laid end to end in one flat buffer. A little padding makes its "
        "length a multiple of the ranks. It is cut into as many equal slices; a cut may fall inside a parameter."
    )
    figure, axis = canvas(2.5, alt, 100, 30)
    total = sum(map(prod, shapes))
    padded = -(-total // ranks) * ranks
    scale, x = 96 / padded, 2.0
    tones = ("#E3EFF7", "#FBEBC8", "#DDF1EA", "#F8DDCC")
    for shape, tone in zip(shapes, tones, strict=False):
        w = prod(shape) * scale
        box(axis, x, 15, w, 7, "x".join(map(str, shape)), tone, 10.5)
        x += w
    if padded > total:
        box(axis, x, 15, (padded - total) * scale, 7, "0", "#FFFFFF")
    for rank in range(ranks):
        w = padded / ranks * scale
        box(
            axis, 2 + rank * w, 2, w, 7, f"own slice of rank {rank}: {padded // ranks} numbers", RANK_COLORS[rank], 10.5
        )
        arrow(axis, (2 + (rank + 0.5) * w, 14.5), (2 + (rank + 0.5) * w, 9.5))
    axis.text(2, 25.5, "whole: one flat buffer of the unit's parameters, padded with zeros", fontsize=10.5)
    return figure


def dtensor(parameters: Mapping[str, Sequence[Sequence[int]]]) -> Figure:
    """Matrices cut along their first dimension, a colour a rank.

    Args:
        parameters: name with its shape -> local shape on each rank.
    """
    alt = (
        "Matrices cut into horizontal bands, one for each rank. 64 rows give two equal bands; 5 rows give one of three "
        "and one of two."
    )
    figure, axes = new_figure(1, len(parameters), height=2.4, alt=alt, squeeze=False)
    for axis, (name, locals_) in zip(axes.flat, parameters.items(), strict=True):
        rows, top = sum(shape[0] for shape in locals_), 0.0
        for rank, shape in enumerate(locals_):
            band = 10 * shape[0] / rows
            box(axis, 0, 10 - top - band, 20, band, f"rank {rank}: {tuple(shape)}", RANK_COLORS[rank], 11)
            top += band
        axis.set(xlim=(-0.2, 20.2), ylim=(-0.2, 10.2))
        axis.set_title(name, fontsize=11.5)
        axis.set_axis_off()
    return figure


def two_linears() -> Figure:
    """Tensor parallelism of an MLP on two ranks: the first matrix by columns, the second by rows (as in x @ W)."""
    alt = (
        "Two ranks get the same input. Each multiplies with its half of the first matrix's columns, applies the "
        "activation to its half, multiplies with its half of the second matrix's rows, and an all-reduce adds up the "
        "two results. On the way back an all-reduce adds the gradients of the input."
    )
    figure, axis = canvas(2.9, alt, 101, 34)
    axis.set_xlim(-0.6, 101.6)
    box(axis, 0, 12, 11, 9, "x\n(B, C)", "#EEEEEE")
    for rank, y in ((0, 20), (1, 3)):
        color = RANK_COLORS[rank]
        box(axis, 20, y, 19, 10, f"first, rank {rank}\n(C, H/2)", color)
        box(axis, 44, y, 13, 10, "GELU\n(B, H/2)", color)
        box(axis, 62, y, 19, 10, f"second, rank {rank}\n(H/2, C)", color)
        arrow(axis, (11.3, 16.5), (19.7, y + 5))
        arrow(axis, (39.3, y + 5), (43.7, y + 5))
        arrow(axis, (57.3, y + 5), (61.7, y + 5))
        arrow(axis, (81.3, y + 5), (88.7, 16.5))
    box(axis, 89, 12, 11, 9, "sum\n(B, C)", "#EEEEEE")
    axis.text(94.5, 8, "forward:\nall-reduce", ha="center", fontsize=10, va="center")
    axis.text(5.5, 8, "backward:\nall-reduce", ha="center", fontsize=10, va="center")
    return figure


def meshes() -> Figure:
    """Four ranks as a 2 x 2 mesh: copies of shards (HSDP), and shards of parts (FSDP with tensor parallelism)."""
    alt = (
        "Two grids of four ranks. In the first, the columns are shards and the rows are copies: ranks 0 and 2 hold the "
        "same half, ranks 1 and 3 the other. In the second, each rank holds a quarter of one matrix, down_proj: its "
        "columns are divided by tensor parallelism, its rows by FSDP."
    )
    figure, axes = new_figure(1, 2, height=2.7, alt=alt)
    grids = (
        ("HSDP: replicate 2, shard 2", ("half 0", "half 1", "half 0", "half 1"), (0, 1, 0, 1), "copies", "shards"),
        (
            "FSDP x TP of down_proj: dp 2, tp 2",
            ("rows 0, cols 0", "rows 0, cols 1", "rows 1, cols 0", "rows 1, cols 1"),
            (0, 1, 2, 3),
            "dp: FSDP's shards",
            "tp: columns",
        ),
    )
    for axis, (title, texts, colors, down, across) in zip(axes, grids, strict=True):
        for rank, (text, color) in enumerate(zip(texts, colors, strict=True)):
            x, y = 12 + 30 * (rank % 2), 14 - 12 * (rank // 2)
            box(axis, x, y, 28, 10.5, f"rank {rank}\n{text}", RANK_COLORS[color], 10.5)
        axis.text(41, 26, across, ha="center", fontsize=10.5)
        axis.text(9, 13, down, rotation=90, va="center", ha="center", fontsize=10.5)
        axis.set(xlim=(5, 72), ylim=(0, 29))
        axis.set_title(title, fontsize=11.5)
        axis.set_axis_off()
    return figure
