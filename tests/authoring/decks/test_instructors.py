"""slides/INSTRUCTORS.md names lessons, sections, slides and exercises that are there."""

from __future__ import annotations

import re

import pytest

from course_utils.authoring.decks.deck import DECKS, NOTEBOOKS

TEXT = (DECKS / "INSTRUCTORS.md").read_text(encoding="utf-8")
SOURCES = {path.stem[:2]: path for path in sorted((NOTEBOOKS / "source").glob("[0-9][0-9]_*.py"))}
ROWS = dict(re.findall(r"^\| (\d\d) \| (.+) \|$", TEXT, re.MULTILINE))


def test_every_lesson_has_its_row():
    assert list(ROWS) == list(SOURCES)


@pytest.mark.parametrize("number", ROWS)
def test_what_to_show_is_there(number):
    lesson = SOURCES[number].read_text(encoding="utf-8")
    named = re.findall(r"[Ss]ection (\d+)", ROWS[number])
    assert named and all(re.search(rf"^# ## {section} · ", lesson, re.MULTILINE) for section in named)


def test_slides_and_exercises_of_the_agenda_are_there():
    agenda = TEXT[TEXT.index("## One hour") : TEXT.index("## Each lesson")]
    decks = "".join(path.read_text(encoding="utf-8") for path in DECKS.glob("[0-9][0-9]_*.py"))
    slides = [name for name in re.findall(r"\*([A-Z][^*]+)\*", agenda) if name != "Deeper"]
    assert len(slides) >= 6
    for name in slides:
        assert re.search(rf"^# ## {re.escape(name)}", decks, re.MULTILINE), name
    for number, which in re.findall(r"\b(\d\d)\.(\d)\b", agenda):
        assert f'teach.check("{number}.{which}"' in SOURCES[number].read_text(encoding="utf-8")
