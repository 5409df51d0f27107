"""Start a program of the course many times a minute: forks of a process that has imported everything.

A start is the program's own ``main`` in processes of its own, one a rank, with the variables that torchrun sets; what
is saved is the import of torch and transformers, most of a short run's time. SIGKILL is the real one.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from course_utils.parallel.processes import free_ports, last_lines

GRACE = 5.0  # seconds for the other ranks when one has failed, as launchers give


class Start:
    """One start; ``codes`` gets each rank's exit code, negative for a signal."""

    def __init__(self, main: Callable[[], object], ranks: int, log: Path, folder: Path, variables: Mapping[str, str]):
        self.log, self.codes = log, dict[int, int]()
        own = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        own |= {"MASTER_PORT": str(free_ports(1)[0])}
        self.pids = []
        for rank in range(ranks):
            rank_variables = own | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            pid = os.fork()
            if not pid:
                _run(main, log, folder, {**variables, **rank_variables})
            self.pids.append(pid)

    def runs(self) -> bool:
        """Whether a rank still runs."""
        for pid in self.pids:
            if pid not in self.codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[pid] = os.waitstatus_to_exitcode(ended[1])
        return len(self.codes) < len(self.pids)

    def kill(self, pids: Sequence[int]) -> None:
        """SIGKILL, without a word."""
        for pid in pids:
            if pid not in self.codes:
                os.kill(pid, signal.SIGKILL)

    def wait(self, timeout: float = 400.0) -> str | None:
        """Until all ranks have ended; a fault in words unless all ended with 0. Nothing is left afterwards."""
        deadline = time.monotonic() + timeout
        while self.runs() and time.monotonic() < deadline:
            if any(self.codes.values()):
                deadline = min(deadline, time.monotonic() + GRACE)
            time.sleep(0.005)
        hung = self.runs()
        self.kill(self.pids)
        while self.runs():
            time.sleep(0.005)
        if hung or any(self.codes.values()):
            end = "hung, or waited for a rank that failed" if hung else "failed"
            return f"{end}, exit codes {[self.codes[pid] for pid in self.pids]}; {last_lines(self.log, 12)}"
        return None


def _run(main: Callable[[], object], log: Path, folder: Path, variables: Mapping[str, str]) -> None:
    """The forked process: it never returns."""
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(variables)
        os.chdir(folder)
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def with_one_thread_and_repairs(module: str, arguments: Sequence[str]) -> None:
    """Replace this process by ``python -m module`` with one thread, no hub and the CPU's sharding, unless it is so."""
    from course_utils.parallel import cpu_site_folder

    place = str(cpu_site_folder())
    if os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] == place:
        return
    path = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    own |= {"TOKENIZERS_PARALLELISM": "false"}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], {**os.environ, **own})


def preload(*modules: str) -> None:
    """Import them before the first fork."""
    for module in modules:
        importlib.import_module(module)
