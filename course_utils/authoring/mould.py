"""The mould of a lesson in numbers: how much prose and code its core has, how many minutes it takes, what is folded.

Sections titled ``Deeper: ...`` go further; they are folded in JupyterLab, executed all the same, and can be left out.
Everything else is the core, which must fit its minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

MOST_WORDS, MOST_LINES = 2_650, 390  # of a lesson's core: about 2,600 and 380
WORDS_A_MINUTE, LINES_A_MINUTE, MINUTES_AN_EXERCISE, MINUTES_TO_RUN = 180, 10, 6, 2
PLACEHOLDER = "{minutes}"  # in a lesson's first cell; the build puts the computed minutes there
_HEADING = re.compile(r"^(#{2,4}) +[\d.· ]*(.*)$", re.MULTILINE)
_CHECK = re.compile(r"\bteach\.check\(")


class Size(NamedTuple):
    """Words of prose, non-empty lines of code and exercises."""

    words: int
    lines: int
    exercises: int

    @property
    def minutes(self) -> int:
        """Reading, running and solving, rounded up to five."""
        exact = self.words / WORDS_A_MINUTE + self.lines / LINES_A_MINUTE
        exact += self.exercises * MINUTES_AN_EXERCISE + MINUTES_TO_RUN
        return -(-round(exact) // 5) * 5


def is_deeper(cells: Sequence[Any]) -> Iterator[bool]:
    """For each cell, whether it stands in a section ``Deeper: ...``, which ends at the next heading that is as high."""
    deeper, depth = False, 9
    for cell in cells:
        heading = _HEADING.search(cell.source) if cell.cell_type == "markdown" else None
        if heading and (not deeper or len(heading[1]) <= depth):
            deeper, depth = heading[2].lower().startswith("deeper"), len(heading[1])
        yield deeper


def sizes(cells: Sequence[Any]) -> tuple[Size, Size]:
    """``(core, everything)`` of a lesson's cells."""
    flags = list(is_deeper(cells))
    return _size([c for c, deeper in zip(cells, flags, strict=True) if not deeper]), _size(cells)


def _size(cells: Sequence[Any]) -> Size:
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return Size(
        words=sum(len(text.split()) for text in prose),
        lines=sum(bool(line.strip()) for text in code for line in text.splitlines()),
        exercises=sum(len(_CHECK.findall(text)) for text in code),
    )


def minutes(cells: Sequence[Any]) -> str:
    """``"core 55, with everything 80"``, or one number where nothing is deeper."""
    core, everything = sizes(cells)
    if core == everything:
        return str(core.minutes)
    return f"core {core.minutes}, with everything {everything.minutes}"


def apply(cells: Sequence[Any]) -> None:
    """Put the computed minutes in, and fold the sections that go deeper: in place, before a lesson is executed."""
    text = minutes(cells)
    for cell, deeper in zip(cells, list(is_deeper(cells)), strict=True):
        if cell.cell_type != "markdown":
            continue
        cell.source = cell.source.replace(PLACEHOLDER, text)
        if deeper and _HEADING.match(cell.source):
            cell.metadata["jp-MarkdownHeadingCollapsed"] = True


def too_long(cells: Sequence[Any]) -> str:
    """What makes a lesson's core too long, in one sentence; empty where it fits."""
    core = sizes(cells)[0]
    if core.words <= MOST_WORDS and core.lines <= MOST_LINES:
        return ""
    return (
        f"the core has {core.words:,} words and {core.lines} lines of code; allowed: {MOST_WORDS:,} and {MOST_LINES}: "
        "shorten it, or move what goes further to a section `Deeper: ...`"
    )


def describe(cells: Sequence[Any]) -> str:
    """A lesson's size in one line for its author."""
    core, everything = sizes(cells)
    return (
        f"core {core.words:,} words, {core.lines} lines of code, {core.minutes} minutes; everything "
        f"{everything.words:,} words, {everything.lines} lines, {everything.exercises} exercises, "
        f"{everything.minutes} minutes"
    )
