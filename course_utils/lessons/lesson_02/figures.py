"""Figures of lesson 02: padding, throughput, masking, span corruption, packed attention, leakage, pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.teach.charts import grouped_bars
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PADDING = "#C9C9C9"
_SHADES = ("#0072B2", "#56B4E9", "#1B4F72")  # neighbouring documents of a packed row
_FONT_WIDTH = 0.14  # of a monospaced character, in the boxes' unit


def token_grids(batches: dict[str, list[np.ndarray]], width: int) -> Figure:
    """Batches drawn token by token: blue is text, grey is padding; the titles give the share of padding drawn.

    Args:
        batches: for each strategy its batches, each ``(B, L)`` of document numbers, -1 on padding.
        width: tokens on the horizontal axis.
    """
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    figure, axes = new_figure(1, len(batches), height=4.2, sharey=True)
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


def padding_and_speed(padding: dict[str, float], speed: dict[str, float]) -> Figure:
    """Per strategy: the share of padding (left) and the useful tokens per second (right)."""
    figure, (left, right) = new_figure(1, 2, height=2.9)
    names = list(padding)
    left.barh(names, [100 * padding[name] for name in names], color=COLORS["grey"])
    left.set(xlabel="padding (% of all positions)", xlim=(0, 100), title="What is wasted")
    right.barh(names, [speed[name] for name in names], color=COLORS["blue"])
    right.set(xlabel="useful tokens per second", title="What is gained")
    right.set_yticklabels([])
    for axis, values, text in ((left, padding, "{:.0%}"), (right, speed, "{:,.0f}")):
        for place, name in enumerate(names):
            axis.annotate(
                text.format(values[name]), (axis.patches[place].get_width(), place), (4, 0), va="center", fontsize=11,
                textcoords="offset points",
            )  # fmt: skip
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    right.set_xlim(0, 1.25 * max(speed.values()))
    return figure


def _boxes(axis: Axes, tokens: Sequence[str], colors: Sequence[str], y: float, label: str) -> None:
    """One row of tokens as boxes from left to right, with a label above."""
    x = 0.0
    axis.text(0, y + 0.55, label, fontsize=11, weight="bold", va="bottom")
    for token, color in zip(tokens, colors, strict=True):
        width = _FONT_WIDTH * len(token) + 0.2
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


def _box_figure(rows: list[tuple[str, Sequence[str], Sequence[str]]], legend: dict[str, str]) -> Figure:
    from matplotlib.patches import Patch

    figure, axis = new_figure(1, 1, height=0.78 * len(rows) + 0.5)
    axis.set_xlim(0, 1)
    for number, (label, tokens, colors) in enumerate(rows):
        _boxes(axis, tokens, colors, -1.1 * number, label)
    axis.set_ylim(-1.1 * (len(rows) - 1) - 0.1, 1.1)
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
    return _box_figure(rows, {f"span {i}": palette[i % len(palette)] for i in range(len(spans))})


def attention_masks(masks: dict[str, np.ndarray], boundaries: Sequence[int]) -> Figure:
    """Who may look at whom in a packed row: ``masks[title]`` (L, L), [query, key], 0/1; lines between documents."""
    figure, axes = new_figure(1, len(masks), height=4.0, sharey=True)
    for axis, (title, mask) in zip(np.atleast_1d(axes), masks.items(), strict=True):
        image = axis.imshow(mask, cmap="Blues", vmin=0, vmax=1.4)  # not the darkest blue: the lines must stand out
        for place in boundaries:
            axis.axhline(place - 0.5, color=COLORS["orange"], linewidth=2)
            axis.axvline(place - 0.5, color=COLORS["orange"], linewidth=2)
        axis.set(title=title, xlabel="key (position in the row)")
        axis.grid(False)
    np.atleast_1d(axes)[0].set_ylabel("query (position in the row)")
    bar = figure.colorbar(image, ax=axes, label="may look: 1", shrink=0.8, ticks=[0, 1], boundaries=[-0.5, 0.5, 1.5])
    bar.ax.tick_params(length=0)
    return figure


def pretraining(report: dict) -> Figure:
    """bench/results/pretraining.json as bars: means over the seeds, error bars of half their range, and word counts."""
    means, spread = {}, {}
    for setting in report["compared"]:
        task, labels = setting["task"], setting["labels"]
        runs = [run for run in report["results"] if (run["task"], run["labels"]) == (task, labels)]
        found = {f"{s} start": [r["accuracy"] for r in runs if r["start"] == s] for s in ("random", "pretrained")}
        found["TF-IDF, same labels"] = [report["word_counts"][str(labels)]]
        group = f"{task}\n{labels:,} labels"
        means[group] = {series: float(np.mean(values)) for series, values in found.items()}
        spread[group] = {series: float(np.ptp(values)) / 2 for series, values in found.items()}
    return grouped_bars(means, "test accuracy", spread)
