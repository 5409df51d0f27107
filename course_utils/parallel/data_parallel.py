"""Data parallel by hand (lesson 11): the ranks' gradients averaged, first naively, then in buckets during backward.

    wrapped = AverageInBuckets(model, link)     # or AverageAfter: the same interface
    loss = summed_loss(wrapped, my_rows) * link.size / targets_of_all_ranks
    loss.backward()
    wrapped.finish()                            # now every p.grad is the average over the ranks
    optimizer.step()

torch's version of the second is ``DistributedDataParallel``: Li et al. 2020, "PyTorch Distributed: Experiences on
Accelerating Data Parallel Training", sections 3.2 (buckets, overlap) and 3.2.4 (no_sync).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.parallel.collectives import broadcast
from course_utils.parallel.links import GroupLink, Link

BUCKET_BYTES = 25 * 2**20  # as DDP's bucket_cap_mb=25


class AverageAfter:
    """The naive way: when backward is over, average one parameter's gradient after the other.

    ``spans`` has ``[number, begun, ended]`` of each exchange of the last step, in seconds of ``perf_counter``.
    Parameters without a gradient are left out, so each must have one on all ranks or on none.

    Args:
        model: the same architecture on every rank.
        link: to the other ranks.
        equal_start: send rank 0's weights to all, as DDP does when it is built. False: whatever each rank has.
    """

    def __init__(self, model: nn.Module, link: Link, equal_start: bool = True):
        self.model, self.link, self.synchronise = model, link, True
        self.messages, self.bytes = 0, 0  # all-reduces begun, and bytes of the tensors in them
        self.spans: list[list[float]] = []
        if equal_start:
            start_equal(model, link)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.model(*inputs, **named)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients only add up on this rank: for all micro-batches of a window but the last."""
        self.synchronise = False
        try:
            yield
        finally:
            self.synchronise = True

    def finish(self) -> None:
        """Average the gradients; every rank calls it once, before the optimizer steps."""
        self.spans = []
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                begun = time.perf_counter()
                self._count(parameter.grad)
                self.link.all_reduce(parameter.grad)
                parameter.grad /= self.link.size
                self.spans.append([float(len(self.spans)), begun, time.perf_counter()])

    def _count(self, tensor: Tensor) -> None:
        self.messages += 1
        self.bytes += tensor.numel() * tensor.element_size()


class AverageInBuckets(AverageAfter):
    """The fast way: gradients travel in buckets, each as soon as it is full, while backward goes on.

    Buckets are filled in the reverse order of the parameters, since backward reaches the last layer first. They are
    sent in one fixed order, because ranks pair up exchanges by their order. A parameter without a gradient counts as
    zero when ``finish`` is called.

    Args:
        bucket_bytes: a bucket is closed when the next gradient would not fit; a larger gradient has one for itself.
    """

    def __init__(self, model: nn.Module, link: GroupLink, equal_start: bool = True, bucket_bytes: int = BUCKET_BYTES):
        super().__init__(model, link, equal_start)
        self.buckets = buckets_of(list(model.parameters()), bucket_bytes)
        self._place = {parameter: number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self._open()
        for parameter in self._place:
            parameter.register_post_accumulate_grad_hook(self._gradient_is_there)

    def finish(self) -> None:
        while len(self._running) < len(self.buckets):  # a bucket with a parameter that took no part
            self._send()
        for bucket, (flat, work) in zip(self.buckets, self._running, strict=True):
            work.wait()
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter) / self.link.size
        self._open()

    def _open(self) -> None:
        self._missing = [set(bucket) for bucket in self.buckets]
        self._running: list[tuple[Tensor, Any]] = []

    def _gradient_is_there(self, parameter: nn.Parameter) -> None:
        """The hook: torch calls it in the middle of backward, when ``parameter.grad`` is complete."""
        if not self.synchronise:
            return
        if not self._running and all(map(len, self._missing)):
            self.spans = []
        self._missing[self._place[parameter]].discard(parameter)
        while len(self._running) < len(self.buckets) and not self._missing[len(self._running)]:
            self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self._running)]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        self._count(flat)
        span = [float(len(self._running)), time.perf_counter(), float("nan")]
        self.spans.append(span)
        work = self.link.start_all_reduce(flat)
        work.get_future().add_done_callback(lambda _: span.__setitem__(2, time.perf_counter()))
        self._running.append((flat, work))


@torch.no_grad()
def start_equal(model: nn.Module, link: Link) -> None:
    """Rank 0's parameters and buffers for everybody."""
    for tensor in [*model.parameters(), *model.buffers()]:
        broadcast(link, tensor.data)


def buckets_of(parameters: list[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Trainable ``parameters`` from last to first, in lists of at most ``bucket_bytes`` (or of one parameter)."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed([p for p in parameters if p.requires_grad]):
        size = parameter.numel() * parameter.element_size()
        if size > room or not buckets:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(parameter)
        room -= size
    return buckets


def buckets_in_bytes(buckets: list[list[nn.Parameter]]) -> list[int]:
    """The size of each bucket."""
    return [sum(p.numel() * p.element_size() for p in bucket) for bucket in buckets]
