"""`make course`: a line per lesson, the others go on after a failure, the failing cell's error comes last."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import time

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
    two_equal_signs = "max_steps = 1\narguments = ['--train_file=data']"  # which papermill cannot read
    write(root / "notebooks" / "01_broken.ipynb", two_equal_signs, "1 + 1", "raise KeyError('planted')", "2")
    write(root / "notebooks" / "02_whole.ipynb", "max_steps = 1", "print('steps', max_steps)")
    return root


def test_others_go_on_and_the_error_comes_last(root, monkeypatch, capsys, caplog):
    caplog.set_level(logging.WARNING)
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
    names = sorted(path.name for path in (root / "build" / "executed").iterdir())
    assert names == ["01_broken.ipynb", "02_whole.ipynb"]
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("papermill")]


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from course_utils.authoring import run_course
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
run_course.ROOT = root = Path(sys.argv[1])
run_course.lessons = lambda: sorted((root / "notebooks").glob("*.ipynb"))
sys.exit(run_course.main([]))
"""


def test_an_interrupt_in_a_cell_is_one_sentence_and_leaves_no_notebook(tmp_path):
    sleeps = f"open({str(tmp_path / 'inside')!r}, 'w').close()\nimport time\ntime.sleep(60)"
    write(tmp_path / "notebooks" / "01_slow.ipynb", "max_steps = 1", "1 + 1", sleeps)
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "inside").exists() and running.poll() is None:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted: the remaining lessons did not run"
    assert list((tmp_path / "build" / "executed").iterdir()) == []


BURN = "import time\nwhile time.process_time() < 2:\n    pass"


def test_cpu_seconds_are_those_of_the_kernel_and_of_what_it_started(tmp_path, capsys):
    write(tmp_path / "notebooks" / "01_idle.ipynb", "import time", "time.sleep(2)")
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}], check=True)"
    write(tmp_path / "notebooks" / "02_busy.ipynb", "max_steps = 1", BURN, child)
    assert run_course.run(sorted((tmp_path / "notebooks").glob("*")), tmp_path / "executed") == {}
    idle, busy = (int(found) for found in re.findall(r"(\d+) CPU-s", capsys.readouterr().out))
    assert 3 <= busy - idle <= 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["99"], "only=99: no such lesson; allowed: 01, 02"),
        (["1"], "only=1: no such lesson"),  # not every lesson whose number begins with 1
        (["01", "trainer"], "only=trainer: no such lesson"),
        (["-p", "max_step", "4"], "max_step=4 is no parameter of lesson 01_"),
        (["03", "-p", "batch_size", "8"], "batch_size=8 is no parameter of lesson 03_"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_before_any_work(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(run_course, "run", lambda *_: pytest.fail("a lesson was started"))
    assert run_course.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {sentence}") and printed.err.count("\n") == 1 and printed.out == ""


def test_a_lesson_is_named_by_its_number_or_its_name(monkeypatch, tmp_path):
    for name in ("01_first", "02_second", "03_third"):
        write(tmp_path / f"{name}.ipynb", "max_steps = 1", "1 + 1")
    monkeypatch.setattr(run_course, "lessons", lambda: sorted(tmp_path.glob("*.ipynb")))
    chosen = []
    monkeypatch.setattr(run_course, "run", lambda notebooks, *_: chosen.extend(n.stem for n in notebooks) or {})
    assert run_course.main(["02_second", "01", "-p", "max_steps", "4"]) == 0
    assert chosen == ["01_first", "02_second"]


@pytest.mark.parametrize(
    ("text", "value"), [("40", 40), ("-3", -3), ("4.5", 4.5), ("local", "local"), ("True", True), ("[1]", "[1]")]
)
def test_words_become_values_as_papermill_reads_them(text, value):
    assert run_course.as_value(text) == value
