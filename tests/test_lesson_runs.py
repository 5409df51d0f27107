"""Executions of lessons are counted whoever starts them, and one too many fails the session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from tests.headless import papermill
from tests.lesson_runs import EXECUTION, record_execution, too_many

ROOT = Path(__file__).resolve().parents[1]
SHORT = """
from pathlib import Path
import pytest
from tests.lesson_runs import record_execution

@pytest.mark.parametrize("time", range({times}))
def test_short(time, record_property):
    record_execution(record_property, Path("02_planted.ipynb"), "short")
"""


def notebook(path: Path, *cells: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    code = [nbformat.v4.new_code_cell(cell, execution_count=number) for number, cell in enumerate(cells, 1)]
    code[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=metadata), path)
    return path


def session(*arguments: object) -> subprocess.CompletedProcess:
    """A test run of its own, with the plugins of this one."""
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "tests.conftest"]
    command += ["-p", "no:cacheprovider", "--nbval", "--nbval-current-env", *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_once_whole_and_once_short_is_fine_on_one_worker(tmp_path):
    (tmp_path / "test_short.py").write_text(SHORT.format(times=1))
    done = session("-n", 0, "--dist", "loadgroup", notebook(tmp_path / "02_planted.ipynb", "a = 1", "b = 2"), tmp_path)
    assert done.returncode == 0, done.stdout
    table = done.stdout.partition("executions per lesson")[2].splitlines()
    assert table[1].split() == ["whole", "short", "browser", "stopped"]
    assert table[2].split() == ["02_planted", "1", "1", "-", "-"]


def test_a_second_execution_fails_the_session_on_several_workers(tmp_path):
    (tmp_path / "test_short.py").write_text(SHORT.format(times=2))
    for folder in ("a", "b"):
        notebook(tmp_path / folder / "01_planted.ipynb", "a = 1", "b = 2")
    done = session("-n", 2, "--dist", "loadgroup", tmp_path)
    assert done.returncode == 1
    assert "01_planted was executed 2 times (whole); allowed: once" in done.stdout
    assert "02_planted was executed 2 times (short); allowed: once" in done.stdout
    assert "2 failed, 6 passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("executions", "sentences"),
    [
        ({("05_x", "whole"): 1, ("05_x", "short"): 1, ("01_x", "browser"): 1, ("01_x", "stopped"): 7}, []),
        ({("05_x", "whole"): 2}, ["05_x was executed 2 times (whole); allowed: once"]),
        ({("01_x", "browser"): 2}, ["01_x was executed 2 times (browser); allowed: once"]),
        ({("05_x", "browser"): 1}, ["05_x was executed (browser); allowed: lesson 01 only"]),
        ({("05_x", "stopped"): 1}, ["05_x was executed (stopped); allowed: lesson 01 only"]),
    ],
)
def test_what_is_too_many(executions, sentences):
    assert too_many(Counter(executions)) == sentences


@pytest.mark.parametrize(
    ("kind", "wrong", "parameters"),
    [("short", "6", {"max_steps": 40}), ("whole", "6", {}), ("stopped", "2", {"max_steps": 40})],
)
def test_papermill_counts_what_a_start_turned_out_to_be(kind, wrong, parameters, tmp_path):
    """Also of a lesson that fails in its last cell; in its second one it has not really run."""
    cells = ["max_steps = 500", *(f"if {cell} == {wrong}:\n    raise ValueError" for cell in range(2, 7))]
    lesson, recorded = notebook(tmp_path / "01_planted.ipynb", *cells), []
    output = tmp_path / "out.ipynb"
    done = papermill(lesson, output, tmp_path, dict(os.environ), lambda *entry: recorded.append(entry), **parameters)
    assert done.returncode != 0
    assert recorded == [(EXECUTION, ["01_planted", kind])]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='twice' is not known; allowed: whole, short"):
        record_execution(print, Path("01_x.ipynb"), "twice")
