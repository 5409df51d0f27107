"""Do the launch files say what the spec asked for? Each is read by the tool it is for, and the results are compared.

    python -m course_utils.launch check launch

Reading is resolving: defaults, environment variables and rounding included, because that is where settings get lost
without a word (lesson 15). The shell scripts are executed, with the launchers replaced by one that only writes down its
arguments and environment (``check_scripts``).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from course_utils.launch.errors import SpecError
from course_utils.launch.spec import Spec

# Modules with a function rows(spec, folder) -> list[Row]; each knows the files it is for.
CHECKS = ("check_launchers", "check_slurm", "check_cloud")


class Row(NamedTuple):
    """One comparison: in which file, of what, what the spec asks for, what the tool makes of the file."""

    file: str
    field: str
    asked: Any
    resolved: Any

    @property
    def same(self) -> bool:
        return self.asked == self.resolved


def guarded(file: str, rows_of: Callable[..., Iterable[Row]], *arguments: Any) -> list[Row]:
    """The rows of ``rows_of(*arguments)``; a file its tool cannot read is a row that differs, not a traceback."""
    found: list[Row] = []
    try:
        found.extend(rows_of(*arguments))
    except (Exception, SystemExit) as error:
        found.append(Row(file, "can be resolved", "yes", f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return found


def check(folder: str | os.PathLike[str]) -> list[Row]:
    """Every file in ``folder`` against the spec.yaml in it. Executes the folder's shell scripts, launchers excepted.

    Raises:
        SpecError: there is no such folder, or no readable spec.yaml to compare with.
    """
    from course_utils.launch.spec_file import read_spec

    path = Path(folder)
    if not path.is_dir():
        raise SpecError(f"folder={str(folder)!r} is not a folder; allowed: a folder of launch files")
    spec = read_spec(path / "spec.yaml")
    found = _present(spec, path) + guarded("*.sh", _well_formed, path)
    with _silence():
        for name in CHECKS:
            module = importlib.import_module(f"course_utils.launch.{name}")
            found += guarded(name, module.rows, spec, path)
    return found


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
    from course_utils.launch.files import FILES, files_of

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


def table(rows: Iterable[Row], width: int = 44) -> str:
    """The rows as text, one line each; values longer than ``width`` characters are cut unless they differ."""

    def shown(value: Any, row: Row) -> str:
        text = value if isinstance(value, str) and value.isprintable() else repr(value)
        return text if len(text) <= width or not row.same else f"{text[: width - 3]}..."

    lines = [("file", "what", "asked", "resolved", "same")]
    lines += [
        (row.file, row.field, shown(row.asked, row), shown(row.resolved, row), "yes" if row.same else "NO")
        for row in rows
    ]
    widths = [min(max(len(line[column]) for line in lines), width) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines
    )
