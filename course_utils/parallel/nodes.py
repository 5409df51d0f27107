"""Several nodes rehearsed on one machine: a torchrun for each, which meet at one address (lesson 11).

    run_on_nodes("train.py", nodes=2, processes=1)     # -> what each rank reported, rank 0 first

On a cluster the same command line runs once on each machine, with the first machine's name instead of 127.0.0.1.
Reference: https://pytorch.org/docs/stable/elastic/run.html ("Usage", "Multi-node").
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from course_utils.parallel.launched import Run, kill_marked, variables_for
from course_utils.parallel.launched_rank import FOLDER
from course_utils.parallel.processes import free_ports, kill, start, wait


def node_options(nodes: int, processes: int, address: str, job: str = "course") -> list[str]:
    """torchrun's options for a job of several nodes, the same on each of them.

    Args:
        processes: ranks per node.
        address: ``host:port`` of any one node, where they meet.
        job: a name; nodes of the same job find each other.
    """
    return [
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={address}",
        f"--rdzv-id={job}",
    ]


def run_on_nodes(
    program: str | Path, nodes: int = 2, processes: int = 1, arguments: Sequence[str] = (), timeout: float = 180
) -> list[Any]:
    """Start ``program`` under ``nodes`` torchruns on this machine and return what each rank reported, rank 0 first.

    Args:
        processes: ranks per node.
        arguments: for the program.
        timeout: seconds until everything is killed.

    Raises:
        ValueError: no such program.
        RanksFailed: a rank failed or time was up, as ``run_launched`` says it. Nothing is left running.
    """
    program = Path(program).resolve()
    if not program.is_file():
        raise ValueError(f"program={str(program)!r} is no such file; allowed: the path of a Python program")
    (port,) = free_ports(1)
    options = node_options(nodes, processes, f"127.0.0.1:{port}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        line = [sys.executable, "-m", "torch.distributed.run", *options, "--local-addr=127.0.0.1", f"--log-dir={place}"]
        line += [str(Path(__file__).with_name("launched_rank.py")), str(program), *arguments]
        variables = {**os.environ, **variables_for("torchrun", on_cpu=True), FOLDER: str(place)}
        launchers = [start(line, place / f"launcher-{node}.log", variables) for node in range(nodes)]
        run = Run(launchers[0], place, nodes * processes, echo=None)
        try:
            in_time = run.watch(timeout, restarts=False) and wait(launchers, timeout)
            if not in_time:
                run.dump_stacks()
        finally:
            kill(launchers)
            kill_marked(str(place))
        return run.results(in_time, timeout)
