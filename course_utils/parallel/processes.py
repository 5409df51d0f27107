"""Processes of this machine: a free port, a command with a time limit and a log, an end that reaches grandchildren."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

# Below what systems hand out to outgoing connections and to `bind(0)` (Linux from 32768, macOS from 49152): a port of
# those may be somebody else's a moment later, when the ranks start, or a minute later, when a job is started again.
PORTS = range(10_000, 30_000)
GRACE = 5.0  # seconds the other ranks get to end by themselves when one has failed


def free_ports(count: int) -> list[int]:
    """``count`` different TCP ports that nobody on this machine uses at the moment, out of ``PORTS``."""
    candidates = random.Random().sample(PORTS, len(PORTS))  # the global, seeded generator would give all runs the same
    return list(islice(filter(_is_free, candidates), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


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
