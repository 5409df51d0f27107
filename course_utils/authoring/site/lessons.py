"""A lesson as the site sees it: read from its executed notebook, and rewritten into the notebook that Sphinx renders.

Nothing is executed. The page shows the outputs that are committed; figures move out of the notebook into files, so
that a page stays small and a browser loads them when they are scrolled to.
"""

from __future__ import annotations

import base64
import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course_utils.authoring import mould
from course_utils.authoring.decks.deck import NOTEBOOKS, DeckError, read_executed

_FIGURE = re.compile(r'<img class="figure"[^>]*?src="(data:image/png;base64,([^"]+))"[^>]*>')
_LINK = re.compile(r"(?P<code>`+[^`]+`+)|(?<!!)\[(?P<label>[^\]]*)\]\((?P<link>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_NUMBER = re.compile(r"(?<![\w.,/\[])(\d\d)(?![\w.%/]|\]\()")  # 02 in a sentence, not in 0.02, a path or a link's text


class SiteError(Exception):
    """A site that cannot be built; the message is one sentence for the person at the command line."""


@dataclass(frozen=True)
class Lesson:
    """One lesson: ``number`` (``"01"``), ``name`` (``"01_training_loop"``), ``title`` without its number, ``summary``
    (its first paragraph), ``minutes``, ``needs`` (numbers of the lessons it builds on), ``exercises`` (``"01.1"``,
    ...) and the executed ``notebook``."""

    number: str
    name: str
    title: str
    summary: str
    minutes: str
    needs: tuple[str, ...]
    exercises: tuple[str, ...]
    path: Path
    notebook: Any = field(repr=False, compare=False)

    @property
    def page(self) -> str:
        """The page's address below the site's root."""
        return f"lessons/{self.name}.html"


def read_lesson(path: Path) -> Lesson:
    """The lesson in the executed notebook at ``path``.

    Raises:
        SiteError: not a notebook, not executed, it stopped with an error, or its first cell has no title.
    """
    try:
        notebook = read_executed(path)
    except DeckError as error:
        raise SiteError(str(error)) from error
    opening = notebook.cells[0].source if notebook.cells else ""
    heading = re.match(r"# (\d\d) · (.+)\n\s*\n((?:.+\n?)+)", opening)
    if not heading:
        raise SiteError(f"{path} has no title; allowed: a first cell with '# NN · Title', an empty line, a paragraph")
    needed = re.search(r"\*\*Prerequisites:\*\*((?:.+\n?)+)", opening)
    checks = re.findall(r'teach\.check\(\s*"(\d\d\.\d+)"', "\n".join(cell.source for cell in notebook.cells))
    return Lesson(
        number=heading[1],
        name=path.stem,
        title=heading[2].strip(),
        summary=" ".join(heading[3].split()),
        minutes=mould.minutes(notebook.cells),
        needs=tuple(sorted(set(_NUMBER.findall(needed[1])))) if needed else (),
        exercises=tuple(dict.fromkeys(checks)),
        path=path,
        notebook=notebook,
    )


def read_lessons(wanted: list[str], folder: Path = NOTEBOOKS) -> list[Lesson]:
    """The lessons whose number or name is ``wanted``; all for an empty list.

    Raises:
        SiteError: there is no such lesson, or one cannot be read.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise SiteError(f"no lesson in {folder}; expected files called NN_name.ipynb there")
    for want in wanted:
        if not any(want in (path.stem, path.stem[:2]) for path in paths):
            numbers = ", ".join(path.stem[:2] for path in paths)
            raise SiteError(f"lesson={want!r} does not exist in {folder}; allowed: {numbers}")
    return [read_lesson(path) for path in paths if not wanted or {path.stem, path.stem[:2]} & set(wanted)]


def page_notebook(lesson: Lesson, lessons: list[Lesson], figures: Path, decks: set[str], repository: str = "") -> Any:
    """The notebook that Sphinx renders: links lead to pages, figures to files, sources are highlighted code.

    Args:
        lessons: all lessons of the site; links to others stay text.
        figures: folder of the site's figures; this lesson's go to ``figures/NN/``.
        decks: names of the decks of the site.
        repository: the course's address on GitHub, for a link to Colab; empty: no link.
    """
    notebook = copy.deepcopy(lesson.notebook)
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = rewrite_links(name_lessons(cell.source, lesson, lessons), lessons, decks)
        elif cell.cell_type == "code":
            for number, output in enumerate(cell.outputs):
                where = figures / lesson.number / f"{position:03d}_{number}.png"
                rewrite_output(output, where, f"../figures/{lesson.number}/{where.name}")
    notebook.cells[0].source += "\n\n" + toolbar(lesson, decks, repository)
    return notebook


def toolbar(lesson: Lesson, decks: set[str], repository: str = "") -> str:
    """The line under a lesson's opening: what can be done with this page, as HTML that Sphinx leaves alone."""
    links = [f'<a href="../notebooks/{lesson.name}.ipynb" download>Download notebook</a>']
    if lesson.name in decks:
        links.append(f'<a href="../slides/{lesson.name}.html">Play the slides</a>')
    if lesson.exercises:
        links.append(f'<a href="../exercises.html#lesson-{lesson.number}">{len(lesson.exercises)} exercises</a>')
    if repository.startswith("https://github.com/"):
        path = f"{repository.removeprefix('https://github.com/')}/blob/main/notebooks/{lesson.name}.ipynb"
        links.append(f'<a href="https://colab.research.google.com/github/{path}">Open in Colab</a>')
    hint = "To run it: <code>make lab</code> in a clone of the course."
    return f'<p class="lesson-toolbar">{" ".join(links)} <span>{hint}</span></p>'


def name_lessons(text: str, here: Lesson, lessons: list[Lesson]) -> str:
    """``text`` with a link on each lesson number in its lines **Prerequisites** and **Next**."""
    names = {lesson.number: lesson.name for lesson in lessons if lesson.number != here.number}

    def link(found: re.Match) -> str:
        return f"[{found[1]}]({names[found[1]]}.ipynb)" if found[1] in names else found[1]

    def paragraph(found: re.Match) -> str:
        parts = re.split(r"(\[[^\]]*\]\([^)]*\))", found[2])  # what is a link already stays
        parts[::2] = [_NUMBER.sub(link, part) for part in parts[::2]]
        return found[1] + "".join(parts)

    return re.sub(r"(\*\*(?:Prerequisites|Next):\*\*)((?:.+\n?)+)", paragraph, text)


def rewrite_links(text: str, lessons: list[Lesson], decks: set[str]) -> str:
    """``text`` with its relative links leading to the site's pages; a link to what the site lacks becomes its text."""
    names = {lesson.name for lesson in lessons}

    def target(link: str) -> str | None:
        path = Path(link)
        if re.match(r"[a-z]+:", link):
            return link
        if path.name == "GLOSSARY.md":
            return "../glossary.md"
        if "slides" in path.parts:
            return f"../slides/{path.stem}.html" if path.stem in decks else None
        return f"{path.stem}.ipynb" if path.suffix == ".ipynb" and path.stem in names else None

    def rewrite(found: re.Match) -> str:
        if found["code"]:
            return found[0]
        label, link, anchor = found["label"], found["link"], found["anchor"] or ""
        goal = target(link)
        if goal is None:
            return label
        if goal.startswith("../slides/"):  # not a page of Sphinx's
            return f'<a href="{goal}">{label}</a>'
        return f"[{label}]({goal}{anchor})"

    return _LINK.sub(rewrite, text)


def rewrite_output(output: Any, file: Path, address: str) -> None:
    """Move a figure into ``file`` and refer to it by ``address``; let Sphinx highlight a displayed source."""
    data = output.get("data", {})
    page = data.get("text/html", "")
    if found := _FIGURE.search(page):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(found[2]))
        data["text/html"] = page.replace(found[1], address).replace("<img ", '<img loading="lazy" ', 1)
    elif data.get("text/latex", "").startswith(r"\begin{Verbatim}"):  # IPython.display.Code
        output.data = type(data)({"text/markdown": f"````python\n{data['text/plain'].rstrip()}\n````"})
