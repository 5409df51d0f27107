"""Drawings of lesson 07 that need no data: what the Trainer asks for, PointNet's shapes, who owns which parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#D6E8F3", "orange": "#FBE8C6", "green": "#CDEBE1", "red": "#F8DCCB", "grey": "#EDEDED"}


def _canvas(height: float, alt: str, width: float = 100, tall: float = 40) -> tuple[Figure, Axes]:
    figure, axis = new_figure(height=height, alt=alt)
    axis.set(xlim=(-1, width + 1), ylim=(0, tall))
    axis.set_axis_off()
    return figure, axis


def _box(axis: Axes, x: float, y: float, w: float, h: float, text: str, color: str = "grey", size: float = 10) -> None:
    from matplotlib.patches import FancyBboxPatch

    edge = COLORS[color] if color != "grey" else "#9A9A9A"
    patch = FancyBboxPatch(
        (x, y), w, h, boxstyle="round,pad=0,rounding_size=1.2", facecolor=PALE[color], edgecolor=edge
    )
    axis.add_patch(patch)
    axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, linespacing=1.35)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black", **style) -> None:
    arrow = {"arrowstyle": "-|>", "color": COLORS[color], "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0} | style
    axis.annotate("", xy=end, xytext=start, arrowprops=arrow)


def contract() -> Figure:
    """From rows to the update: what the Trainer takes from the model and from its output."""
    figure, axis = _canvas(
        3.3,
        "Rows go through the collator to a batch, a dictionary of tensors. Its keys name forward's arguments. "
        "Forward returns a dictionary: the loss goes to backward and the optimizer, everything else to the metrics.",
    )
    _box(axis, 0, 15, 16, 12, 'rows\n{"points": (64, 3),\n"label": 3}', size=9)
    _box(axis, 21, 15, 13, 12, "collator", "green")
    _box(axis, 39, 14, 21, 14, 'batch\n"points": (32, 64, 3)\n"labels": (32,)', size=9.5)
    _box(axis, 65, 15, 15, 12, "model.forward\n(points, labels)", "blue", 9.5)
    _box(axis, 86, 25, 14, 11, '"loss"\nscalar', "orange")
    _box(axis, 86, 6, 14, 11, '"logits"\n(32, 10)', "orange")
    for x, end in ((16, 21), (34, 39), (60, 65)):
        _arrow(axis, (x, 21), (end, 21))
    _arrow(axis, (80, 22.5), (86, 30))
    _arrow(axis, (80, 19.5), (86, 12))
    axis.text(93, 37.4, "backward, optimizer", ha="center", fontsize=9.5, color=COLORS["red"])
    axis.text(93, 2.6, "compute_metrics", ha="center", fontsize=9.5, color=COLORS["red"])
    axis.text(62.5, 31, "keys = argument names", ha="center", fontsize=9.5, color=COLORS["red"])
    _arrow(axis, (18.5, 13), (18.5, 20), "red", linewidth=1.1)
    axis.text(
        18.5,
        12.5,
        "here columns that forward\ndoes not name are dropped",
        ha="center",
        va="top",
        fontsize=9,
        color=COLORS["red"],
    )
    return figure


def architecture(points: int = 64, widths: tuple[int, ...] = (32, 64, 128), classes: int = 10) -> Figure:
    """PointNet with its shapes: one small network for every point, the maximum, a classifier."""
    figure, axis = _canvas(
        3.9,
        "A cloud of points by three numbers. The same small network turns each row into a longer row. The maximum over "
        "all rows leaves one row, whose entries come from some point each. A classifier makes logits of it.",
        tall=44,
    )
    rows = 6
    columns = ((2, 3, "blue", f"(B, {points}, 3)\npoints"), (15, 4, "green", f"(B, {points}, {widths[0]})"))
    columns += ((30, 6, "green", f"(B, {points}, {widths[1]})"), (48, 10, "green", f"(B, {points}, {widths[2]})"))
    for x, count, color, label in columns:
        _grid(axis, x, 10, count, rows, color)
        axis.text(x + count * 0.8, 37.5, label, ha="center", va="bottom", fontsize=10)
    for row in range(rows):
        y = 12 + row * 4
        for start, end in ((7.6, 14.4), (22.2, 29.4), (40.4, 47.4)):
            _arrow(axis, (start, y), (end, y), "grey", linewidth=1.0)
    below = "three times Linear, norm, ReLU (the last without ReLU),\nthe same for every point, each point alone"
    axis.text(33, 7.6, below, ha="center", va="top", fontsize=9.5, color=COLORS["red"])
    below = "norm, Linear,\nReLU, Linear"
    axis.text(92, 11.8, below, ha="center", va="top", fontsize=9.5, color=COLORS["red"])
    _arrow(axis, (66, 22), (73, 22))
    axis.text(69.5, 25.2, "max", ha="center", fontsize=11, color=COLORS["red"], weight="bold")
    axis.text(69.5, 18.8, "over the\npoints", ha="center", va="top", fontsize=9.5, color=COLORS["red"])
    _grid(axis, 74, 10 + 2.5 * 4, 10, 1, "orange")
    axis.text(82, 26, f"(B, {widths[-1]})\none row a cloud", ha="center", va="bottom", fontsize=10)
    _arrow(axis, (90.5, 22), (93.5, 22))
    for k in range(5):
        _cell(axis, 94.4, 13.8 + k * 3.4, 2.6, 2.8, "red")
    axis.text(95.7, 32, f"(B, {classes})\nlogits", ha="center", va="bottom", fontsize=10)
    return figure


def _grid(axis: Axes, x: float, y: float, columns: int, rows: int, color: str) -> None:
    for row in range(rows):
        for column in range(columns):
            _cell(axis, x + column * 1.6, y + row * 4 + 0.5, 1.5, 3, color)


def _cell(axis: Axes, x: float, y: float, w: float, h: float, color: str) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((x, y), w, h, facecolor=PALE[color], edgecolor=COLORS[color], linewidth=0.8))


def two_optimizers() -> Figure:
    """The codec, its two losses and the optimizer that owns each parameter."""
    figure, axis = _canvas(
        4.2,
        "An image goes through the encoder to a latent, which gets noise in training and is rounded in use, and "
        "through the decoder to an image again. The distribution says how many bits the latent costs. Encoder, "
        "distribution and decoder belong to the "
        "Trainer's optimizer and get the gradient of rate plus distortion. The quantiles belong to a second one and "
        "get the gradient of the auxiliary loss only.",
        tall=46,
    )
    _box(axis, 0, 34, 14, 10, "image\n(B, 8, 8)")
    _box(axis, 20, 34, 14, 10, "encoder", "blue")
    _box(axis, 40, 34, 18, 10, "latent (B, 8, 2, 2)\nin training: + noise\nin use: rounded", size=9)
    _box(axis, 64, 34, 14, 10, "decoder", "blue")
    _box(axis, 84, 34, 16, 10, "decoded\n(B, 8, 8)")
    for x, end in ((14, 20), (34, 40), (58, 64), (78, 84)):
        _arrow(axis, (x, 39), (end, 39))
    _box(axis, 40, 18, 18, 10, "distribution\nof each channel", "blue")
    _arrow(axis, (49, 34), (49, 28))
    _box(axis, 13, 18, 18, 10, "quantiles\n(8, 1, 3)", "orange")
    _arrow(axis, (40, 23), (31, 23), linestyle="--")
    axis.text(35.5, 24.3, "held\nfixed", ha="center", va="bottom", fontsize=9)
    _box(axis, 64, 18, 14, 10, "rate: bits\n$-\\log_2 p$")
    _arrow(axis, (58, 23), (64, 23))
    _box(axis, 84, 18, 16, 10, "distortion\nsquared error")
    _arrow(axis, (92, 34), (92, 28))
    _box(
        axis,
        64,
        2,
        36,
        10,
        "loss = rate + $\\lambda\\cdot$ distortion\nTrainer's AdamW owns all blue boxes",
        "blue",
        10.5,
    )
    _arrow(axis, (71, 18), (75, 12))
    _arrow(axis, (92, 18), (89, 12))
    _box(axis, 4, 2, 36, 10, "auxiliary loss\na second Adam owns the quantiles", "orange", 10.5)
    _arrow(axis, (22, 18), (22, 12))
    return figure
