"""Diagrams of lesson 09, drawn without measuring: a step's way, number formats, the queue of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.lessons.lesson_09.device_queue import Schedule

PALE = {"blue": "#D6E8F4", "orange": "#FBE9C6", "green": "#D3EFE5", "red": "#F8DFCF", "grey": "#EEEEEE"}


def _box(axis: Axes, x: float, y: float, text: str, color: str, width: float, height: float = 1.0) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    edge = COLORS.get(color, COLORS["grey"])
    axis.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", fc=PALE[color], ec=edge, linewidth=1.6)
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=10.5)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "#444444") -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style)


def step() -> Figure:
    """One optimizer step from texts to weights: shapes above, what can be made faster or smaller below."""
    alt = (
        "A step as a chain of boxes. Texts become rows of B by L token ids, the layers make vectors B by L by H, "
        "the output layer makes logits B by L by V, then comes the loss. Backward leads back through the same boxes to "
        "gradients, and the optimizer changes the weights. Below rows, layers, logits and loss stands what this lesson "
        "does there."
    )
    figure, axis = new_figure(height=3.6, alt=alt)
    axis.set(xlim=(0, 13), ylim=(0, 5.3))
    axis.set_axis_off()
    boxes = (
        (1.2, "texts", "", "grey"),
        (3.6, "rows\n(B, L)", "grouping,\npacking,\nworkers", "orange"),
        (6.2, "layers\n(B, L, H)", "bf16, SDPA,\ncompile,\ncheckpointing", "blue"),
        (8.8, "logits\n(B, L, V)", "chunked\ncross-entropy", "blue"),
        (11.4, "loss", "fp16: scaled", "blue"),
    )
    for (x, name, below, color), after in zip(boxes, [*boxes[1:], None], strict=True):
        _box(axis, x, 4.2, name, color, 1.6, 1.3)
        axis.text(x, 3.35, below, ha="center", va="top", fontsize=9.5, color="#444444")
        if after:
            _arrow(axis, (x + 0.85, 4.35), (after[0] - 0.87, 4.35))
            if x > 3:
                _arrow(axis, (after[0] - 0.85, 3.98), (max(x + 0.87, 4.9), 3.98), COLORS["red"])
    axis.text(7.5, 5.05, "forward (black) keeps activations for backward (red)", ha="center", fontsize=10)
    _arrow(axis, (4.9, 3.98), (4.9, 1.55), COLORS["red"])
    _box(axis, 4.9, 0.95, "gradients", "red", 1.9)
    _arrow(axis, (5.9, 0.95), (7.35, 0.95))
    _box(axis, 8.5, 0.95, "optimizer\nfused", "green", 2.1)
    _arrow(axis, (9.6, 0.95), (10.75, 0.95))
    _box(axis, 11.75, 0.95, "weights\nfp32", "green", 1.8)
    return figure


def formats() -> Figure:
    """Bits of fp32, bf16 and fp16: sign, exponent, fraction."""
    alt = (
        "Three rows of bits. fp32 has one sign bit, eight of exponent and 23 of fraction. bf16 is its first half: the "
        "same eight of exponent, seven of fraction. fp16 has five of exponent and ten of fraction."
    )
    figure, axis = new_figure(height=2.2, alt=alt)
    rows = (("fp32", 8, 23), ("bf16", 8, 7), ("fp16", 5, 10))
    for place, (name, exponent, fraction) in enumerate(rows):
        y = -place
        for bit in range(1 + exponent + fraction):
            color = "grey" if bit == 0 else "orange" if bit <= exponent else "blue"
            axis.fill([bit, bit + 0.94, bit + 0.94, bit], [y, y, y + 0.72, y + 0.72], color=COLORS[color], alpha=0.75)
        axis.text(-0.6, y + 0.36, name, ha="right", va="center", fontsize=12, weight="bold")
        text = f"exponent {exponent}, fraction {fraction}"
        axis.text(1.6 + exponent + fraction, y + 0.36, text if place else "", va="center", fontsize=11)
    axis.text(5, 1.0, "exponent 8: range", ha="center", color="#9A6B00", fontsize=11)
    axis.text(20.5, 1.0, "fraction 23: precision", ha="center", color=COLORS["blue"], fontsize=11)
    axis.set(xlim=(-4, 33), ylim=(-2.2, 1.6))
    axis.set_axis_off()
    return figure


def queue(schedules: Mapping[str, Schedule]) -> Figure:
    """Host and device over time for each way to run a loop; where a timer stops."""
    alt = (
        "Two timelines of a loop, each with a row for the program and one for the device. Without reading results "
        "the program puts all steps into the queue quickly and the device works without gaps. With a reading after "
        "each step the program waits, and the device stands still while the next step is being put into the queue."
    )
    figure, axes = new_figure(len(schedules), 1, height=1.75, alt=alt, sharex=True, squeeze=False)
    longest = max(one.total for one in schedules.values())
    for axis, (name, one) in zip(axes[:, 0], schedules.items(), strict=True):
        for row, (spans, color) in enumerate(((one.host, "orange"), (one.device, "blue"))):
            for number, (start, end) in enumerate(spans):
                axis.barh(-row, end - start, left=start, height=0.62, color=COLORS[color], ec="white", alpha=0.85)
                axis.text((start + end) / 2, -row, str(number + 1), ha="center", va="center", fontsize=9, color="white")
        reads = len(one.host) > 1 and one.host[1][0] == one.device[0][1]  # the last step is read too
        left = one.total if reads else one.host[-1][1]
        axis.axvline(one.total, color=COLORS["black"], linewidth=1.6)
        axis.axvline(left, color=COLORS["red"], linestyle="--", linewidth=1.6)
        axis.set_yticks([0, -1], ["program", "device"])
        axis.set_title(name, fontsize=11.5)
        axis.set(xlim=(0, longest * 1.04), ylim=(-1.6, 0.6))
        axis.grid(visible=False)
    axes[-1, 0].set_xlabel("ms; dashed: the program has left the loop, line: the work is done")
    return figure
