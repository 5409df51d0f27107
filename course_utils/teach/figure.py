"""One look for every figure: colour-blind safe, legible at notebook width and on a slide, with alt text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), "Color Universal Design": distinguishable with every common colour vision deficiency.
# Yellow is left out (too pale on white); black is for reference lines.
COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
    "grey": "#8A8A8A",
}
WIDTH_PX = 820  # a notebook's text column; a slide scales it up
_DPI = 150


def use_course_style() -> None:
    """Set matplotlib's defaults to the course's style."""
    import matplotlib as mpl

    cycle = [COLORS[name] for name in ("blue", "orange", "green", "red", "purple", "sky", "black")]
    mpl.rcParams.update(
        {
            "axes.prop_cycle": mpl.cycler(color=cycle),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 13,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 12,
            "font.size": 12,
            "grid.color": "#E3E3E3",
            "legend.frameon": False,
            "lines.linewidth": 2.2,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
        }
    )


def new_figure(rows: int = 1, columns: int = 1, height: float = 3.4, **subplot_options) -> tuple[Figure, Axes]:
    """A figure 8.2 inches wide and ``height`` inches high per row, in the course's style.

    Built without pyplot's global state, so that nothing is shown twice and nothing leaks.

    Returns:
        ``(figure, axes)`` as ``plt.subplots`` does.
    """
    from matplotlib.figure import Figure

    use_course_style()
    figure = Figure(figsize=(8.2, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, **subplot_options)


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` as a PNG with alternative text.

    Args:
        figure: a matplotlib figure.
        alt: one or two sentences that say what the figure shows, for readers who cannot see it. State the shape of the
            result, not measured digits: the text is compared when the lesson is re-executed.

    Raises:
        ValueError: ``alt`` is empty.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("alt='' is empty; allowed: a sentence that says what the figure shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    data = {"image/png": buffer.getvalue(), "text/plain": f"Figure: {alt}"}
    display(data, raw=True, metadata={"image/png": {"alt": alt, "width": WIDTH_PX}})
