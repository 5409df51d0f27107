"""Compare running times fairly: interleaved rounds and medians (lesson 01, ``make bench``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3
) -> dict[str, float]:
    """Median seconds of each function, called in turn: whatever slows the machine for a while slows all of them.

    Args:
        functions: name -> call to be timed. They must wait for their own work (CUDA: synchronize).
        rounds: measured calls of each, >= 1.
        warmup: calls of each before measuring (compilation, allocation, caches).

    Raises:
        ValueError: ``rounds`` < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is out of range; allowed: a whole number >= 1")
    for function in functions.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
