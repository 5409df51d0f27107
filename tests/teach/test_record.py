"""Progress: noted only for a notebook that `make lab` opened, shown on the start page, robust to a damaged file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from course_utils.teach import exercise, record, solved, start_page

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A progress file, with this process as a kernel that `make lab` started."""
    monkeypatch.setenv(record.FILE, str(tmp_path / solved.NAME))
    monkeypatch.setenv(record.SERVER, str(os.getppid()))
    return tmp_path / solved.NAME


def test_every_exercise_is_read_with_its_title():
    for path in (ROOT / "course_utils" / "lessons").glob("lesson_*/exercises.py"):
        number = path.parent.name[-2:]
        with pytest.raises(ValueError) as caught:
            exercise.find(f"{number}.999")
        known = str(caught.value).partition(f"lesson {number}: ")[2].split(", ")
        assert solved.in_lesson(number) == sorted(known)
        assert [solved.titles()[id] for id in known] == [exercise.find(id).title for id in known]


def test_a_solved_exercise_is_noted_once_and_the_start_page_follows(file):
    assert record.record("01.2") == "Lesson 01: ○●○○○ 1 of 5 exercises solved."
    assert record.record("01.2") == "Lesson 01: ○●○○○ 1 of 5 exercises solved."
    (line,) = file.read_text().splitlines()
    assert re.fullmatch(r"01\.2 \d{4}-\d\d-\d\d \d\d:\d\d", line)
    page = (file.parent / start_page.NAME).read_text()
    assert "○●○○○ 1 of 5" in page and f"1 of {len(solved.titles())} exercises solved" in page


def test_check_says_how_far_the_lesson_is(file, capsys):
    exercise.check("01.1", exercise.solution("01.1"))
    exercise.check("01.1", (0, 0, 0))
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.endswith("correct. Lesson 01: ●○○○○ 1 of 5 exercises solved.")
    assert second.startswith("✗ 01.1")
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize("server", [None, "1", "nobody"])
def test_another_processs_kernel_notes_nothing(file, server, monkeypatch, capsys):
    """papermill and nbval start kernels of their own, also where JupyterLab's environment is inherited."""
    monkeypatch.setenv(record.SERVER, server) if server else monkeypatch.delenv(record.SERVER)
    exercise.check("01.1", exercise.solution("01.1"))
    assert capsys.readouterr().out.endswith("correct.\n")
    assert not file.exists()


def test_a_file_that_cannot_be_written_does_not_stop_a_lesson(file, capsys):
    file.mkdir()
    exercise.check("01.1", exercise.solution("01.1"))
    assert "✓ 01.1" in (printed := capsys.readouterr().out) and "not noted in" in printed


def test_a_damaged_file_loses_only_the_damaged_lines(file):
    file.write_bytes(b"01.1 2026-11-27 05:00\n\xff\xfe\n99.9 x\n\n02.3\n01.1 twice\n")
    assert solved.read(file) == {"01.1", "02.3"}


def test_progress_prints_each_lesson_and_what_is_next(file, capsys):
    from course_utils import teach

    file.write_text("".join(f"{id} now\n" for id in [*solved.in_lesson("01"), "02.1"]))
    teach.progress()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "01  ●●●●● 5 of 5     done"
    assert lines[1].startswith("02  ●○○○○ 1 of 5     next: 02.2 ")
    assert lines[-1].startswith("6 of ") and "stays on this machine" in lines[-1]


def test_the_start_page_leads_to_the_first_unfinished_lesson_and_its_links_to_files():
    rows = start_page.lessons((ROOT / "README.md").read_text(encoding="utf-8"))
    page = start_page.render(rows, set(solved.in_lesson("01")), [])
    assert "**Go on with [lesson 02 · Batches](notebooks/02_batches.ipynb).**" in page
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len(targets) == 2 * len(rows) + 2 and all((ROOT / target).exists() for target in targets)
    assert "[lesson 01" in start_page.render(rows, set(solved.titles()), [])  # all done: from the start again
