"""Kill a training process in the middle, start the same command again, and compare with a run that nothing stopped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from course_utils.lessons.lesson_01.comparisons import one_torch_thread
from course_utils.recipes import train_by_hand
from course_utils.training.checkpoint import WEIGHTS, latest_checkpoint


class Ending(NamedTuple):
    """``killed``: the victim ended by SIGKILL; ``saved``: optimizer steps in its newest checkpoint; ``steps_after``:
    those that the second start made; ``same_weights``: the final weights equal the undisturbed run's, byte for byte.
    """

    killed: bool
    saved: int
    steps_after: int
    same_weights: bool


def kill_and_restart(seed: int, max_steps: int, save_every: int, kill_at_step: int) -> Ending:
    """Run ``course_utils.recipes.train_by_hand`` with a tiny model, kill it, run it again, and once undisturbed.

    Args:
        kill_at_step: the victim is killed when it has reported this optimizer step.

    Raises:
        RuntimeError: the program did not end with exit code 0 where it should have.
    """
    flags = {
        "source": "local",
        "seed": seed,
        "max_steps": max_steps,
        "save_every": save_every,
        "log_every": 1,
        "batch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 1,
    }
    command = [sys.executable, "-m", "course_utils.recipes.train_by_hand"]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # another number of threads splits sums in another way

    with tempfile.TemporaryDirectory() as scratch:
        whole, stopped = Path(scratch, "whole"), Path(scratch, "stopped")
        command += ["--folder", str(stopped)]
        with subprocess.Popen(command, env=one_thread, stdout=subprocess.PIPE, text=True) as victim:
            for line in victim.stdout:
                if line.startswith(f"step {kill_at_step} "):
                    victim.kill()
        killed = victim.returncode == -signal.SIGKILL
        saved = int(latest_checkpoint(stopped).name.removeprefix("step-"))
        resumed = subprocess.run(command, env=one_thread, capture_output=True, text=True)
        if resumed.returncode:
            raise RuntimeError(f"train_by_hand ended with exit code {resumed.returncode}: {resumed.stderr[-300:]}")
        with one_torch_thread(), contextlib.redirect_stdout(io.StringIO()):
            train_by_hand.main([*command[3:-1], str(whole)])  # nothing to kill here: no process of its own
        steps_after = json.loads((stopped / "result.json").read_text())["steps_in_this_process"]
        weights = [(latest_checkpoint(folder) / WEIGHTS).read_bytes() for folder in (whole, stopped)]
        return Ending(killed, saved, steps_after, weights[0] == weights[1])
