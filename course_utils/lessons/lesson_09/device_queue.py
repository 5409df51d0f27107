"""A GPU's queue in miniature: who waits for whom, computed and not measured (lesson 09).

The program puts kernels into a queue and goes on; the device works them off in order. Only reading a result, or
``torch.cuda.synchronize()``, makes the program wait: https://docs.pytorch.org/docs/stable/notes/cuda.html
"""

from __future__ import annotations

from typing import NamedTuple


class Schedule(NamedTuple):
    """When each step's kernels were put in the queue and when they ran, in ms; what a clock read, and the truth.

    ``host`` and ``device`` hold ``(start, end)`` for each step; ``read`` is what a timer around the loop shows,
    ``total`` the time at which the work is done.
    """

    host: list[tuple[float, float]]
    device: list[tuple[float, float]]
    read: float
    total: float


def schedule(steps: int, launch: float, work: float, read_each_step: bool, synchronise: bool = True) -> Schedule:
    """What happens to ``steps`` steps.

    Args:
        steps: of the loop, >= 1.
        launch: ms that Python needs to put a step's kernels into the queue.
        work: ms that the device needs for them.
        read_each_step: ``loss.item()`` after each step.
        synchronise: wait for the device before the clock is read.

    Raises:
        ValueError: ``steps`` below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} is out of range; allowed: a whole number >= 1")
    host, device, now, free = [], [], 0.0, 0.0
    for _ in range(steps):
        host.append((now, now + launch))
        # A step is one kernel here: it can start when its launch begins to arrive and the device is free.
        begin = max(now + launch, free)
        free = begin + work
        device.append((begin, free))
        now = free if read_each_step else now + launch
    return Schedule(host, device, free if synchronise else now, free)
