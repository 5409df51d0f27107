"""Do the launch files say what the spec asked for? Each is read by the tool it is for, and the results are compared.

    python -m course_utils.launch check launch

Reading is resolving: defaults, environment variables and rounding included, because that is where settings get lost
without a word (lesson 15). The shell scripts are executed, with the launchers replaced by one that only writes down its
arguments and environment (``scripts``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from course_utils.errors import SpecError
from course_utils.launch.check import cloud, launchers, slurm
from course_utils.launch.check.rows import Row, guarded
from course_utils.launch.files.write import FILES, files_of
from course_utils.launch.spec import Spec
from course_utils.launch.spec.read import read_fields

CHECKS: tuple[tuple[str, Callable[[Spec, Path], list[Row]]], ...] = (
    ("launchers", partial(launchers.rows, fills_auto=True)),
    ("slurm", slurm.rows),
    ("cloud", cloud.rows),
)


def check(folder: str | os.PathLike[str]) -> list[Row]:
    """Every file in ``folder`` against the spec.yaml in it. Executes the folder's shell scripts, launchers excepted.

    Raises:
        SpecError: there is no such folder, or no readable spec.yaml to compare with.
    """
    path = Path(folder)
    if not path.is_dir():
        raise SpecError(f"folder={str(folder)!r} is not a folder; allowed: a folder of launch files")
    fields = read_fields(path / "spec.yaml")
    spec = Spec(**fields)
    found = _present(spec, path) + guarded("*.sh", _well_formed, path)
    with _silence():
        for name, rows in CHECKS:
            found += guarded(name, rows, spec, path)
    # A spec that somebody wrote by hand says nothing about which files there are.
    return found if set(fields) == set(Spec.model_fields) else [row for row in found if _is_there(row, path)]


def _is_there(row: Row, folder: Path) -> bool:
    """Whether the row's file, and the files it leads to, are in ``folder``."""
    is_missing = row.field == "can be resolved" and "No such file" in str(row.resolved)
    return (folder / row.file.split(" from ")[0]).exists() and not is_missing and row.field != "exists"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No warnings of the tools (no GPU here, names that will go away some day): the rows say what counts."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)


def _present(spec: Spec, folder: Path) -> list[Row]:
    """Nothing missing, and nothing left over from another spec."""
    expected = {file.name for file in files_of(spec)}
    return [
        Row(file.name, "exists", file.name in expected, (folder / file.name).is_file())
        for file in FILES
        if file.name in expected or (folder / file.name).exists()
    ]


def _well_formed(folder: Path) -> Iterable[Row]:
    """Shell scripts: bash can parse them, and shellcheck (where installed) finds nothing."""
    scripts = sorted(path for path in folder.iterdir() if path.suffix in (".sh", ".sbatch"))
    for script in scripts:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=60)
        yield Row(script.name, "bash -n", "no complaint", done.stderr.strip() or "no complaint")
    linter = Path(sys.executable).with_name("shellcheck")
    if linter.exists() and scripts:
        command = [linter, "--format=gcc", "--shell=bash", *(script.name for script in scripts)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        complaints = done.stdout.splitlines()
        for script in scripts:
            own = [line for line in complaints if line.startswith(f"{script.name}:")]
            yield Row(script.name, "shellcheck", "no complaint", "; ".join(own) or "no complaint")
