"""``run_launched``: the three real launchers, live output by rank, first failure with its traceback, nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from course_utils.parallel import RanksFailed, launched, run_launched
from course_utils.parallel.launched import LAUNCHERS
from course_utils.parallel.launched_rank import FOLDER

QUICK = {"on_cpu": True, "echo": None, "timeout": 120}


@pytest.fixture
def program(tmp_path):
    """Write a program whose ranks know who they are, and nothing heavier than the standard library."""

    def write(body):
        file = tmp_path / "my program.py"
        opening = "import os, sys, time, subprocess\nfrom course_utils.parallel import report\n"
        file.write_text(opening + "rank = int(os.environ['RANK'])\n" + body)
        return file

    return write


def left(folder):
    """Processes that belong to the run in ``folder``, zombies that nobody has reaped yet apart."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(FOLDER) == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_launcher_streams_and_reports(launcher, program, tmp_path):
    file = program(
        "print('first', sys.argv[1:])\n"
        "time.sleep(1.5)\n"
        "os.system('echo from a child')\n"
        "report({'rank': rank, 'world': int(os.environ['WORLD_SIZE']), 'name': __name__})\n"
    )
    lines = []
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    found = run_launched(
        file,
        launcher,
        2,
        ["--a b", "c"],
        echo=lambda line: lines.append((time.monotonic(), line)),
        on_cpu=True,
        folder=tmp_path / "kept",
        environment={"TMPDIR": str(temporary)},
    )
    assert found == [{"rank": rank, "world": 2, "name": "__main__"} for rank in (0, 1)]
    assert not list(temporary.iterdir()) and not [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]
    when = {line: moment for moment, line in lines}
    for rank in (0, 1):
        assert when[f"[rank {rank}] from a child"] - when[f"[rank {rank}] first ['--a b', 'c']"] > 1  # live


def test_the_rank_that_failed_first_is_named_with_its_traceback(program, tmp_path):
    file = program(
        "subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "time.sleep(1 if rank else 2)\n"
        "raise KeyError('the reason' if rank else 'a consequence')\n"
    )
    with pytest.raises(RanksFailed) as caught:
        run_launched(file, folder=tmp_path / "run", **QUICK)
    message = str(caught.value)
    assert "rank 1 of 2 failed first" in message and "KeyError: 'the reason'" in message
    assert "my program.py" in message and "KeyError: 'a consequence'" not in message and "runpy" not in message
    assert left(tmp_path / "run") == []


@pytest.mark.parametrize("every", (launched.EVERY, 5))  # 5: both ranks are gone at the second look
def test_a_killed_rank_is_named(program, tmp_path, monkeypatch, every):
    monkeypatch.setattr(launched, "EVERY", every)
    file = program("print('still here')\ntime.sleep(1)\nif rank: os.kill(os.getpid(), 9)\ntime.sleep(300)\n")
    with pytest.raises(RanksFailed, match=r"rank 1 of 2 failed first:\nit ended without an exception(.|\n)*still here"):
        run_launched(file, folder=tmp_path / "run", **QUICK)
    assert left(tmp_path / "run") == []


def test_a_hanging_rank_is_shown_with_its_stack(program, tmp_path):
    file = program("def stuck():\n    time.sleep(300)\n\nif rank:\n    stuck()\nelse:\n    report('done')\n")
    began = time.monotonic()
    with pytest.raises(RanksFailed, match=r"killed after 12 s; rank\(s\) \[1\] had not ended(.|\n)*in stuck"):
        run_launched(file, folder=tmp_path / "run", **QUICK | {"timeout": 12})
    assert time.monotonic() - began < 40
    assert left(tmp_path / "run") == []


def test_an_interrupt_leaves_no_orphan(program, tmp_path):
    file = program("subprocess.Popen(['sleep', '300'], start_new_session=True)\nprint('ready')\ntime.sleep(300)\n")
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
        f"from course_utils.parallel import run_launched\nrun_launched({str(file)!r}, folder='run', on_cpu=True)"
    )
    command = [sys.executable, "-uc", code]
    caller = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waiting = {"[rank 0] ready\n", "[rank 1] ready\n"}
    while waiting:  # a launcher on a busy machine may say more than that
        line = caller.stdout.readline()
        assert line, "the run ended before both ranks were ready"
        waiting.discard(line)
    assert len(left(tmp_path / "run")) >= 4
    caller.send_signal(signal.SIGINT)
    _, errors = caller.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    end = time.monotonic() + 20  # until the kernel has taken the killed ones away
    while left(tmp_path / "run") and time.monotonic() < end:
        time.sleep(0.1)
    assert left(tmp_path / "run") == []


def test_a_report_counts_when_the_rank_aborts_after_its_work(program, tmp_path):
    body = (
        "report(rank)\n"
        f"while len(list(__import__('pathlib').Path({str(tmp_path / 'run')!r}).glob('rank-*.json'))) < 2:\n"
        "    time.sleep(0.05)  # until all work is done: the launcher ends the others when one rank aborts\n"
        "os.abort()\n"
    )
    assert run_launched(program(body), folder=tmp_path / "run", **QUICK) == [0, 1]


def test_a_restarted_rank_counts(program, tmp_path):
    file = program(
        "if rank and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': sys.exit('not yet')\n"
        "report([rank, os.environ['TORCHELASTIC_RESTART_COUNT']])\n"
    )
    found = run_launched(file, options=["--max-restarts=1"], **QUICK)
    assert [rank for rank, _ in found] == [0, 1] and found[1][1] == "1"


def test_bad_input_is_one_sentence(program, tmp_path):
    for call, words in [
        (lambda: run_launched(tmp_path / "none.py", **QUICK), "no such file"),
        (lambda: run_launched(program(""), "mpirun", **QUICK), "launcher='mpirun'"),
        (lambda: run_launched(program(""), processes=0, **QUICK), "processes=0"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value) and "allowed" in str(caught.value)


def test_a_launcher_that_starts_nothing_is_shown(program):
    with pytest.raises(RanksFailed, match="no rank began(.|\n)*--no-such-option"):
        run_launched(program(""), options=["--no-such-option"], **QUICK)


def test_report_outside_a_run_does_nothing(monkeypatch, program):
    monkeypatch.delenv(FOLDER, raising=False)
    done = subprocess.run([sys.executable, program("report(1)")], env={**os.environ, "RANK": "0"}, check=False)
    assert done.returncode == 0 and not list(Path.cwd().glob("rank-*"))
