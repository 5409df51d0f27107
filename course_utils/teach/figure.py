"""One look for every figure: colour-blind safe, legible at notebook width and on a slide, with alt text."""

from __future__ import annotations

import base64
import html
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


def new_figure(
    rows: int = 1, columns: int = 1, height: float = 3.4, alt: str = "", **subplot_options
) -> tuple[Figure, Axes]:
    """A figure 8.2 inches wide and ``height`` inches high per row, in the course's style.

    Built without pyplot's global state, so that nothing is shown twice and nothing leaks.

    Args:
        alt: what the figure shows, for readers who cannot see it: the shape of the result, not measured digits, because
            the text is compared when a lesson is executed again. ``describe`` sets it later.

    Returns:
        ``(figure, axes)`` as ``plt.subplots`` does.
    """
    from matplotlib.figure import Figure

    use_course_style()
    figure = describe(Figure(figsize=(8.2, height * rows), layout="constrained"), alt)
    return figure, figure.subplots(rows, columns, **subplot_options)


def describe(figure: Figure, alt: str) -> Figure:
    """Give ``figure`` its alternative text and return it."""
    figure.alternative_text = alt
    return figure


def show(figure: Figure, alt: str = "") -> None:
    """Display ``figure`` as a picture with its alternative text, in HTML: that is where readers' software looks for it.

    Args:
        figure: a matplotlib figure; its own text (``new_figure(alt=)``, ``describe``) counts where ``alt`` is empty.

    Raises:
        ValueError: there is no alternative text.
    """
    from IPython.display import display

    text = alt.strip() or getattr(figure, "alternative_text", "").strip()
    if not text:
        raise ValueError("alt='' is empty; allowed: a sentence that says what the figure shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    page = f'<img class="figure" width="{WIDTH_PX}" alt="{html.escape(text)}" src="{picture}">'
    display({"text/html": page, "text/plain": f"Figure: {text}"}, raw=True)
