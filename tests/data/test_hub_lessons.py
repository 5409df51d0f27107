"""Every lesson runs with ``source="hub"`` as it is: other labels, other sizes, no column ``file``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_files import write_datasets, write_models
from hub_server import HubServer

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_short_run_with_the_hub(lesson, tmp_path):
    write_datasets(tmp_path, sizes={"train": 3000, "validation": 600, "test": 100})
    write_models(tmp_path)
    command = [sys.executable, "-m", "papermill", str(lesson), str(tmp_path / "out.ipynb"), "--no-progress-bar"]
    command += ["--cwd", str(NOTEBOOKS), "-k", "python3", "-p", "source", "hub", "-p", "max_steps", "40"]
    with HubServer(tmp_path) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert hub.asked("/datasets/"), "nothing was loaded from the hub"
