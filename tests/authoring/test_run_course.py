"""`make course`: a line per lesson, the others go on after a failure, the failing cell's error comes last."""

from __future__ import annotations

import re

import nbformat
import pytest

from course_utils.authoring import run_course


def write(path, *cells: str) -> None:
    path.parent.mkdir(exist_ok=True)
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    code[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=metadata), path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("course")
    write(root / "notebooks" / "01_broken.ipynb", "max_steps = 1", "1 + 1", "raise KeyError('planted')", "2")
    write(root / "notebooks" / "02_whole.ipynb", "max_steps = 1", "print('steps', max_steps)")
    return root


def test_others_go_on_and_the_error_comes_last(root, monkeypatch, capsys):
    monkeypatch.setattr(run_course, "ROOT", root)
    monkeypatch.setattr(run_course, "lessons", lambda: sorted((root / "notebooks").glob("*.ipynb")))
    assert run_course.main(["-p", "max_steps", "7"]) == 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("[1/2] 01_broken") and "FAILED" in lines[0]
    assert re.fullmatch(r"\[2/2\] 02_whole +\d+ cells +\d+ s +\d+ CPU-s", lines[1])
    assert re.match(r"1 of 2 lessons ran through in \d+ s \(\d+ CPU-s\): /", lines[2])
    assert "01_broken: code cell 4 failed:" in lines
    assert lines[-1] == "KeyError: 'planted'"
    executed = nbformat.read(root / "build" / "executed" / "02_whole.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "steps 7\n"
    assert (root / "build" / "executed" / "01_broken.ipynb").exists()


BURN = "import time\nwhile time.process_time() < 2:\n    pass"


def test_cpu_seconds_are_those_of_the_kernel_and_of_what_it_started(tmp_path, capsys):
    write(tmp_path / "notebooks" / "01_idle.ipynb", "import time", "time.sleep(2)")
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}], check=True)"
    write(tmp_path / "notebooks" / "02_busy.ipynb", "max_steps = 1", BURN, child)
    assert run_course.run(sorted((tmp_path / "notebooks").glob("*")), tmp_path / "executed") == {}
    idle, busy = (int(found) for found in re.findall(r"(\d+) CPU-s", capsys.readouterr().out))
    assert 3 <= busy - idle <= 6


def test_an_unknown_lesson_is_refused(capsys):
    assert run_course.main(["99"]) == 1
    assert "no such lesson" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("40", 40), ("-3", -3), ("4.5", 4.5), ("local", "local"), ("True", True), ("[1]", "[1]")]
)
def test_words_become_values_as_papermill_reads_them(text, value):
    assert run_course.as_value(text) == value
