"""Figures of lesson 02: token grids, lengths, speed, masking, spans, packed attention, leakage, pretraining.

The drawings without data are in ``diagrams``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.lessons.lesson_02.result_figures import leakage, masked_loss, paired_gains
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.lessons.lesson_02.strategies import Speed

__all__ = [
    "attention_masks",
    "buffer_reach",
    "leakage",
    "length_histogram",
    "masked_loss",
    "masked_tokens",
    "padding_and_speed",
    "paired_gains",
    "span_corruption",
    "token_grids",
]

_PADDING = "#C9C9C9"
_SHADES = ("#0072B2", "#56B4E9", "#1B4F72")  # neighbouring documents of a packed row
_FONT_WIDTH = 0.14  # of a monospaced character, in the boxes' unit
_MOST_UNITS = 13.0  # a wider row of boxes gets smaller letters


def token_grids(batches: dict[str, list[np.ndarray]], width: int) -> Figure:
    """Batches drawn token by token: blue is text, grey is padding; the titles give the share of padding drawn.

    Args:
        batches: for each strategy its batches, each ``(B, L)`` of document numbers, -1 on padding.
        width: tokens on the horizontal axis.
    """
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    figure, axes = new_figure(
        1,
        len(batches),
        height=4.2,
        sharey=True,
        alt="Two batches of each strategy as grids of tokens, grey is padding. Pad to 64: mostly grey. Dynamic: "
        "narrower, still mostly grey. Length-grouped: nearly no grey. Packed: few full rows of several documents.",
    )
    for axis, (name, grids) in zip(np.atleast_1d(axes), batches.items(), strict=True):
        top, cells, padding = 0, 0, 0
        for grid in grids:
            axis.imshow(
                _colored(grid), extent=(0, grid.shape[1], top + len(grid), top), aspect="auto", interpolation="nearest"
            )
            top += len(grid) + 1.5
            cells, padding = cells + grid.size, padding + int((grid < 0).sum())
        axis.set(xlim=(0, width), xlabel="position (tokens)")
        axis.set_title(f"{name}\nthese: {padding / cells:.0%} padding", fontsize=11)
        axis.grid(False)
        axis.set_yticks([])
    lowest = max(sum(len(g) + 1.5 for g in grids) for grids in batches.values())
    np.atleast_1d(axes)[0].set(ylim=(lowest, 0), ylabel="rows, batch after batch")
    figure.legend(
        [Patch(color=_PADDING), tuple(Patch(color=shade) for shade in _SHADES)],
        ["padding", "text; shades: the documents of a packed row"],
        handler_map={tuple: HandlerTuple(ndivide=None)}, loc="outside lower center", ncols=2, fontsize=10,
    )  # fmt: skip
    return figure


def _colored(grid: np.ndarray) -> np.ndarray:
    from matplotlib.colors import to_rgb

    image = np.empty((*grid.shape, 3))
    image[:] = to_rgb(_PADDING)
    for shade, color in enumerate(_SHADES):
        image[(grid >= 0) & (grid % len(_SHADES) == shade)] = to_rgb(color)
    return image


def padding_and_speed(padding: dict[str, float], measured: dict[str, Speed]) -> Figure:
    """Per strategy: the share of padding (left); how much faster than padding to a maximum, predicted and measured.

    Args:
        padding: share of all positions, 0 to 1.
        measured: what ``strategies.race`` returns.
    """
    figure, (left, right) = new_figure(
        1,
        2,
        height=3.3,
        alt="Left, bars of padding: most of all positions when padding to 64, hardly less with dynamic padding, a few "
        "percent with grouping and packing. Right, speed against padding to 64: dynamic padding gains little, grouping "
        "and packing are several times as fast; marks show what a count of positions predicts, and the same with a "
        "fixed part per step, which is less.",
    )
    names = list(padding)
    left.barh(names, [100 * padding[name] for name in names], color=COLORS["grey"])
    for place, name in enumerate(names):
        left.annotate(f"{padding[name]:.0%}", (100 * padding[name], place), (4, 0), va="center", fontsize=11,
                      textcoords="offset points")  # fmt: skip
    left.set(xlabel="padding (% of the data set's positions)", xlim=(0, 100), title="What is wasted")
    right.barh(names, [measured[name].gain for name in names], color=COLORS["blue"], height=0.5, label="measured")
    right.plot([measured[name].by_positions for name in names], names, "D", color=COLORS["red"], markersize=7,
               label="predicted: positions of the same batches")  # fmt: skip
    right.plot([measured[name].with_fixed for name in names], names, "|", color=COLORS["black"], markersize=17,
               markeredgewidth=3, label="and a fixed part per step")  # fmt: skip
    right.set(xlabel="useful tokens/s, pad to 64 is 1", title="What is gained", ylim=(len(names) - 0.4, -0.6))
    right.set_xlim(0, 1.12 * max(max(found) for found in measured.values()))
    right.set_yticklabels([])
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=10)
    left.invert_yaxis()
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    return figure


def length_histogram(lengths: Sequence[int], limits: Sequence[int]) -> Figure:
    """How long the texts are, in tokens; a dotted line at each limit, lower from left to right, says what it cuts."""
    lengths = np.asarray(lengths)
    figure, axis = new_figure(
        height=3.2,
        alt="Histogram of text lengths: most have between 8 and 25 tokens, and a thin tail reaches far to the "
        "right. Dotted lines mark three limits: the shortest cuts a large part of the texts, the longest hardly any.",
    )
    axis.hist(np.minimum(lengths, 99), bins=range(0, 101, 2), color=COLORS["blue"])
    top = axis.get_ylim()[1]
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    for place, limit in enumerate(limits):
        label = f"limit {limit}: cuts {np.mean(lengths > limit):.1%} of the texts"
        height = 0.93 - 0.13 * place  # each line ends at its own label, below the labels before it
        axis.plot([limit, limit], [0, top * (height + 0.05)], color=COLORS["red"], linestyle=":")
        axis.text(limit + 1, top * height, label, fontsize=11, bbox=white, zorder=4)
    axis.set_ylim(0, top)
    axis.set(xlabel="tokens in a text (the last bar: 98 and more)", ylabel="texts", title="Most texts are short")
    return figure


def buffer_reach(places: dict[int, Sequence[int]]) -> Figure:
    """Where the rows of a shuffled stream come from.

    Args:
        places: buffer size -> row number in the stream, in the order in which they come out.
    """
    figure, axes = new_figure(
        1,
        len(places),
        height=3.0,
        sharey=True,
        alt="Dots of row number in the stream against the position at which it came out. With a small buffer the dots "
        "lie close to the diagonal, so the shuffle is only local; with a large one they scatter over the square.",
    )
    for axis, (size, order) in zip(axes, places.items(), strict=True):
        axis.plot(order, ".", color=COLORS["blue"], markersize=3)
        axis.plot([0, len(order)], [0, len(order)], color=COLORS["red"], linestyle=":", linewidth=1.5)
        axis.set(title=f"buffer of {size:,}", xlabel="position after shuffling")
    axes[0].set_ylabel("row of the stream")
    return figure


def _boxes(axis: Axes, tokens: Sequence[str], colors: Sequence[str], y: float, label: str) -> None:
    """One row of tokens as boxes from left to right, with a label above."""
    x = 0.0
    axis.text(0, y + 0.55, label, fontsize=11, weight="bold", va="bottom")
    for token, color in zip(tokens, colors, strict=True):
        width = _FONT_WIDTH * len(token) + 0.12
        box = {"facecolor": color, "edgecolor": "white", "linewidth": 1.5}
        axis.add_patch(_rectangle(x, y, width, box))
        dark = color in (COLORS["blue"], COLORS["red"], COLORS["purple"], COLORS["green"])
        axis.text(x + width / 2, y + 0.2, token, ha="center", va="center", fontsize=10, family="monospace",
                  color="white" if dark else "black")  # fmt: skip
        x += width
    axis.set_xlim(0, max(axis.get_xlim()[1], x))


def _rectangle(x: float, y: float, width: float, style: dict):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, 0.42, **style)


def _box_figure(rows: list[tuple[str, Sequence[str], Sequence[str]]], legend: dict[str, str], alt: str) -> Figure:
    from matplotlib.patches import Patch

    figure, axis = new_figure(1, 1, height=0.78 * len(rows) + 0.5, alt=alt)
    axis.set_xlim(0, 1)
    for number, (label, tokens, colors) in enumerate(rows):
        _boxes(axis, tokens, colors, -1.1 * number, label)
    axis.set_ylim(-1.1 * (len(rows) - 1) - 0.1, 1.1)
    for text in axis.texts:
        if text.get_family() == ["monospace"]:
            text.set_fontsize(10 * min(1, _MOST_UNITS / axis.get_xlim()[1]))
    axis.axis("off")
    patches = [Patch(color=color, label=name) for name, color in legend.items()]
    figure.legend(handles=patches, loc="outside lower left", ncols=len(patches), fontsize=10)
    return figure


def masked_tokens(original: Sequence[str], shown: Sequence[str], labels: Sequence[str]) -> Figure:
    """Masked language modelling on one text: what it was, what the model sees, what it must predict.

    Args:
        original, shown: tokens before and after masking.
        labels: the target of each position, "" where there is none.
    """
    plain, mask, random, kept = "#E8E8E8", COLORS["blue"], COLORS["red"], COLORS["orange"]
    colors = []
    for before, after, label in zip(original, shown, labels, strict=True):
        changed = mask if after == "[MASK]" else random if after != before else kept
        colors.append(changed if label else plain)
    # Equal widths in all rows, so that a position can be followed downwards.
    widths = [max(len(word) for word in column) for column in zip(original, shown, labels, strict=True)]
    rows = [[word.center(width) for word, width in zip(row, widths, strict=True)] for row in (original, shown, labels)]
    targets = [color if label else "#FFFFFF" for color, label in zip(colors, labels, strict=True)]
    return _box_figure(
        [("text", rows[0], [plain] * len(colors)), ("input_ids", rows[1], colors), ("labels (-100 elsewhere)", rows[2],
          targets)],
        {"replaced by [MASK]": mask, "replaced by a random token": random, "kept, but a target": kept},
        "A sentence three times: its tokens, what the model sees with some tokens masked, replaced or kept, and the "
        "targets at those positions only.",
    )  # fmt: skip


def span_corruption(
    tokens: Sequence[str], spans: Sequence[tuple[int, int]], inputs: Sequence[str], targets: Sequence[str]
) -> Figure:
    """Span corruption on one text: each span becomes a sentinel, the target spells the spans out."""
    palette = [COLORS["blue"], COLORS["orange"], COLORS["green"], COLORS["purple"], COLORS["red"]]
    plain = "#E8E8E8"
    colors = [plain] * len(tokens)
    for number, (start, stop) in enumerate(spans):
        colors[start:stop] = [palette[number % len(palette)]] * (stop - start)

    def paint(row: Sequence[str], follow: bool) -> list[str]:
        painted, number = [], -1
        for token in row:
            number += token.startswith("<")
            inside = number < len(spans) and (token.startswith("<") or (follow and token != "[SEP]"))
            painted.append(palette[number % len(palette)] if inside else plain)
        return painted

    rows = [("text", tokens, colors), ("input_ids", inputs, paint(inputs, False)),
            ("labels", targets, paint(targets, True))]  # fmt: skip
    return _box_figure(
        rows,
        {f"span {i}": palette[i % len(palette)] for i in range(len(spans))},
        "A sentence with coloured spans; in the input each span is one sentinel; the target lists each sentinel with "
        "its span and ends with one more sentinel.",
    )


def attention_masks(masks: dict[str, np.ndarray], boundaries: Sequence[int]) -> Figure:
    """Who may look at whom in a packed row: ``masks[title]`` (L, L), [query, key], 0/1; lines between documents."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, axes = new_figure(
        1,
        len(masks),
        height=4.0,
        sharey=True,
        alt="Two square masks of a row with three documents, divided by orange lines. Left, a full lower triangle: "
        "later documents look at earlier ones. Right, three separate triangles on the diagonal.",
    )
    for axis, (title, mask) in zip(np.atleast_1d(axes), masks.items(), strict=True):
        axis.imshow(mask, cmap=ListedColormap(["#F2F2F2", COLORS["blue"]]), vmin=0, vmax=1)
        for place in boundaries:
            axis.axhline(place - 0.5, color=COLORS["orange"], linewidth=2)
            axis.axvline(place - 0.5, color=COLORS["orange"], linewidth=2)
        axis.set(title=title, xlabel="key (position in the row)")
        axis.grid(False)
    np.atleast_1d(axes)[0].set_ylabel("query (position in the row)")
    patches = [Patch(color=COLORS["blue"], label="may look"), Patch(color="#E2E2E2", label="may not")]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=11)
    return figure
