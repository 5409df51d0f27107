"""Lessons written in the mould keep its rules; each rule is shown to notice a planted fault."""

from __future__ import annotations

import nbformat
import pytest

from course_utils.authoring import build, mould
from course_utils.teach import exercise
from tests.lessons import mould_rules as rules

LESSONS = [notebook for source, notebook in build.targets().items() if build.is_lesson(source)]
TEXT, CODE = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


@pytest.mark.parametrize("rule", rules.MOULD_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson(lesson, rule):
    assert rule(nbformat.read(lesson, as_version=4)) == []


@pytest.fixture
def lesson(monkeypatch):
    monkeypatch.setattr(exercise, "_REGISTRY", {})
    monkeypatch.setattr(exercise.importlib, "import_module", lambda name: None)
    for number, kind in enumerate(("predict", "write", "debug", "write"), 1):
        exercise.exercise(f"09.{number}", "A task", ("Look there.", "Do this."), kind)(print)
    cells = [
        TEXT("# 09 · A lesson\n**Minutes:** {minutes} · **Prerequisites:** none"),
        TEXT("## 1 · First"),
        *(CODE(f'teach.check("09.{number}", answer)') for number in (1, 2, 3, 4)),
        TEXT("## Deeper: inside"),
        CODE("import subprocess\n" * 20),
        TEXT("### a part of it"),
        TEXT("## 2 · Second"),
        *(CODE("x = 1") for _ in range(8)),
    ]
    mould.apply(cells)
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize("rule", rules.MOULD_RULES, ids=lambda rule: rule.__name__)
def test_a_good_lesson_passes(rule, lesson):
    assert rule(lesson) == []


def add(source: str, kind=CODE, place: int = 1):
    return lambda nb: nb.cells.insert(place, kind(source))


@pytest.mark.parametrize(
    ("rule", "plant", "message"),
    [
        (rules.fits_its_minutes, add("word " * 2651, TEXT), "2,6"),
        (rules.fits_its_minutes, add("x = 1\n" * 391), "shorten it"),
        (rules.says_its_minutes, lambda nb: nb.cells[0].update(source="**Minutes:** 7 · none"), "use {minutes}"),
        (rules.folded, lambda nb: nb.cells[6].metadata.clear(), "Deeper: inside"),
        (rules.deeper_headings_start_cells, add("Words.\n\n### Deeper: below", TEXT), "in one cell: 'Words."),
        (rules.deeper_headings_start_cells, add("An end.\n\n## 2 · Core", TEXT, 9), "in one cell: 'An end."),
        (rules.narrow_lines, add("x = '" + "a" * 90 + "'"), "96 characters"),
        (rules.claims_instead_of_asserts, add("assert x < 3"), "assert x < 3"),
        (rules.no_plumbing_in_the_core, add("from unittest import mock"), "imports unittest"),
        (rules.exercises_after_their_sections, lambda nb: nb.cells.pop(3), "3 exercises"),
        (
            rules.exercises_after_their_sections,
            lambda nb: nb.cells.extend([*(CODE("x = 1") for _ in range(20)), *(nb.cells.pop(2) for _ in range(4))]),
            "last fifth",
        ),
        (rules.figures_know_their_text, add('teach.show(f, alt="A line.")'), "alt= in a cell"),
    ],
)
def test_a_planted_fault_is_noticed(rule, plant, message, lesson):
    plant(lesson)
    assert message in "\n".join(rule(lesson))


def test_minutes_are_computed_and_a_deeper_section_ends_at_the_next_heading_as_high(lesson):
    assert list(mould.is_deeper(lesson.cells))[6:10] == [True, True, True, False]
    core, everything = mould.sizes(lesson.cells)
    assert (core.lines, everything.lines, core.exercises) == (12, 32, 4)
    assert core.minutes == 30 and everything.minutes == 30  # 27.3 and 29.3, rounded up to five
    assert (
        lesson.cells[0].source == "# 09 · A lesson\n**Minutes:** core 30, with everything 30 · **Prerequisites:** none"
    )
