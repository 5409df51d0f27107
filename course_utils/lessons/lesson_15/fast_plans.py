"""The fastest plan that a run allows, and why another one is slower: exercises 2 and 8 of lesson 15."""

from __future__ import annotations

import functools
from typing import Any


def best_tokens_per_second(run: dict[str, Any]) -> float:
    """The fastest plan that fits, over all choices the exercises allow; ``run``'s values are numbers, texts, tuples."""
    return _best(tuple(run.items()))


@functools.cache
def _best(run: tuple[tuple[str, Any], ...]) -> float:
    from course_utils.launch import Spec, strategies

    base = Spec(**dict(run))
    plans = [
        one
        for checkpointing in (False, True)
        for micro_batch in (1, 2, 4, 8)
        for replicas in (1, base.nodes)
        for one in strategies(base.but(checkpointing=checkpointing, micro_batch=micro_batch, replicas=replicas))
    ]
    return max(one.speed.tokens_per_second for one in plans if one.fits)


def slow_because(found: Any) -> str:
    """What a plan that fits could do better, in a sentence."""
    spec = found.spec
    if spec.offload != "none":
        return "It fits, but the GPUs wait for host memory. Offload is for what fits in no other way."
    if found.speed.exposed > 0.1 * found.speed.step and spec.replicas == 1:
        return "It fits, but weights cross the slow network in every pass. Which strategy keeps them inside a machine?"
    if spec.checkpointing:
        return "It fits with room to spare, and every forward pass runs twice. Is recomputation needed?"
    return "It fits, but it waits. Is there memory left for a larger micro-batch?"
