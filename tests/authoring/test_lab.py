"""`make lab`: copies that are never overwritten, a newer lesson announced and put beside, a start page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from course_utils.authoring import lab as make_lab  # `lab` is the fixture that starts notebooks
from course_utils.teach import record, solved, start_page
from tests import make_target

FIRST = "notebooks/01_training_loop.ipynb"


def lesson(version: str, text: str = "x") -> str:
    """A notebook sealed to ``version`` of its source."""
    cell = {"cell_type": "markdown", "metadata": {}, "source": text, "id": "a"}
    metadata = {"course": {"source_sha256": version}}
    return json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def course(tmp_path) -> Path:
    """A course of one lesson and a deck."""
    root = tmp_path / "course"
    for name in (FIRST, "slides/01_training_loop.ipynb"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(lesson("one"))
    (root / "slides" / "rise.css").write_text("")
    (root / "GLOSSARY.md").write_text("# Glossary\n")
    return root


@pytest.fixture
def work(course) -> Path:
    """The learner's copies of it."""
    make_lab.prepare(course, course / "work")
    return course / "work"


def test_copies_lie_as_in_the_course_so_that_links_hold(course, work):
    for name in (FIRST, "slides/01_training_loop.ipynb", "slides/rise.css", "GLOSSARY.md"):
        assert (work / name).read_bytes() == (course / name).read_bytes()
    assert (work / "start.md").exists()


def test_a_changed_copy_stays_and_the_newer_lesson_is_announced_until_it_is_fetched(course, work, capsys):
    (work / FIRST).write_text(lesson("one", "my answer"))
    (course / FIRST).write_text(lesson("two", "new text"))
    for _ in range(2):
        make_lab.prepare(course, work)
        assert "make lab NEW=01" in capsys.readouterr().out
        assert f"**Newer in the course** than your copy: {FIRST}" in (work / "start.md").read_text()
    make_lab.prepare(course, work, "01")
    assert "01_training_loop_2.ipynb" in capsys.readouterr().out
    assert (work / FIRST).read_text() == lesson("one", "my answer")
    assert (work / "notebooks" / "01_training_loop_2.ipynb").read_text() == lesson("two", "new text")
    make_lab.prepare(course, work)
    assert capsys.readouterr().out == "" and "Newer" not in (work / "start.md").read_text()


def test_a_copy_that_was_never_changed_is_replaced(course, work, capsys):
    (course / FIRST).write_text(lesson("two"))
    make_lab.prepare(course, work)
    assert (work / FIRST).read_text() == lesson("two")
    assert "you had not changed it" in capsys.readouterr().out


def test_a_rebuilt_lesson_with_the_same_source_is_not_newer(course, work, capsys):
    (work / FIRST).write_text(lesson("one", "my answer"))
    (course / FIRST).write_text(lesson("one", "another timing"))
    make_lab.prepare(course, work)
    assert (work / FIRST).read_text() == lesson("one", "my answer") and capsys.readouterr().out == ""


def test_without_its_notes_no_copy_is_lost(course, work):
    (work / FIRST).write_text(lesson("one", "my answer"))
    (course / FIRST).write_text(lesson("two"))
    (work / start_page.STATE).unlink()
    make_lab.prepare(course, work)
    assert (work / FIRST).read_text() == lesson("one", "my answer")
    assert FIRST in (work / "start.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--new", "99"], "new=99: no such lesson; allowed: all, 01, 02"),
        (["--new", "1"], "new=1: no such lesson"),
        (["--folder", str(make_lab.ROOT)], "this is the course itself"),
        (["--folder", "/proc/nowhere", "--copy-only"], "/proc/nowhere"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_any_work(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(make_lab.os, "execve", lambda *_: pytest.fail("JupyterLab was started"))
    assert make_lab.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert sentence in printed.err


def test_jupyterlab_gets_the_folder_the_settings_and_what_else_was_asked(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(make_lab, "prepare", lambda *_: None)
    monkeypatch.setattr(make_lab.os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(make_lab.os, "geteuid", lambda: 0)
    make_lab.main(["--folder", str(tmp_path), "--port", "9000"])
    ((program, command, environment),) = started
    assert command[:3] == [program, "-m", "jupyterlab"] and command[-2:] == ["--port", "9000"]
    assert f"--ServerApp.root_dir={tmp_path}" in command and "--allow-root" in command
    assert environment[record.FILE] == str(tmp_path / solved.NAME)
    settings = json.loads((make_lab.SETTINGS / "overrides.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


def test_the_make_target_passes_its_options_on():
    last = make_target.commands("lab", "NEW=03", "ARGS=--port 9000").splitlines()[-1]
    assert last.endswith("course_utils.authoring.lab --new '03' --port 9000")


def test_copies_are_ignored_by_git():
    assert "/work/" in (make_lab.ROOT / ".gitignore").read_text().splitlines()
