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
# Of text on white. https://www.w3.org/TR/WCAG22/#contrast-minimum asks for 4.5; some text stands on tinted boxes.
ENOUGH_CONTRAST = 5.0
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


def show(figure: Figure) -> None:
    """Display ``figure`` as a picture with its alternative text, in HTML: that is where readers' software looks for it.

    Text in a colour of its own is darkened until it can be read on white (``darken_text``).

    Args:
        figure: a matplotlib figure with alternative text (``new_figure(alt=)``, ``describe``).

    Raises:
        ValueError: it has none.
    """
    from IPython.display import display

    text = getattr(figure, "alternative_text", "").strip()
    if not text:
        raise ValueError("alternative_text='' is empty; allowed: a sentence that says what the figure shows")
    darken_text(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    page = f'<img class="figure" width="{WIDTH_PX}" alt="{html.escape(text)}" src="{picture}">'
    display({"text/html": page, "text/plain": f"Figure: {text}"}, raw=True)


def darken_text(figure: Figure) -> None:
    """Darken, in place, the text of ``figure`` that is too pale to be read on white, in its own hue.

    The course's colours tell lines and bars apart; as text most of them are too pale. White and nearly white text
    stands on something dark and stays.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        rgb = to_rgb(text.get_color())
        if contrast_with_white(rgb) < 1.5:
            continue
        while contrast_with_white(rgb) < ENOUGH_CONTRAST:
            rgb = tuple(0.97 * channel for channel in rgb)
        if rgb != to_rgb(text.get_color()):
            text.set_color(rgb)


def contrast_with_white(rgb: tuple[float, float, float]) -> float:
    """WCAG 2's contrast ratio of a colour, channels from 0 to 1, on white: 1 (white) to 21 (black)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
