"""A program that is started again when one of its ranks dies, under torchrun (lesson 11).

    run_with_restarts("train.py", processes=2, arguments=["--output_dir=runs/x"], restarts=3)

torchrun ends the other ranks and starts all of them again, with ``TORCHELASTIC_RESTART_COUNT`` one higher; the program
must find its last complete checkpoint by itself (``course_utils.training.resume``). Reference:
https://docs.pytorch.org/docs/stable/elastic/run.html, "Fault tolerant".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from course_utils.parallel.launched import run_launched
from course_utils.parallel.processes import free_ports

# torchrun keeps the store in which ranks find each other over a restart, and gloo's new ranks read the dead ones'
# addresses there: they fail or hang (https://github.com/pytorch/pytorch/issues/135712). Each start gets its own store.
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def restart_options(restarts: int) -> list[str]:
    """torchrun's options for a job on this machine that is started again up to ``restarts`` times.

    Raises:
        ValueError: ``restarts`` below 0.
    """
    if restarts < 0:
        raise ValueError(f"restarts={restarts} is out of range; allowed: a whole number >= 0")
    (port,) = free_ports(1)
    return ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--max-restarts={restarts}"]


def run_with_restarts(
    program: str | Path,
    processes: int = 2,
    arguments: Sequence[str] = (),
    restarts: int = 1,
    *,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Any]:
    """``run_launched`` under torchrun, started again up to ``restarts`` times when a rank fails or is killed.

    Args:
        restarts: more failures than this end the run.
        environment: variables on top of this process's.
        **options: ``timeout`` (of all attempts together), ``folder``, ``echo``, ``on_cpu``.

    Returns:
        What each rank of the last attempt reported, rank 0 first.

    Raises:
        ValueError: as ``restart_options`` and ``run_launched`` say.
        RanksFailed: it failed more often than ``restarts`` times, or time was up.
    """
    return run_launched(
        program,
        "torchrun",
        processes,
        arguments,
        options=restart_options(restarts),
        environment=ENVIRONMENT | dict(environment or {}),
        **options,
    )
