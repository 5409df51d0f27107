"""A rank's link to the others: who am I, send, receive, both at once (lesson 11).

    link = join_group()             # on a real rank: torch.distributed, NCCL or gloo
    in_threads(function, 4)         # the same function on four pretended ranks, which are threads of this process

What is written on a ``Link`` runs on both: the collectives of ``collectives.py``, the answers to lesson 11's exercises.
Every link counts what it sends. Reference: https://pytorch.org/docs/stable/distributed.html ("Point-to-point").
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = 2.0  # seconds after which a pretended rank that waits for another gives up


class Stuck(RuntimeError):
    """A pretended rank waited in vain; the message says for whom."""


class Link:
    """What a rank knows and can do: ``rank``, ``size``, ``send``, ``receive``, ``exchange``, ``all_reduce``.

    ``messages`` and ``bytes`` count what ``send`` and ``exchange`` have sent from this rank.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self.messages, self.bytes = 0, 0

    def send(self, tensor: Tensor, to: int) -> None:
        """Send ``tensor`` to rank ``to``; returns when that rank has it."""
        raise NotImplementedError

    def receive(self, like: Tensor, source: int) -> Tensor:
        """What rank ``source`` sends, of the shape and type of ``like``."""
        raise NotImplementedError

    def exchange(self, tensor: Tensor, to: int, like: Tensor, source: int) -> Tensor:
        """Send and receive at the same time, so that ranks in a circle do not wait for one another."""
        raise NotImplementedError

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its sum over the ranks, in place, and return it. Every rank must call it."""
        raise NotImplementedError

    def _count(self, tensor: Tensor) -> None:
        self.messages += 1
        self.bytes += tensor.numel() * tensor.element_size()


class GroupLink(Link):
    """A real rank: a member of a process group of ``torch.distributed`` (None: of the one with all ranks)."""

    def __init__(self, group: Any = None):
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.group = group
        self.backend = dist.get_backend(group)
        own = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", own) if self.backend == "nccl" else torch.device("cpu")

    def send(self, tensor: Tensor, to: int) -> None:
        self._count(tensor)
        dist.send(tensor.contiguous(), group_dst=to, group=self.group)

    def receive(self, like: Tensor, source: int) -> Tensor:
        arrived = torch.empty_like(like, memory_format=torch.contiguous_format)
        dist.recv(arrived, group_src=source, group=self.group)
        return arrived

    def exchange(self, tensor: Tensor, to: int, like: Tensor, source: int) -> Tensor:
        self._count(tensor)
        arrived = torch.empty_like(like, memory_format=torch.contiguous_format)
        both = [
            dist.P2POp(dist.isend, tensor.contiguous(), group_peer=to, group=self.group),
            dist.P2POp(dist.irecv, arrived, group_peer=source, group=self.group),
        ]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        return arrived

    def all_reduce(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def start_all_reduce(self, tensor: Tensor) -> Any:
        """Begin to sum ``tensor`` over the ranks; ``.wait()`` on what it returns, then ``tensor`` is the sum."""
        return dist.all_reduce(tensor, group=self.group, async_op=True)

    def with_timeout(self, seconds: float) -> GroupLink:
        """The same ranks in a group of their own, whose exchanges fail after ``seconds``; every rank must call it."""
        return GroupLink(dist.new_group(timeout=timedelta(seconds=seconds)))

    def roll_call(self, seconds: float) -> None:
        """Raise ``RuntimeError``, on rank 0 with the name of a rank that is not here within ``seconds``; gloo only."""
        dist.monitored_barrier(self.group, timeout=timedelta(seconds=seconds))


def join_group(timeout: float | None = None) -> GroupLink:
    """Meet the other ranks that the launcher has started, if that has not happened yet: NCCL or gloo.

    The ranks find each other through RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which the launcher has set. NCCL
    needs a GPU for each rank of this machine; without one the CPU and gloo are meant.

    Args:
        timeout: seconds that an exchange may take; None: torch's own, half an hour (NCCL: ten minutes).

    Raises:
        RuntimeError: no launcher has set the variables.
    """
    if dist.is_initialized():
        return GroupLink()
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not set; start this with torchrun, or with course_utils.parallel")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    nccl = dist.is_nccl_available() and torch.cuda.device_count() >= here
    if nccl:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if nccl else "gloo", timeout=None if timeout is None else timedelta(seconds=timeout))
    return GroupLink()


class ThreadLink(Link):
    """A pretended rank: a thread that hands tensors to others through queues, as strictly as a real one.

    ``send`` waits until the other has received, as gloo's does. Whoever waits ``PATIENCE`` seconds raises ``Stuck``.
    """

    def __init__(self, rank: int, size: int, pipes: dict[tuple[int, int], queue.Queue]):
        super().__init__(rank, size)
        self._pipes = pipes
        self.all_reduces: list[int] = []  # elements of each
        self.device = torch.device("cpu")

    def send(self, tensor: Tensor, to: int) -> None:
        self._count(tensor)
        taken = self._put(tensor, to)
        if not taken.wait(PATIENCE):
            raise Stuck(f"rank {self.rank} waited to send to rank {to}, which did not receive")

    def receive(self, like: Tensor, source: int) -> Tensor:
        tensor, taken = self._take(source)
        taken.set()
        if tensor.shape != like.shape:
            expected, got = tuple(like.shape), tuple(tensor.shape)
            raise Stuck(f"rank {self.rank} expected a tensor of shape {expected} from rank {source}, it sent {got}")
        return tensor

    def exchange(self, tensor: Tensor, to: int, like: Tensor, source: int) -> Tensor:
        self._count(tensor)
        self._put(tensor, to)
        return self.receive(like, source)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.all_reduces.append(tensor.numel())
        others = [rank for rank in range(self.size) if rank != self.rank]
        for rank in others:
            self._put(tensor, rank)
        parts = {self.rank: tensor.detach().clone()} | {rank: self.receive(tensor, rank) for rank in others}
        with torch.no_grad():
            tensor.copy_(sum(parts[rank] for rank in range(self.size)))
        return tensor

    def _put(self, tensor: Tensor, to: int) -> threading.Event:
        if not 0 <= to < self.size or to == self.rank:
            raise ValueError(f"to={to!r} is no other rank; allowed: 0 to {self.size - 1} without {self.rank}")
        taken = threading.Event()
        self._pipes[self.rank, to].put((tensor.detach().clone(), taken))
        return taken

    def _take(self, source: int) -> tuple[Tensor, threading.Event]:
        if not 0 <= source < self.size or source == self.rank:
            raise ValueError(f"source={source!r} is no other rank; allowed: 0 to {self.size - 1} without {self.rank}")
        try:
            return self._pipes[source, self.rank].get(timeout=PATIENCE)
        except queue.Empty:
            raise Stuck(f"rank {self.rank} waited to receive from rank {source}, which did not send") from None


def in_threads(
    function: Callable, size: int, arguments: Sequence[Sequence[Any]] | None = None, patience: float = 20
) -> list[Any]:
    """``function(link, *arguments[rank])`` on ``size`` pretended ranks, and what each returned, rank 0 first.

    Args:
        arguments: for each rank its further arguments; None: there are none.
        patience: seconds until ``Stuck`` is raised about a function that never comes back.

    Raises:
        Stuck: ranks waited for one another.
        Exception: what the function raised on the rank that failed first.
    """
    pipes: dict[tuple[int, int], queue.Queue] = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    results: list[Any] = [None] * size
    failures: list[tuple[float, Exception]] = []

    def run(rank: int) -> None:
        link = ThreadLink(rank, size, pipes)
        try:
            results[rank] = function(link, *(arguments[rank] if arguments else ()))
        except Exception as error:
            failures.append((time.monotonic(), error))

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for rank, thread in enumerate(threads):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            raise Stuck(f"rank {rank} had not ended after {patience:g} s")
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    return results
