"""Several ranks on this machine, from a notebook or a test: started, watched, ended, and their results read back.

    def mean_of_ranks(scale):
        import torch.distributed as dist
        dist.init_process_group("gloo")
        ...
        return {"rank": dist.get_rank(), "mean": mean}

    run_ranks(mean_of_ranks, processes=2, arguments={"scale": 3.0})   # -> [{"rank": 0, ...}, {"rank": 1, ...}]

Ranks are processes of their own and never forks of the kernel: a hang or a crash ends them, not the notebook. They find
torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR ...), so what runs here runs unchanged under torchrun (lesson 11).
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from course_utils.parallel.processes import free_ports, kill, last_lines, start, wait

ATTEMPTS = 3  # another program may take the free port before rank 0 does


class RanksFailed(RuntimeError):
    """A rank failed or time was up; the message names the rank and shows the last lines of its log."""


def run_ranks(
    function: Callable | str,
    processes: int = 2,
    arguments: Mapping[str, Any] | None = None,
    timeout: float = 120,
    folder: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Call ``function(**arguments)`` in ``processes`` processes and return what each returned, rank 0 first.

    Args:
        function: a function of an importable module, or one defined in a notebook or script: its source is copied, so
            it imports what it needs inside; or ``"file.py:name"``, or ``"package.module:name"``.
        arguments, and what the function returns: anything JSON can say.
        timeout: seconds until all ranks are killed.
        folder: where ``rank-0.log`` ... are kept; None: a temporary folder that is removed.
        environment: variables on top of this process's.

    Raises:
        ValueError: ``processes`` below 1, or a ``function`` whose source cannot be found.
        RanksFailed: a rank failed, returned nothing, or time was up. All ranks have ended by then.
    """
    if processes < 1:
        raise ValueError(f"processes={processes} is out of range; allowed: a whole number >= 1")
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        place = Path(place).resolve()
        place.mkdir(parents=True, exist_ok=True)
        call = {"function": _name_of(function, place), "arguments": dict(arguments or {}), "path": sys.path}
        (place / "call.json").write_text(json.dumps(call))
        for attempt in range(ATTEMPTS):
            try:
                return _attempt(place, processes, timeout, dict(environment or {}))
            except RanksFailed as error:
                if "EADDRINUSE" not in str(error) or attempt == ATTEMPTS - 1:
                    raise
    raise AssertionError("not reached: the last attempt returns or raises")


def _name_of(function: Callable | str, folder: Path) -> str:
    """``"file-or-module:name"`` for the ranks; a notebook's function is written into ``folder`` first."""
    if isinstance(function, str):
        where, _, name = function.rpartition(":")
        if not (where and name.isidentifier()):
            raise ValueError(f"function={function!r} is not known; allowed: 'file.py:name' or 'package.module:name'")
        return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else function
    module, name = function.__module__, function.__qualname__
    if module in sys.modules and module != "__main__" and name.isidentifier():
        return f"{module}:{name}"
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ValueError(f"function={name!r} has no source to copy; allowed: a function written with def") from error
    file = folder / "ranks.py"
    file.write_text(source)
    return f"{file}:{function.__name__}"


def _attempt(folder: Path, processes: int, timeout: float, environment: dict[str, str]) -> list[Any]:
    results = [folder / f"rank-{rank}.json" for rank in range(processes)]
    logs = [folder / f"rank-{rank}.log" for rank in range(processes)]
    for result in results:
        result.unlink(missing_ok=True)
    (port,) = free_ports(1)
    ranks: list[subprocess.Popen] = []
    try:
        for rank in range(processes):
            variables = {**os.environ, **rank_variables(rank, processes, port), **environment}
            command = [sys.executable, "-u", "-m", "course_utils.parallel.rank_main", str(folder / "call.json")]
            ranks.append(start([*command, str(results[rank])], logs[rank], variables))
        in_time = wait(ranks, timeout)
        codes = [process.poll() for process in ranks]
    finally:
        kill(ranks)
    _raise_if_failed(codes, results, logs, in_time, timeout)
    return [json.loads(result.read_text()) for result in results]


def rank_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun puts into the environment of a rank on one node, and one thread each: ranks share the cores."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _raise_if_failed(
    codes: list[int | None], results: list[Path], logs: list[Path], in_time: bool, timeout: float
) -> None:
    # Judged by results: about one run in fifty ends with SIGABRT in gloo's threads after all work is done.
    failed = [rank for rank, result in enumerate(results) if not result.exists()]
    if not failed:
        return
    # Ranks that wait for a failed one have no result either: show one that ended by itself.
    rank = next((rank for rank in failed if codes[rank] is not None), failed[0])
    reason = f"ended with code {codes[rank]}" if codes[rank] is not None else f"had no result after {timeout:g} s"
    if not in_time and codes[rank] is not None:
        reason += f"; others were killed after {timeout:g} s"
    raise RanksFailed(f"rank {rank} of {len(codes)} {reason}; its last lines:\n{last_lines(logs[rank])}")
