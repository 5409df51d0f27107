"""Collectives from nothing but send and receive (lesson 11): broadcast, all-reduce, reduce-scatter, all-gather.

Each works on a ``Link`` (``links.py``): on real ranks and on pretended ones. Every rank must call the same collective
with a tensor of the same shape. The ring is that of Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for
clusters of workstations"; torch's own: https://pytorch.org/docs/stable/distributed.html ("Collective functions").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.parallel.links import Link


def broadcast(link: Link, tensor: Tensor, root: int = 0) -> Tensor:
    """Everybody gets ``root``'s tensor: in place, and returned. ``root`` sends it to each of the others."""
    if link.rank == root:
        for other in range(link.size):
            if other != root:
                link.send(tensor, other)
    else:
        tensor.copy_(link.receive(tensor, root))
    return tensor


def all_reduce_naive(link: Link, tensor: Tensor) -> Tensor:
    """Everybody gets the sum: rank 0 collects all tensors, adds them in the order of the ranks, and sends the sum."""
    if link.rank == 0:
        for other in range(1, link.size):
            tensor += link.receive(tensor, other)
    else:
        link.send(tensor, 0)
    return broadcast(link, tensor)


OnStep = Callable[[str, int, list[Tensor]], None]


def pieces(tensor: Tensor, size: int) -> list[Tensor]:
    """``size`` views of the flat ``tensor``, equally long or one element longer; some are empty if it is short."""
    return list(tensor.view(-1).tensor_split(size))


def reduce_scatter(link: Link, tensor: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Rank r gets piece r of the sum; the other pieces of ``tensor`` are partial sums afterwards.

    ``size - 1`` steps in a ring: each rank sends one piece to the right and adds the one that comes from the left. A
    piece starts at the right neighbour of the rank it ends at, and is complete when it arrives there.

    Args:
        tensor: contiguous, changed in place.
        on_step: called after each step with "reduce-scatter", the step's number from 1 on, and all pieces.
    """
    parts = pieces(tensor, link.size)
    for step in range(1, link.size):
        outgoing, incoming = parts[(link.rank - step) % link.size], parts[(link.rank - step - 1) % link.size]
        incoming += _pass_on(link, outgoing, incoming)
        if on_step:
            on_step("reduce-scatter", step, parts)
    return parts[link.rank]


def all_gather(link: Link, tensor: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Everybody gets all pieces: rank r brings piece r of ``tensor``, in place, and the whole is returned.

    ``size - 1`` steps in a ring: each rank passes on to the right what it got last. Arguments as ``reduce_scatter``.
    """
    parts = pieces(tensor, link.size)
    for step in range(1, link.size):
        outgoing, incoming = parts[(link.rank - step + 1) % link.size], parts[(link.rank - step) % link.size]
        incoming.copy_(_pass_on(link, outgoing, incoming))
        if on_step:
            on_step("all-gather", step, parts)
    return tensor


def all_reduce_ring(link: Link, tensor: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Everybody gets the sum: reduce-scatter, then all-gather. Each rank sends 2(N-1)/N of the tensor."""
    reduce_scatter(link, tensor, on_step)
    return all_gather(link, tensor, on_step)


def ring_bytes(elements: int, size: int, element_size: int = 4) -> float:
    """Bytes that each rank sends in a ring all-reduce over ``size`` ranks, where ``size`` divides ``elements``."""
    return 2 * (size - 1) / size * elements * element_size


def _pass_on(link: Link, outgoing: Tensor, incoming: Tensor) -> Tensor:
    """Send to the right, receive from the left, at once: if all sent first, all would wait for a receiver."""
    right, left = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    if outgoing.numel() and incoming.numel():
        return link.exchange(outgoing, right, incoming, left)
    if outgoing.numel():  # the tensor is shorter than there are ranks: an empty piece is not sent
        link.send(outgoing, right)
    if incoming.numel():
        return link.receive(incoming, left)
    return torch.empty_like(incoming)
