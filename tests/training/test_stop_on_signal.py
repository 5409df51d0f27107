"""A rank whose launcher is killed stops by itself; the signals are tested with whole runs (test_finetune.py)."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from course_utils.training import stop_on_signal
from course_utils.training.stop_on_signal import GONE, launchers_above

RANK = """
import sys, time
from types import SimpleNamespace
import torch
from course_utils.training import stop_on_signal
stop_on_signal.LOOK, stop_on_signal.GRACE = 0.05, float(sys.argv[2])
stop, control = stop_on_signal.StopOnSignal(), SimpleNamespace(should_save=False, should_training_stop=False)
args = SimpleNamespace(device=torch.device("cpu"))
stop.on_train_begin(args, None, control)
print("trains", flush=True)
for _ in range(600):
    time.sleep(0.1)
    if float(sys.argv[2]) > 1:  # else it hangs in its first step
        stop.on_step_end(args, None, control)
    if control.should_training_stop:
        break
with open(sys.argv[1] + ".tmp", "w") as file:
    file.write(f"{stop.stopped_by} {control.should_save}")
import os
os.replace(sys.argv[1] + ".tmp", sys.argv[1])
"""
AS_A_RANK = {"RANK": "0", "LOCAL_RANK": "0"}
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
RUNNER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LAUNCHER!r}, *sys.argv[1:]])"


def orphan(tmp_path, grace, variables, seconds=20):
    """What the rank wrote after its launcher was killed, and whether it still runs."""
    result = tmp_path / "result"
    command = [sys.executable, "-c", LAUNCHER, RANK, str(result), str(grace)]
    with subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "trains\n"
        (rank,) = (process.pid for process in psutil.Process(launcher.pid).children())
        os.kill(launcher.pid, signal.SIGKILL)
    deadline = time.monotonic() + seconds
    while is_running(rank) and time.monotonic() < deadline and not result.exists():
        time.sleep(0.05)
    try:
        return result.read_text() if result.exists() else None, is_running(rank)
    finally:
        if is_running(rank):
            os.kill(rank, signal.SIGKILL)


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_rank_notices_that_its_launcher_is_gone(tmp_path):
    result, _ = orphan(tmp_path, 60, AS_A_RANK)
    assert result == f"{GONE} True"


@pytest.mark.parametrize(("name", "counts"), [("deepspeed", True), ("a-shell", False)])
def test_deepspeeds_upper_process_counts_as_the_launcher(name, counts, tmp_path, monkeypatch):
    """``deepspeed`` starts a process that starts the ranks; killed alone, it left both levels below running."""
    (tmp_path / name).write_text(RUNNER)
    command = [sys.executable, str(tmp_path / name), "print('up', flush=True); input()", "deepspeed.launcher.launch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout.readline() == "up\n"
        between = psutil.Process(top.pid).children()[0]
        above = launchers_above(between.pid)
        assert [process.pid for process in above] == ([top.pid] if counts else [])
        monkeypatch.setattr(stop_on_signal, "LOOK", 0.01)
        monkeypatch.setattr(stop_on_signal, "launchers_above", lambda parent: above)
        ended = threading.Event()
        timer = threading.Timer(0.1, ended.set)
        timer.start()
        assert stop_on_signal._wait_while_there(os.getppid(), ended)
        ended.clear()
        os.kill(top.pid, signal.SIGKILL)
        threading.Timer(0.5, ended.set).start()
        assert stop_on_signal._wait_while_there(os.getppid(), ended) is not counts


def test_a_rank_that_still_loads_ends_without_its_launcher(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(stop_on_signal.os, "_exit", lambda code: ended.set())
    with stop_on_signal.ends_with_launcher():  # no launcher started this process
        assert not ended.wait(0.1)
    for name in AS_A_RANK:
        monkeypatch.setenv(name, "0")
    with stop_on_signal.ends_with_launcher():
        assert not ended.wait(0.1)
    monkeypatch.setitem(stop_on_signal._parents, os.getpid(), 1)  # as if another process had started it
    with stop_on_signal.ends_with_launcher():
        assert ended.wait(10)
    assert "error: the launcher is gone; nothing was trained yet" in capsys.readouterr().err


def test_a_rank_that_cannot_end_its_step_ends_all_the_same(tmp_path):
    result, runs = orphan(tmp_path, 0.2, AS_A_RANK)
    assert result is None and not runs


def test_a_program_that_no_launcher_started_outlives_its_shell(tmp_path):
    for name in ("RANK", "LOCAL_RANK"):
        assert name not in os.environ
    assert orphan(tmp_path, 60, {}, seconds=2) == (None, True)


def test_a_forked_process_has_a_parent_of_its_own():
    assert stop_on_signal._parents[os.getpid()] == os.getppid()
