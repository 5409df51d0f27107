"""A figure on a slide says in a sentence what to take from it."""

from __future__ import annotations

import re

import jupytext
import pytest

from course_utils.authoring import build

DECKS = sorted((build.ROOT / "slides").glob("[0-9][0-9]_*.py"))


def figures_without_a_sentence(cells: list) -> list[str]:
    """Titles of the slides that show a figure and no line of text."""
    found, title, text, figure = [], "", "", False
    for cell in [*cells, None]:
        kind = cell and cell.metadata.get("slideshow", {}).get("slide_type")
        if cell is None or kind == "slide":
            if figure and not re.search(r"(?m)^(?!#)\S.{19,}", text):
                found.append(title)
            title, text, figure = (cell.source.splitlines()[0] if cell else ""), "", False
        if cell is None or kind in ("notes", "skip"):
            continue
        if cell.cell_type == "markdown":
            text += cell.source + "\n"
        figure |= cell.cell_type == "code" and "teach.show(" in cell.source
    return found


@pytest.mark.parametrize("deck", DECKS, ids=lambda path: path.stem)
def test_every_figure_has_its_sentence(deck):
    assert figures_without_a_sentence(jupytext.read(deck).cells) == []


def test_a_bare_figure_is_found():
    page = '# %% [markdown] slideshow={"slide_type": "slide"}\n# ## Title\n\n# %%\nteach.show(f)\n\n'
    page += '# %% [markdown] slideshow={"slide_type": "notes"}\n# What the speaker says about this figure.\n'
    assert figures_without_a_sentence(jupytext.reads(page, "py:percent").cells) == ["## Title"]
    said = page.replace("# ## Title", "# ## Title\n#\n# The sentence that everybody should remember.")
    assert figures_without_a_sentence(jupytext.reads(said, "py:percent").cells) == []
