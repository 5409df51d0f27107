"""Pieces of a diagram in boxes and arrows, drawn in the units of its canvas; what diagrams of several lessons share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.teach.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def canvas(height: float, alt: str, width: float = 100, tall: float = 40) -> tuple[Figure, Axes]:
    """A figure ``height`` inches high without axes, ``width`` x ``tall`` units large, origin at the lower left."""
    figure, axis = new_figure(height=height, alt=alt)
    axis.set(xlim=(0, width), ylim=(0, tall))
    axis.set_axis_off()
    return figure, axis


def box(
    axis: Axes, x: float, y: float, w: float, h: float, text: str = "", color: str = "#F2F2F2", size: float = 10
) -> None:
    """A rectangle from its lower left corner, with ``text`` (of ``size`` points) in its middle."""
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((x, y), w, h, facecolor=color, edgecolor="#6B6B6B", linewidth=1))
    if text:
        axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "#444444", width: float = 1.5
) -> None:
    """From ``start`` to ``end``, ``width`` points thick."""
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": width})
