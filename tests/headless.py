"""A lesson run from the command line, as a user without a browser runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def papermill(lesson: Path, output: Path, folder: Path, environment: dict, **parameters) -> subprocess.CompletedProcess:
    """The command a user types, ``papermill notebooks/01_name.ipynb out.ipynb -p max_steps 40``, run in ``folder``."""
    command = [sys.executable, "-m", "papermill", os.path.relpath(lesson, folder), str(output), "--no-progress-bar"]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
