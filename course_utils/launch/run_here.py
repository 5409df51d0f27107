"""Rehearse a run on this machine: its own launch files, executed as they are written, on CPU processes (lesson 15)."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from course_utils.errors import SpecError
from course_utils.launch.files.write import write
from course_utils.launch.spec import Spec
from course_utils.parallel.processes import kill, last_lines, start, wait

CAUSE = re.compile(r"(?:\[rank\d+\]: )?((?:error:|[\w.]*(?:Error|Exception|Failed):) .*)")
SCRIPTS = ("torchrun.sh", "accelerate.sh", "deepspeed.sh")


class RunFailed(RuntimeError):
    """The script ended without a trained model, or time was up; the message shows what its log says."""


def run_here(
    spec: Spec,
    file: str = "torchrun.sh",
    folder: str | os.PathLike[str] | None = None,
    processes: int = 2,
    arguments: Sequence[str] = (),
    timeout: float = 300,
) -> dict[str, Any]:
    """Write ``spec.on_cpu(processes)``'s files, execute ``file`` with bash, and return what the ranks saw.

    Args:
        file: one of ``SCRIPTS``; deepspeed.sh exists for ZeRO only.
        folder: gets ``launch/`` and ``run.log``; relative paths of the spec are seen from it. None: a temporary folder.
        arguments: for the program, after those of the script; a later flag wins.
        timeout: seconds until everything that was started is killed.

    Returns:
        ``run.json`` of ``spec.output_dir`` (``course_utils.parallel.what_ran``): world size, wrapper, parameters that
        each rank holds, effective batch, losses ... Every program built on transformers' Trainer leaves it in a
        rehearsal.

    Raises:
        SpecError: ``file`` does not exist for this spec, or the spec cannot be rehearsed on a CPU.
        RunFailed: no rank trained to the end.
    """
    rehearsal = spec.on_cpu(processes)
    allowed = SCRIPTS if spec.is_deepspeed else SCRIPTS[:2]
    if file not in allowed:
        raise SpecError(f"file={file!r} does not exist for strategy={spec.strategy!r}; allowed: {', '.join(allowed)}")
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        place = Path(place).resolve()
        write(rehearsal, place / "launch", overwrite=True)
        report = place / spec.output_dir / "run.json"
        report.unlink(missing_ok=True)  # an earlier run's must not be taken for this one's
        _execute(["bash", f"launch/{file}", *arguments], place, timeout)
        return _read(report, place / "run.log")


def _execute(command: list[str], folder: Path, timeout: float) -> None:
    # The launchers of this Python come first: an activated environment is not needed.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    script = start(command, folder / "run.log", {**os.environ, "PATH": path}, folder)
    try:
        in_time = wait([script], timeout)
    finally:
        kill([script])
    if not in_time:
        raise RunFailed(f"{command[1]} was killed after {timeout:g} s; {_log(folder / 'run.log')}")


def _read(report: Path, log: Path) -> dict[str, Any]:
    """Judged by what was written: about one run in fifty ends with SIGABRT in gloo's threads after all work is done."""
    found = json.loads(report.read_text()) if report.exists() else {"state": "nothing written"}
    if found["state"] not in ("trained", "finished"):
        raise RunFailed(f"the run did not train to its end ({found['state']}); {_log(log)}")
    return found


def _log(log: Path) -> str:
    """The lines that name a cause, where there are some: launchers end with a screenful that names none."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    causes = dict.fromkeys(found[1] for line in lines if (found := CAUSE.match(line)))
    causes = [cause for cause in causes if "ChildFailedError" not in cause]
    return "\n".join(["its log says:", *causes[:5]]) if causes else f"its log ends with:\n{last_lines(log, 25)}"
