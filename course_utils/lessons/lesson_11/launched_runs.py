"""Lesson 11's programs under real launchers; on Windows, which has neither ``kill -9`` nor SIGUSR1, nothing is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from course_utils.parallel import RanksFailed, run_launched
from course_utils.parallel.nodes import run_on_nodes
from course_utils.parallel.processes import free_ports

HERE = Path(__file__).parent
CAN_KILL = os.name == "posix"


def restarted(folder: str, steps: int, kill_at: int) -> list[dict[str, Any]]:
    """``restartable.py`` on two ranks under ``torchrun --max-restarts 1``, rank 1 killed before step ``kill_at``.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE: else the restarted ranks read the dead ones' addresses from the store that they
    share with the launcher. On gloo they hung (our observation); with NCCL they fail to start
    (https://github.com/pytorch/pytorch/issues/135712).
    """
    (port,) = free_ports(1)
    options = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--max-restarts=1"]
    return run_launched(
        HERE / "restartable.py",
        "torchrun",
        2,
        [folder, str(steps), str(kill_at)],
        options=options,
        environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        echo=None,
        on_cpu=True,
        timeout=200,
    )


def on_two_nodes(folder: str, steps: int) -> list[dict[str, Any]]:
    """``restartable.py`` on two nodes with one rank each, both on this machine."""
    return run_on_nodes(HERE / "restartable.py", 2, 1, [folder, str(steps), "0"])


def stacks_of_a_hang(timeout: float) -> dict[int, list[str]]:
    """Where each rank of ``hanging.py`` was after ``timeout`` seconds: names of functions, innermost first."""
    try:
        run_launched(HERE / "hanging.py", "torchrun", 2, timeout=timeout, echo=None, on_cpu=True)
    except RanksFailed as error:
        text = str(error)
    stacks: dict[int, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("rank ") and line.endswith("was at:"):
            stacks[int(line.split()[1])] = []
        elif line.lstrip().startswith("File") and stacks:
            stacks[max(stacks)].append(line.rpartition(" in ")[2])
    return stacks
