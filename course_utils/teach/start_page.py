"""The page on which ``make lab`` opens JupyterLab: where to go on, the course map, what is solved.

It is written again whenever an exercise is solved; JupyterLab shows that when the browser's page is loaded again.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from course_utils.teach import solved

NAME = "start.md"
STATE = Path(".lab") / "state.json"  # in the folder of copies; written by authoring/lab.py
ROW = re.compile(
    r"^\| (?P<number>\d\d) (?P<title>.+?) \| \[(?P<name>\w+)\]\((?P<notebook>.+?)\) \| (?P<exercises>\d+) "
    r"\| \[deck\]\((?P<deck>.+?)\) \| (?P<minutes>\d+(?: / \d+)?) \|$",
    re.MULTILINE,
)
PAGE = """# How models are really trained

**Go on with {following}.** {solved} of {all} exercises solved.{newer}

- Run the cells one by one: <kbd>Shift</kbd>+<kbd>Enter</kbd> runs a cell and goes to the next. Read, guess, then run.
  *Run All Cells* works too, takes about a minute, and leaves you at the quiz at the end.
- This is your copy: change what you like. To try a cell again from a clean state: *Kernel > Restart Kernel*.
- An exercise is a cell to fill in. The cell after it says what is right, what is wrong, and on which input.
- Sections titled *Deeper* are folded and can be left out. Terms: [glossary](GLOSSARY.md).
- The list of sections is on the left, third symbol from the top; the folder symbol above it shows the files.

| lesson | exercises solved | minutes: core / all | slides |
|---|---|---|---|
{rows}

In any notebook, `teach.progress()` prints which exercise is next. Solved exercises are noted in `{file}`, a text file
beside this page; reload the browser's page (F5) to see new ones here. Nothing leaves this machine.
"""


class Lesson(NamedTuple):
    """A row of README's table."""

    number: str
    title: str
    name: str
    notebook: str
    exercises: str
    deck: str
    minutes: str


def lessons(readme: str) -> list[Lesson]:
    """The course map as README's table has it."""
    return [Lesson(**match.groupdict()) for match in ROW.finditer(readme)]


def render(rows: list[Lesson], done: set[str], newer: list[str]) -> str:
    """The page's text.

    Args:
        rows: all lessons, in order.
        done: numbers of the solved exercises.
        newer: names of files in the folder that the course has in a newer version.
    """
    unfinished = [row for row in rows if not done.issuperset(solved.in_lesson(row.number))]
    following = (unfinished or rows)[0]
    lines = [
        f"| [{row.number} {row.title}]({row.notebook}) | {solved.marks(row.number, done)} | {row.minutes} "
        f"| [deck]({row.deck}) |"
        for row in rows
    ]
    return PAGE.format(
        following=f"[lesson {following.number} · {following.title.partition(':')[0]}]({following.notebook})",
        solved=len(done),
        all=len(solved.titles()),
        newer=_announcement(newer),
        rows="\n".join(lines),
        file=solved.NAME,
    )


def _announcement(newer: list[str]) -> str:
    if not newer:
        return ""
    number = Path(newer[0]).name[:2]
    example = f"`make lab NEW={number}`" if number.isdigit() else "`make lab NEW=all`"
    return f"\n\n**Newer in the course** than your copy: {', '.join(newer)}. {example} puts the new one beside yours."


def write(folder: Path) -> Path:
    """Write the page for the copies in ``folder``; it is replaced in one step."""
    state = folder / STATE
    newer = json.loads(state.read_text(encoding="utf-8"))["newer"] if state.exists() else []
    rows = lessons((solved.ROOT / "README.md").read_text(encoding="utf-8"))
    text = render(rows, solved.read(folder / solved.NAME), newer)
    temporary = folder / f".{NAME}.{os.getpid()}.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / NAME)
    return folder / NAME
