"""A rank whose launcher is killed stops by itself; the signals are tested with whole runs (test_finetune.py)."""

import os
import signal
import subprocess
import sys
import time

from course_utils.training import stop_on_signal
from course_utils.training.stop_on_signal import GONE

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
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def orphan(tmp_path, grace, variables):
    """What the rank wrote after its launcher was killed; its process id, and whether it still runs."""
    result = tmp_path / "result"
    command = [sys.executable, "-c", LAUNCHER, RANK, str(result), str(grace)]
    with subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "trains\n"
        rank = int(subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout)
        os.kill(launcher.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_running(rank) and time.monotonic() < deadline and not result.exists():
        time.sleep(0.05)
        if not variables and time.monotonic() > deadline - 18:
            break
    try:
        return result.read_text() if result.exists() else None, is_running(rank)
    finally:
        if is_running(rank):
            os.kill(rank, signal.SIGKILL)


def is_running(pid):
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_rank_notices_that_its_launcher_is_gone(tmp_path):
    result, _ = orphan(tmp_path, 60, {"RANK": "0", "LOCAL_RANK": "0"})
    assert result == f"{GONE} True"


def test_a_rank_that_cannot_end_its_step_ends_all_the_same(tmp_path):
    result, runs = orphan(tmp_path, 0.2, {"RANK": "0", "LOCAL_RANK": "0"})
    assert result is None and not runs


def test_a_program_that_no_launcher_started_outlives_its_shell(tmp_path):
    for name in ("RANK", "LOCAL_RANK"):
        assert name not in os.environ
    assert orphan(tmp_path, 60, {}) == (None, True)


def test_a_forked_process_has_a_parent_of_its_own():
    assert stop_on_signal._parents[os.getpid()] == os.getppid()
