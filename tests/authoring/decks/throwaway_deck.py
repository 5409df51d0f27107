"""A sound deck of twelve slides, made in memory, for tests that plant one fault at a time."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NUM_SLIDES = 12
RISE = json.loads((Path(__file__).parents[3] / "slides" / "theme" / "rise.json").read_text())
FORMULA = r"$$\theta_{t+1} = \theta_t - \eta \frac{\hat m_t}{\sqrt{\hat v_t}}$$"


def slide(source: str, kind: str = "slide") -> NotebookNode:
    """A Markdown cell of slide type ``kind``."""
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})


def code(source: str, *outputs: NotebookNode, tags: tuple[str, ...] = (), kind: str = "-") -> NotebookNode:
    """An executed code cell."""
    metadata = {"slideshow": {"slide_type": kind}, "tags": list(tags)}
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata=metadata)


def picture(alt: str, width: int = 1230, height: int = 510) -> NotebookNode:
    """The output of ``teach.show``: a PNG with alternative text."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    figure = Figure(figsize=(width / 100, height / 100))
    figure.subplots().plot([0, 1])
    figure.savefig(buffer, format="png", dpi=100)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    page = f'<img class="figure" width="820" alt="{alt}" src="data:image/png;base64,{encoded}">'
    return new_output("display_data", data={"text/html": page, "text/plain": f"Figure: {alt}"})


def deck(*last_slide: NotebookNode, rise: dict | None = RISE) -> NotebookNode:
    """Eleven sound slides of every kind, then ``last_slide`` (default: a sound one) as the twelfth."""
    cells = [
        code("import math", kind="skip"),
        slide("# 00 · A throwaway deck\n\nIts first slide"),
        slide("Welcome, everybody.", "notes"),
        slide("## Formulas\n\n" + FORMULA + r" with $\eta > 0$"),
        slide("Read it aloud.", "notes"),
        slide("## Code\n\n```python\nfor batch in loader:  # $HOME stays text\n    optimizer.step()\n```"),
        slide("Fragment next.", "fragment"),
        slide("Walk through it.", "notes"),
        slide("## A figure"),
        code("secret_of_the_figure = 1", picture("A rising line."), tags=("hide-input",)),
        slide("What is on the axes.", "notes"),
    ]
    for number in range(5, NUM_SLIDES):
        cells += [slide(f"## Slide {number}\n\n- one\n- two"), slide(f"Note {number}.", "notes")]
    cells += last_slide or (slide("## The last slide"), slide("Goodbye.", "notes"))
    cells = [NotebookNode(cell, id=f"cell-{position}") for position, cell in enumerate(cells)]
    return new_notebook(cells=cells, metadata={"rise": rise} if rise else {})


def save(nb: NotebookNode, folder: Path, name: str = "00_throwaway") -> Path:
    """Write ``nb`` to ``folder/name.ipynb``."""
    path = folder / f"{name}.ipynb"
    nbformat.write(nb, path)
    return path
