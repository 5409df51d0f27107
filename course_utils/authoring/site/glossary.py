"""GLOSSARY.md as a page: each term has an address and leads to the section of the lesson that introduces it."""

from __future__ import annotations

import html
import re

from course_utils.authoring.decks.deck import ROOT
from course_utils.authoring.site.lessons import Lesson
from course_utils.authoring.site.sections import find_term

GLOSSARY = ROOT / "GLOSSARY.md"
_HEADING = re.compile(r"^## .*\((\d\d)\)$")
_ROW = re.compile(r"^\| (?!term \|)(?P<term>[^|]+?) \| (?P<meaning>.+) \|$")


def page(text: str, lessons: list[Lesson]) -> str:
    """The glossary in MyST Markdown.

    Args:
        text: GLOSSARY.md: sections ``## Title (NN)`` with tables of terms and meanings.
        lessons: of the site; terms of others stay without a link.
    """
    by_number = {lesson.number: lesson for lesson in lessons}
    lesson, lines, used = None, [], set()
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            lesson = by_number.get(heading[1])
        row = _ROW.match(line)
        if row and lesson:
            line = _row(row["term"], row["meaning"], lesson, used)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _row(term: str, meaning: str, lesson: Lesson, used: set[str]) -> str:
    anchor = "term-" + (re.sub(r"\W+", "-", term.lower()).strip("-") or "symbol")
    while anchor in used:
        anchor += "-again"
    used.add(anchor)
    section = find_term(lesson, term)
    goal = f"lessons/{lesson.name}.ipynb" + (f"#{section.anchor}" if section else "")
    return f'| <span id="{html.escape(anchor)}"></span>[{term}]({goal}) | {meaning} |'
