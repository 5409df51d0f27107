"""Lesson 03's run that reports to Weights & Biases and Trackio, in a process of its own, and what it leaves on disk.

In a notebook Trackio would start its dashboard's web server by itself; a script does not.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

SCRIPT = """\
import torch
from course_utils import teach
from course_utils.training.settings import quiet_trainer

teach.start()


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, labels):
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


rows = [{"x": torch.tensor([i / 100]), "labels": torch.tensor([3 * i / 100])} for i in range(100)]
trackers = ["wandb", "trackio"]
trainer = quiet_trainer(Line(), "out", rows, max_steps=10, logging_steps=2, report_to=trackers, run_name="line")
trainer.train()
"""
LOSS = "train/loss"


def start(folder: str | Path) -> subprocess.Popen:
    """Start ``SCRIPT`` in a new ``folder``, trackers offline; it takes about ten seconds."""
    place = Path(folder)
    place.mkdir()
    (place / "track.py").write_text(SCRIPT)
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(place), "WANDB_SILENT": "true"}
    offline["TRACKIO_DIR"] = str(place / "trackio")
    with (place / "track.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "track.py"], cwd=place, env=os.environ | offline, stdout=log, stderr=log
        )


def result(process: subprocess.Popen, folder: str | Path) -> dict[str, int]:
    """Wait for ``process``: how many losses W&B's run file and Trackio's data base hold.

    Raises:
        RuntimeError: the script failed; the message ends with its log.
    """
    place = Path(folder)
    if process.wait() != 0:
        raise RuntimeError(f"the tracked run failed: {(place / 'track.log').read_text()[-2000:]}")
    run_file = next(place.glob("wandb/offline-run-*/run-*.wandb"))
    with sqlite3.connect(next((place / "trackio").glob("*.db"))) as connection:
        logs = connection.execute("SELECT metrics FROM metrics WHERE run_name = 'line'").fetchall()
    of_trackio = sum(LOSS.encode() in bytes(metrics) for (metrics,) in logs)
    return {"Weights & Biases": run_file.read_bytes().count(LOSS.encode()), "Trackio": of_trackio}
