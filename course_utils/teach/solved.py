"""The exercises of the course, and which of them a file of solved ones names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "progress.txt"  # one line for each solved exercise, beside the learner's copies of the lessons
_EXERCISE = re.compile(r"""@exercise\(\s*"(\d\d\.\d+)",\s*(["'])(.+?)\2,""")


@cache
def titles() -> dict[str, str]:
    """``{"01.1": "How long is Adam's step?", ...}``: every exercise, read from the lessons' sources, none imported."""
    lessons = (ROOT / "course_utils" / "lessons").glob("lesson_*/*.py")
    found = [match for path in lessons for match in _EXERCISE.findall(path.read_text(encoding="utf-8"))]
    return {id: title for id, _, title in sorted(found, key=lambda match: tuple(map(int, match[0].split("."))))}


def in_lesson(number: str) -> list[str]:
    """The exercises of lesson ``number``, such as ``"01"``."""
    return [id for id in titles() if id.startswith(f"{number}.")]


def read(file: Path) -> set[str]:
    """The exercises that ``file`` names; a line that is none (damaged, edited) counts for nothing."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # nothing solved yet
        return set()
    return {line.split()[0] for line in lines if line.strip()} & titles().keys()


def marks(number: str, done: set[str]) -> str:
    """``"●●○○○ 2 of 5"`` for lesson ``number``."""
    ids = in_lesson(number)
    return "".join("●" if id in done else "○" for id in ids) + f" {len(done.intersection(ids))} of {len(ids)}"
