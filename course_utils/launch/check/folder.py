"""Do the launch files say what the spec asked for? Each is read by the tool it is for, and the results are compared.

    python -m course_utils.launch check launch

Reading is resolving: defaults, environment variables and rounding included, because that is where settings get lost
without a word (lesson 15). The shell scripts are executed, with the launchers replaced by one that only writes down its
arguments and environment (``scripts``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from course_utils.errors import SpecError
from course_utils.launch.check import cloud, launchers, slurm
from course_utils.launch.check.rows import Row, guarded, quiet
from course_utils.launch.files.write import FILES, files_of
from course_utils.launch.spec import Spec
from course_utils.launch.spec.read import read_fields

CHECKS: tuple[tuple[str, Callable[[Spec, Path], list[Row]]], ...] = (
    ("launchers", partial(launchers.rows, fills_auto=True)),
    ("slurm", slurm.rows),
    ("cloud", cloud.rows),
)

EXTRAS = {  # rows that compare a default of ours, and the fields that ask for it
    "preflight": ("preflight",),
    "preflight on machines x processes": ("preflight",),
    "steps between logged losses": ("logging_steps",),
    "network": ("network_kind", "interface"),
}


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
    with quiet():
        for name, rows in CHECKS:
            found += guarded(name, rows, spec, path)
    # A spec that somebody wrote by hand says nothing about which files there are, or about what it leaves out.
    if set(fields) == set(Spec.model_fields):
        return found
    return [row for row in found if _is_there(row, path) and _is_named(row, fields)]


def _is_named(row: Row, fields: Collection[str]) -> bool:
    """Whether the spec says something about what the row compares, where silence means: as you like."""
    return row.field not in EXTRAS or any(name in fields for name in EXTRAS[row.field])


def _is_there(row: Row, folder: Path) -> bool:
    """Whether the row's file, and the files it leads to, are in ``folder``."""
    is_missing = row.field == "can be resolved" and "No such file" in str(row.resolved)
    return (folder / row.file.split(" from ")[0]).exists() and not is_missing and row.field != "exists"


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
