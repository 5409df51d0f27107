"""A lesson run from the command line, as a user without a browser runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat

from tests.lesson_runs import record_execution

STOPPED = 4  # a lesson that ran no more code cells than parameters, opening call and first data did not really run


def papermill(
    lesson: Path, output: Path, folder: Path, environment: dict, record: Callable, **parameters
) -> subprocess.CompletedProcess:
    """The command a user types, ``papermill notebooks/01_name.ipynb out.ipynb -p max_steps 40``, run in ``folder``.

    ``record`` is the test's ``record_property``: each start counts (``tests.lesson_runs``) as what it turned out to be.
    """
    command = [sys.executable, "-m", "papermill", os.path.relpath(lesson, folder), str(output), "--no-progress-bar"]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    try:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        ran_through = "short" if "max_steps" in parameters else "whole"
        record_execution(record, lesson, ran_through if len(executed(output)) > STOPPED else "stopped")


def executed(output: Path) -> list[nbformat.NotebookNode]:
    """The code cells that ran, of a notebook that papermill wrote."""
    cells = nbformat.read(output, as_version=4).cells if output.exists() else []
    return [cell for cell in cells if cell.cell_type == "code" and cell.execution_count]
