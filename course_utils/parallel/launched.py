"""A program under a real launcher, watched: live output by rank, results, and the rank that failed first, with why.

    run_launched("train.py", "accelerate", processes=2, arguments=["--max_steps=40"])   # -> one result a rank

``run_ranks`` calls a function in processes that it starts itself; here ``torchrun``, ``accelerate launch`` or
``deepspeed`` starts them, as on a cluster. The program hands over what it found out with ``report({...})``, which does
nothing when nobody asked. Exit codes decide little: a launcher can end with 0 though its processes never met, and with
an error after all work was done.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from course_utils.parallel.launched_rank import FOLDER, note
from course_utils.parallel.local_ranks import RanksFailed
from course_utils.parallel.processes import GRACE, free_ports, kill, last_lines, start

LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
EVERY = 0.05  # seconds between two looks at the ranks


def report(result: Any) -> None:
    """Hand this rank's ``result`` (anything JSON can say) to ``run_launched``; without one, do nothing."""
    if folder := os.environ.get(FOLDER):
        note(Path(folder) / f"rank-{os.environ['RANK']}.json", result)


def run_launched(
    program: str | Path,
    launcher: str = "torchrun",
    processes: int = 2,
    arguments: Sequence[str] = (),
    *,
    options: Sequence[str] = (),
    timeout: float = 300,
    folder: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    echo: Callable[[str], Any] | None = print,
    on_cpu: bool | None = None,
) -> list[Any]:
    """Start ``program`` in ``processes`` ranks and return what each reported, rank 0 first (None: nothing).

    Args:
        launcher: one of ``LAUNCHERS``.
        arguments: for the program.
        options: for the launcher, after those that are always given; a later one wins.
        timeout: seconds until the stacks of the ranks are written down and everything is killed.
        folder: where ``rank-0.log`` ... and ``launcher.log`` are kept; None: a temporary folder that is removed.
        environment: variables on top of this process's.
        echo: gets each line of output with its rank in front while the ranks run; None: nobody does.
        on_cpu: gloo ranks on the CPU. None: unless torch sees a GPU for each rank.

    Raises:
        ValueError: an unknown launcher, no such program, or ``processes`` below 1.
        RanksFailed: a rank failed or time was up. The message names the rank that failed first, with its traceback,
            or where a rank hung. Nothing that was started is left by then, nor after Ctrl-C.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher={launcher!r} is not known; allowed: {', '.join(LAUNCHERS)}")
    if processes < 1:
        raise ValueError(f"processes={processes} is out of range; allowed: a whole number >= 1")
    program = Path(program).resolve()
    if not program.is_file():
        raise ValueError(f"program={str(program)!r} is no such file; allowed: the path of a Python program")
    if on_cpu is None:
        import torch

        on_cpu = torch.cuda.device_count() < processes
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        place = Path(place).resolve()
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("rank-*"):
            old.unlink()
        variables = {**os.environ, **variables_for(launcher, on_cpu), **(environment or {}), FOLDER: str(place)}
        rank_main = Path(__file__).with_name("launched_rank.py")
        line = [*command(launcher, processes, place / "torchrun", options), str(rank_main), str(program), *arguments]
        process = start(line, place / "launcher.log", variables)
        run = Run(process, place, processes, echo)
        try:
            in_time = run.watch(timeout, restarts=any("restarts" in option for option in options))
            if not in_time:
                run.dump_stacks()
        finally:
            kill([process])
            kill_marked(str(place))
            shutil.rmtree(place / "torchrun", ignore_errors=True)
            run.pass_on()
        return run.results(in_time, timeout)


def command(launcher: str, processes: int, logs: Path, options: Sequence[str] = ()) -> list[str]:
    """The launcher's own command line, up to the program, for ranks on this machine.

    ``logs`` is torchrun's folder for them: not told where, it leaves one in the system's temporary folder each time.
    """
    (port,) = free_ports(1)
    python, count = [sys.executable, "-m"], str(processes)
    if launcher == "torchrun":
        own = ["torch.distributed.run", f"--nproc-per-node={count}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        own += [f"--log-dir={logs}"]
    elif launcher == "accelerate":  # --multi_gpu starts ranks on the CPU too, where --cpu starts one process only
        kind = ["--multi_gpu"] if processes > 1 else []
        own = ["accelerate.commands.launch", *kind, f"--num_processes={count}", "--num_machines=1"]
        own += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"]
        own += [f"--log_dir={logs}"]
    else:
        own = ["deepspeed.launcher.runner", f"--num_accelerators={count}", "--no_local_rank", f"--master_port={port}"]
    return [*python, *own, *options]


def variables_for(launcher: str, on_cpu: bool) -> dict[str, str]:
    """For the ranks: one thread each, as they share the cores; and that the CPU is meant, where it is."""
    found = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if on_cpu:
        found |= {"ACCELERATE_USE_CPU": "true"}  # else accelerate says: no GPU, so every rank is alone
        found |= {"DS_ACCELERATOR": "cpu"} if launcher == "deepspeed" else {}
    return found


class Run:
    """One run: the notes that its ranks leave in ``folder``, the output passed on so far, and what has vanished."""

    def __init__(self, process: subprocess.Popen, folder: Path, processes: int, echo: Callable | None):
        self.process, self.folder, self.processes, self.echo = process, folder, processes, echo
        self.passed_on: dict[Path, int] = {}  # log -> bytes
        self.vanished: dict[tuple[int, int], float] = {}  # (rank, pid) -> when its end was noticed

    def watch(self, timeout: float, restarts: bool) -> bool:
        """Until the launcher has ended, or a rank has failed for ``GRACE`` seconds; False when time was up."""
        deadline, failed_at = time.monotonic() + timeout, None
        while self.process.poll() is None:
            self.pass_on()
            now = time.monotonic()
            if failed_at is None and not restarts and self.first_failure():
                failed_at = now  # the launcher notices as well, and ends the others
            if failed_at is not None and now > failed_at + GRACE:
                return True
            if now > deadline:
                return failed_at is not None
            time.sleep(EVERY)
        return True

    def pass_on(self) -> None:
        """Give every new, complete line of the ranks' logs to ``echo``."""
        for rank in range(self.processes):
            log = self.folder / f"rank-{rank}.log"
            if not log.exists():
                continue
            with log.open("rb") as file:
                file.seek(self.passed_on.get(log, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self.passed_on[log] = self.passed_on.get(log, 0) + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if self.echo:
                    self.echo(f"[rank {rank}] {line}")

    def read(self, rank: int, what: str) -> Any:
        file = self.folder / f"rank-{rank}.{what}"
        return json.loads(file.read_text()) if file.exists() else None

    def first_failure(self) -> tuple[int, str] | None:
        """The rank that failed first, and why: its traceback, or that it vanished."""
        failures = []
        for rank in range(self.processes):
            if failed := self.read(rank, "failed"):
                shown = f"; its last lines:\n{self.last_lines(rank)}" if failed["show_log"] else ""
                failures.append((failed["time"], rank, failed["why"].rstrip() + shown))
            elif (began := self.read(rank, "began")) and not self.read(rank, "done") and not _runs(began["pid"]):
                if self.read(rank, "failed") or self.read(rank, "done") or self.read(rank, "began") != began:
                    return self.first_failure()  # it ended, or was started again, between the two looks
                since = self.vanished.setdefault((rank, began["pid"]), time.time())
                since = 0.0 if began["pid"] in self.blamed() else since
                why = "it ended without an exception: killed from outside, out of memory, or a crash in C++"
                failures.append((since, rank, f"{why}; its last lines:\n{self.last_lines(rank)}"))
        return min(failures)[1:] if failures else None

    def blamed(self) -> set[int]:
        """The processes that torchrun saw fail: it ends the others at once, so both may be gone at our next look."""
        log = self.folder / "launcher.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        return {int(pid) for pid in re.findall(r"failed \(exitcode: -?\d+\) local_rank: \d+ \(pid: (\d+)\)", said)}

    def last_lines(self, rank: int) -> str:
        return last_lines(self.folder / f"rank-{rank}.log", 25)

    def dump_stacks(self) -> None:
        """Let every rank that still runs write its stacks into its log."""
        for rank in range(self.processes):
            began = self.read(rank, "began")
            if began and not self.read(rank, "done") and _runs(began["pid"]):
                os.kill(began["pid"], signal.SIGUSR1)
        time.sleep(0.5)

    def results(self, in_time: bool, timeout: float) -> list[Any]:
        """What the ranks reported, or why there is none."""
        found = [self.read(rank, "json") for rank in range(self.processes)]
        failed = [self.read(rank, "failed") for rank in range(self.processes)]
        done = [self.read(rank, "done") is not None for rank in range(self.processes)]
        # About one run in fifty ends with SIGABRT in gloo's threads after all work is done: a report counts then.
        if not any(failed) and all(d or r is not None for d, r in zip(done, found, strict=True)):
            return found
        if in_time and (failure := self.first_failure()):
            rank, why = failure
            raise RanksFailed(f"rank {rank} of {self.processes} failed first:\n{why}")
        waiting = [rank for rank in range(self.processes) if not done[rank]]
        if not in_time and (self.folder / f"rank-{waiting[0]}.log").exists():
            stacks = "\n".join(f"rank {rank} was at:\n{self.last_lines(rank)}" for rank in waiting)
            raise RanksFailed(f"killed after {timeout:g} s; rank(s) {waiting} had not ended\n{stacks}")
        code = "was killed" if not in_time else f"ended with code {self.process.returncode}"
        raise RanksFailed(f"the launcher {code}, no rank began; {last_lines(self.folder / 'launcher.log', 25)}")


def _runs(pid: int) -> bool:
    """Whether the process is there and more than a zombie."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_marked(folder: str) -> None:
    """End every process whose environment says that it belongs to the run in ``folder``, whoever its parent is now."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(FOLDER) == folder:
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
