"""Pretended ranks for lesson 11's checkers: threads of this process (``links.in_threads``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.parallel.links import Stuck, in_threads
from course_utils.teach.exercise import Wrong, ask

WAITS = (
    "Ranks waited for one another. Every rank must make the same exchanges in the same order; and if all of them send "
    "first, nobody receives: use link.exchange, which does both at once."
)


def on_pretended_ranks(answer: Callable, size: int, arguments: Sequence[Sequence[Any]], given: str) -> list[Any]:
    """What the answer returned on each rank; ranks that are stuck are ``Wrong`` with a hint of their own."""

    def run() -> list[Any]:
        return in_threads(answer, size, arguments)

    try:
        return ask(run, given=given, expected="a result from every rank")
    except Wrong as wrong:
        if wrong.got.startswith(Stuck.__name__):
            raise Wrong(given=given, expected="ranks that all end", got=wrong.got, hint=WAITS) from None
        raise


def toy_rows(seed: int, counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """For each count a batch x (8, 6), y (8,) of which so many labels are targets; the rest is -100."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for count in counts:
        x, y = torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        y[count:] = -100
        batches.append((x, y))
    return batches
