"""Processes of this machine: a free port, a command with a time limit and a log, an end that reaches grandchildren."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE = 5.0  # seconds the other ranks get to end by themselves when one has failed


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen:
    """``command`` in the background, in ``folder`` (None: this one); both its outputs go to the file ``log``."""
    with log.open("wb") as output:
        return subprocess.Popen(
            list(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=folder,
        )


def wait(processes: Sequence[subprocess.Popen], timeout: float) -> bool:
    """Wait until all have ended, or one has failed and ``GRACE`` has passed; False if ``timeout`` seconds were over."""
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            return False
        if any(process.poll() for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE)
            _wait_for_all(processes, deadline)
            return True
        time.sleep(0.05)
    return True


def _wait_for_all(processes: Sequence[subprocess.Popen], deadline: float) -> None:
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(0.05)


def kill(processes: Sequence[subprocess.Popen]) -> None:
    """End ``processes`` and all their descendants, now.

    Launchers put their workers into sessions of their own, so that a signal to the process group would miss them.
    """
    import psutil

    doomed = []
    for process in processes:
        if process.poll() is None:
            parent = psutil.Process(process.pid)
            doomed += [*parent.children(recursive=True), parent]
    for process in doomed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    for process in processes:
        process.wait()


def last_lines(log: Path, count: int = 15) -> str:
    """The last ``count`` lines of a log that are not empty, without the rewritten states of progress bars."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.rpartition("\r")[2] for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:])
