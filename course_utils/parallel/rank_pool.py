"""Ranks that stay: several processes beside the notebook that run one function after another (lessons 08, 11 to 13).

    ranks = Ranks(2)
    ranks(function, scale=3.0)   # -> [what rank 0 returned, what rank 1 returned]

``run_ranks`` starts its processes anew for every call, which costs seconds of imports each; these start at the first
call and wait for the next. A notebook's function takes along the imports, constants and functions of the notebook that
it uses. Ranks never are forks of the kernel: what hangs or crashes there is ended, and the next call starts new ones.
"""

from __future__ import annotations

import atexit
import dis
import functools
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from course_utils.parallel.local_ranks import RanksFailed, rank_variables
from course_utils.parallel.processes import GRACE, free_ports, kill, last_lines

LOOKED_UP = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")  # the last one: class bodies, Python 3.12


class Ranks:
    """``processes`` ranks on this machine, with torchrun's variables; started when first called.

    Where torch does not see a GPU for each, they are told that the CPU is meant (``ACCELERATE_USE_CPU``).

    Args:
        processes: how many, >= 1.
        timeout: seconds a call may take until all ranks are ended.

    Raises:
        ValueError: ``processes`` below 1.
    """

    def __init__(self, processes: int = 2, timeout: float = 120):
        if processes < 1:
            raise ValueError(f"processes={processes} is out of range; allowed: a whole number >= 1")
        self.processes, self.timeout = processes, timeout
        self.folder: Path | None = None
        self.workers: list[subprocess.Popen] = []
        self.calls = 0
        atexit.register(self.close)

    def __call__(self, function: Callable, **arguments: Any) -> list[Any]:
        """What ``function(**arguments)`` returns on each rank, rank 0 first; arguments and results are JSON's kinds.

        Raises:
            RanksFailed: it raised on a rank, or time was up: the rank that failed first, with its traceback.
        """
        if not self.workers or any(worker.poll() is not None for worker in self.workers):
            self._start()
        self.calls += 1
        source = self.folder / f"call_{self.calls}.py"
        source.write_text(portable_source(function))
        call = {"file": str(source), "name": function.__name__, "arguments": arguments, "number": self.calls}
        try:
            for worker in self.workers:
                worker.stdin.write(json.dumps(call).encode() + b"\n")
                worker.stdin.flush()
            return self._results()
        except BaseException:  # also Ctrl-C: ranks in the middle of an exchange cannot be used again
            self.close()
            raise

    def _start(self) -> None:
        self.close()
        self.folder = Path(tempfile.mkdtemp(prefix="course-ranks-"))
        (port,) = free_ports(1)
        only_cpu = {"ACCELERATE_USE_CPU": "true"} if _gpus() < self.processes else {}
        command = [sys.executable, "-u", "-m", "course_utils.parallel.rank_worker", json.dumps(sys.path)]
        for rank in range(self.processes):
            variables = {**os.environ, **rank_variables(rank, self.processes, port), **only_cpu}
            with (self.folder / f"rank-{rank}.log").open("wb") as log:
                self.workers.append(
                    subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables, cwd=self.folder
                    )
                )

    def _results(self) -> list[Any]:
        files = [self.folder / f"rank-{rank}-{self.calls}.json" for rank in range(self.processes)]
        deadline, failure = time.monotonic() + self.timeout, None
        while time.monotonic() < deadline:
            found = [json.loads(file.read_text()) if file.exists() else None for file in files]
            failed = [(f["time"], rank, f["error"]) for rank, f in enumerate(found) if f and "error" in f]
            dead = [rank for rank, w in enumerate(self.workers) if w.poll() is not None and not files[rank].exists()]
            if failed:
                raise RanksFailed(f"rank {min(failed)[1]} of {self.processes} failed first:\n{min(failed)[2]}")
            if dead and failure is None:
                failure, deadline = dead[0], min(deadline, time.monotonic() + GRACE)
            if all(found):
                if any(f["left_group"] for f in found):  # accelerator.end_training()
                    self.close()
                return [f["result"] for f in found]
            time.sleep(0.01)
        rank = failure if failure is not None else next(r for r, file in enumerate(files) if not file.exists())
        reason = "ended" if failure is not None else f"had no result after {self.timeout:g} s"
        log = last_lines(self.folder / f"rank-{rank}.log")
        raise RanksFailed(f"rank {rank} of {self.processes} {reason}; its last lines:\n{log}")

    def close(self) -> None:
        """End the ranks; the next call starts new ones."""
        kill(self.workers)
        for worker in self.workers:
            worker.stdin.close()
        self.workers = []
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


@functools.cache
def shared_ranks(processes: int = 2) -> Ranks:
    """The same ranks for everybody in this process: a lesson's cells and the checkers of its exercises."""
    return Ranks(processes)


def portable_source(function: Callable) -> str:
    """A Python file that defines ``function`` with what it uses of its notebook: imports, constants, functions.

    Raises:
        ValueError: it has no source, or refers to variables of a function around it.
    """
    if inspect.isfunction(function) and function.__closure__:
        names = ", ".join(function.__code__.co_freevars)
        raise ValueError(f"function={function.__name__!r} uses {names} of a function around it; allowed: arguments")
    opening: dict[str, str] = {}
    bodies: dict[str, str] = {}
    _collect(function, opening, bodies)
    return "from __future__ import annotations\n\n" + "\n".join([*opening.values(), "", *bodies.values()]) + "\n"


def _collect(item: Callable, opening: dict[str, str], bodies: dict[str, str]) -> None:
    if item.__name__ in bodies:
        return
    module, name = item.__module__, item.__qualname__
    if module != "__main__" and module in sys.modules and getattr(sys.modules[module], name, None) is item:
        bodies[item.__name__] = f"from {module} import {name}"
        return
    try:
        source = textwrap.dedent(inspect.getsource(item))
    except (OSError, TypeError) as error:
        raise ValueError(f"function={name!r} has no source to copy; allowed: a function written with def") from error
    bodies[item.__name__] = ""  # its place is taken: two functions may call each other
    for used in _names(item.__code__):
        if used in item.__globals__ and used not in opening and used not in bodies:
            _bring(used, item.__globals__[used], opening, bodies)
    del bodies[item.__name__]
    bodies[item.__name__] = source


def _bring(name: str, value: Any, opening: dict[str, str], bodies: dict[str, str]) -> None:
    if isinstance(value, ModuleType):
        opening[name] = f"import {value.__name__} as {name}"
    elif isinstance(value, type | FunctionType):
        place = sys.modules.get(value.__module__)
        if value.__module__ != "__main__" and getattr(place, value.__qualname__, None) is value:
            opening[name] = f"from {value.__module__} import {value.__qualname__} as {name}"
        elif isinstance(value, FunctionType):
            _collect(value, opening, bodies)
    elif isinstance(value, bool | int | float | str | list | tuple | dict | None):
        opening[name] = f"{name} = {value!r}"


def _names(code: CodeType) -> Iterator[str]:
    """Names that the code, and the functions inside it, look up in their module; attributes are none."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in LOOKED_UP)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
