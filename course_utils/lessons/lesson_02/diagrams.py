"""Drawings of lesson 02 that hold no measurement: from texts to a batch, the label shift, a shuffle buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#DCEBF5", "orange": "#FBEBC8", "green": "#D3EEE5", "grey": "#EFEFEF"}


def _canvas(width: float, height: float, inches: float, alt: str) -> tuple[Figure, Axes]:
    figure, axis = new_figure(height=inches, alt=alt)
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def _box(axis: Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 11) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.12"
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PALE[color], edgecolor=COLORS[color])
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": COLORS[color], "linewidth": 1.4})


def pipeline(rows: int, batch: int) -> Figure:
    """From texts to a batch: tokenizer, sampler, collator, model, with the shape after each and how often it runs."""
    figure, axis = _canvas(
        10.4,
        3.7,
        2.9,
        "Boxes from left to right. N texts go through the tokenizer and become N lists of ids of unequal lengths; the "
        "sampler picks the B rows of a batch; the collator makes tensors of shape B by L, L the longest of the B; the "
        "model takes them. The tokenizer runs once, the sampler once an epoch, the collator at every step.",
    )
    parts = [
        ("texts", "sentences", "grey", "N", f"{rows:,}", ""),
        ("tokenizer", "text to ids", "blue", "N lists", "unequal lengths", "once"),
        ("sampler", "which rows\nmeet", "green", "B lists", f"{batch}", "every epoch"),
        ("collator", "rows to\ntensors", "orange", "(B, L)", f"{batch} x longest", "every step"),
        ("model", "lesson 01", "grey", "loss", "", "every step"),
    ]
    for number, (name, what, color, shape, sizes, often) in enumerate(parts):
        x = 0.1 + 2.08 * number
        _box(axis, x, 1.4, 1.72, 1.1, what, color)
        axis.text(x + 0.86, 2.75, name, ha="center", fontsize=13, fontweight="bold")
        axis.text(x + 0.86, 0.95, shape, ha="center", fontsize=12.5, family="monospace")
        axis.text(x + 0.86, 0.5, sizes, ha="center", fontsize=10.5, color=COLORS["grey"])
        axis.text(x + 0.86, 3.3, often, ha="center", fontsize=10.5, color=COLORS["red"])
        if number:
            _arrow(axis, (x - 0.34, 1.95), (x - 0.02, 1.95))
    return figure


def label_shift(tokens: list[str]) -> Figure:
    """What a causal language model predicts where: each position's target is the next token."""
    figure, axis = _canvas(
        10.4,
        3.1,
        2.3,
        "Two rows of boxes. Above, the tokens that the model reads; an arrow leads down from each to what must be "
        "predicted there: the token that stands one place further right above. The last position has no target.",
    )
    width = 10.0 / len(tokens)
    for place, token in enumerate(tokens):
        x = 0.2 + place * width
        _box(axis, x, 1.85, width - 0.15, 0.6, token, "blue")
        follows = place + 1 < len(tokens)
        _box(
            axis, x, 0.35, width - 0.15, 0.6, tokens[place + 1] if follows else "none", "orange" if follows else "grey"
        )
        if follows:
            _arrow(axis, (x + 0.5 * (width - 0.15), 1.8), (x + 0.5 * (width - 0.15), 1.0))
    axis.text(0.2, 2.6, "the model reads (input_ids; the labels passed are the same)", fontsize=11, fontweight="bold")
    axis.text(0.2, 0.0, "and must predict: the next label. The model makes this shift itself.", fontsize=11)
    return figure


def shuffle_buffer(stream: int = 11, buffer: int = 4) -> Figure:
    """How a stream is shuffled: a random row of the buffer goes out, the next row of the stream comes in."""
    figure, axis = _canvas(
        10.4,
        3.2,
        2.4,
        "A stream of numbered rows on the left flows into a small buffer; one row of the buffer, drawn at random, goes "
        "out, and the next row of the stream takes its place. A row far back in the stream cannot come out early.",
    )
    waiting = stream - buffer
    for place in range(waiting):
        _box(axis, 0.2 + 0.52 * (waiting - 1 - place), 1.3, 0.45, 0.55, str(buffer + place), "grey", 10)
    axis.text(0.2, 2.15, f"stream, row {buffer} next", fontsize=11, fontweight="bold")
    _arrow(axis, (3.85, 1.57), (4.6, 1.57))
    for place in range(buffer):
        _box(axis, 4.75 + 0.55 * place, 1.3, 0.45, 0.55, str(place), "blue", 10)
    axis.text(4.75, 2.15, f"buffer of {buffer}", fontsize=11, fontweight="bold")
    _arrow(axis, (5.55, 1.25), (5.55, 0.65))
    _box(axis, 5.33, 0.05, 0.45, 0.55, "1", "orange", 10)
    axis.text(5.95, 0.3, "out: any of these, at random", fontsize=11, va="center")
    axis.text(7.15, 1.57, f"row {stream - 1} must wait:\nit is not in the buffer", fontsize=11, va="center")
    return figure
