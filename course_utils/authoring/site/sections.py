"""Where things stand in a lesson: its headings with the addresses that Sphinx gives them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from course_utils.authoring.site.lessons import Lesson


class Section(NamedTuple):
    """A heading: the ``cell`` it stands in, its text, its anchor."""

    cell: int
    title: str
    anchor: str


def sections(lesson: Lesson) -> tuple[Section, ...]:
    """Every heading of ``lesson``, in order."""
    return _sections(tuple((cell.cell_type, cell.source) for cell in lesson.notebook.cells))


@lru_cache(maxsize=64)
def _sections(cells: tuple[tuple[str, str], ...]) -> tuple[Section, ...]:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from myst_parser.slugs import github_slugify, unique_slug

    parser, found, used = MarkdownIt().use(dollarmath_plugin), [], set()
    for position, (kind, source) in enumerate(cells):
        tokens = parser.parse(source) if kind == "markdown" else []
        for opening, inline in zip(tokens, tokens[1:], strict=False):
            if opening.type != "heading_open":
                continue
            title = "".join(t.content for t in inline.children or [] if t.type in ("text", "code_inline"))
            anchor = unique_slug(github_slugify(title), used)
            used.add(anchor)
            found.append(Section(position, title, anchor))
    return tuple(found)


def section_of(lesson: Lesson, cell: int) -> Section:
    """The section in which ``cell`` stands."""
    return [section for section in sections(lesson) if section.cell <= cell][-1]


def find_term(lesson: Lesson, term: str) -> Section | None:
    """The section that introduces ``term``: where it is first set in bold, else in code, else first written."""
    names = [re.escape(name.strip().strip("`")) for name in re.split(r", | \(|/", term.rstrip(")")) if name.strip()]
    name = names[0] + "(?:s|es|ing)?"
    patterns = (rf"\*\*[^*\n]*\b{name}", rf"`[^`\n]*{name}", rf"(?<!\w){name}(?!\w)")
    cells = [(n, cell.source) for n, cell in enumerate(lesson.notebook.cells) if cell.cell_type == "markdown"]
    for pattern in patterns:
        for position, source in cells[1:]:  # the first cell announces, it does not explain
            if re.search(pattern, source, re.IGNORECASE):
                return section_of(lesson, position)
    return None


def exercise_section(lesson: Lesson, id: str) -> Section:
    """The section of exercise ``id``: the one with the call that checks it."""
    cells = enumerate(lesson.notebook.cells)
    check = next(position for position, cell in cells if re.search(rf'teach\.check\(\s*"{re.escape(id)}"', cell.source))
    return section_of(lesson, check)
