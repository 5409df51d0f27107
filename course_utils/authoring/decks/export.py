"""How a deck's notebook becomes a page: nbconvert's SlidesExporter with our template and formulas as MathML."""

from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters import SlidesExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from traitlets.config import Config

from course_utils.authoring.decks.deck import DeckError, reveal_file

LOOK_SECONDS, SPOKEN_WORDS_A_MINUTE = 30, 130
# MathML Core: how many children each of these takes. latex2mathml leaves one out when an argument is missing.
_CHILDREN = dict.fromkeys(("mfrac", "msub", "msup", "munder", "mover", "mroot"), 2) | {"msubsup": 3, "munderover": 3}


def export(nb: NotebookNode, path: Path, theme: Path) -> tuple[str, int, str]:
    """Convert an executed notebook.

    Args:
        nb: the notebook; ``path`` names it in error messages.
        theme: folder that holds the template folder ``course``.

    Returns:
        ``(title, number of slides, HTML page)``.

    Raises:
        DeckError: no title, no slide, or a formula that cannot be converted.
    """
    nb, num_slides = straighten(nb, path)
    deck = {
        "title": deck_title(nb, path),
        "num_slides": num_slides,
        "seconds": seconds(nb, num_slides),
        "slide_number": lambda cell: cell.metadata.slide_number,
        "theme_css": (theme / "course" / "theme.css").read_text(encoding="utf-8"),
        "reveal_css": reveal_file("dist/reset.css") + reveal_file("dist/reveal.css"),
        "reveal_js": reveal_file("dist/reveal.js"),
        "notes_js": reveal_file("plugin/notes/notes.js"),
    }
    exporter = DeckExporter(template_name="course", extra_template_basedirs=[str(theme)], config=Config())
    exporter.deck_path = path
    page, _ = exporter.from_notebook_node(nb, resources={"deck": deck, "metadata": {"name": path.stem}})
    # nbconvert fills a missing alt with this sentence, which tells a reader nothing: leave it visibly empty instead.
    return deck["title"], num_slides, page.replace('alt="No description has been provided for this image"', 'alt=""')


def straighten(nb: NotebookNode, path: Path) -> tuple[NotebookNode, int]:
    """A copy with numbered slides in one line (subslides become slides) and each slide's notes next to its first cell.

    reveal.js shows notes inside a fragment only while that fragment is on, so notes must come before the fragments.
    """
    nb = copy.deepcopy(nb)
    cells, first_cell, number = [], 0, 0
    for cell in nb.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type", "-")
        if kind == "skip" or cell.cell_type == "raw":
            continue
        if kind in ("slide", "subslide") or not number:
            if kind == "notes":
                raise DeckError(f"{path} starts with notes; allowed: a slide first, then its notes")
            cell.metadata.setdefault("slideshow", {})["slide_type"] = "slide"
            number += 1
            first_cell = len(cells)
        cell.metadata.slide_number = number
        cells.insert(first_cell + 1 if kind == "notes" else len(cells), cell)
    if not number:
        raise DeckError(f"{path} has no slide; allowed: cells with the metadata slideshow.slide_type = 'slide'")
    nb.cells = cells
    return nb, number


def seconds(nb: NotebookNode, num_slides: int) -> list[int]:
    """Seconds for each slide of a straightened deck: a look at it, then its notes, spoken.

    reveal.js' speaker view paces the speaker by them (``data-timing``).
    """
    words = [0] * num_slides
    for cell in nb.cells:
        if cell.metadata.get("slideshow", {}).get("slide_type") == "notes":
            words[cell.metadata.slide_number - 1] += len(cell.source.split())
    return [LOOK_SECONDS + round(60 * count / SPOKEN_WORDS_A_MINUTE) for count in words]


def deck_title(nb: NotebookNode, path: Path) -> str:
    """The text of the deck's first ``# `` heading, without Markdown marks."""
    for cell in nb.cells:
        heading = re.search(r"^# (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if heading:
            return re.sub(r"[*_`]", "", heading[1]).strip()
    raise DeckError(f"{path} has no title; allowed: a first slide with a heading such as '# 01 · The training loop'")


class DeckExporter(SlidesExporter):
    """SlidesExporter whose Markdown turns formulas into MathML: no script in the page, the same in every browser."""

    deck_path: Path | None = None

    @pass_context
    def markdown2html(self, context, source):
        """The Markdown filter; a formula that cannot be converted stops the build with its cell's text."""
        try:
            return MarkdownWithMath(renderer=_MathMLRenderer(escape=False, exclude_anchor_links=True)).render(source)
        except ValueError as error:
            raise DeckError(f"{self.deck_path}: {error}") from error


class _MathMLRenderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def mathml(latex: str, display: str) -> str:
    """``latex`` as a MathML element.

    Raises:
        ValueError: an unknown command or a missing argument, which latex2mathml would print into the slide.
    """
    # latex2mathml knows align*, not aligned; they look the same on a slide.
    text = re.sub(r"\{(aligned|split)\}", "{align*}", latex.strip())
    try:
        # Without its namespace, which an HTML page does not need and ElementTree would write as a prefix.
        tree = ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", convert(text, display=display)))
    except Exception as error:  # its parser raises many types
        raise ValueError(f"formula {latex.strip()!r} cannot be converted to MathML ({type(error).__name__})") from error
    for element in tree.iter():
        if (element.text or "").startswith("\\"):
            raise ValueError(f"formula {latex.strip()!r} uses {element.text}, which latex2mathml does not know")
        if len(element) != _CHILDREN.get(element.tag, len(element)):
            raise ValueError(f"formula {latex.strip()!r} has a <{element.tag}> with an argument missing")
        if element.tag == "mi" and re.fullmatch(r"[a-z]{2,}", element.text or ""):
            # \log p: a function's name needs the space after it that <mi> does not give.
            element.tag = "mo"
            element.attrib.update(lspace="0.167em", rspace="0.167em")
    return ElementTree.tostring(tree, encoding="unicode")
