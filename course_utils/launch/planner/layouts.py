"""FSDP2 on many GPUs: how many copies of the sharded model, and how many GPUs share a matrix (lesson 15)."""

from __future__ import annotations

from course_utils.errors import SpecError
from course_utils.launch.planner.plan import Plan, plan
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of


def layouts(spec: Spec) -> list[Plan]:
    """A plan for every way to divide the GPUs: copies (HSDP) x shards x tensor parallel, inside a machine.

    A copy is sharded over whole machines, or over an even share of one. Those that fit first, the fastest first; the
    batch stays as asked, so that a layout with fewer data-parallel ranks accumulates more where ``global_batch`` is
    given. Pipelines are not planned.
    """
    shape, found = shape_of(spec.model), []
    for tensor in _divisors(spec.gpus_per_node):
        for replicas in _divisors(spec.world_size // tensor):
            try:
                asked = spec.but(strategy="fsdp2", offload="none", tensor_parallel=tensor, replicas=replicas)
            except SpecError:  # the batch or the context cannot be divided like that
                continue
            found.append(plan(asked, shape))
    return sorted(found, key=lambda one: (not one.fits, one.speed.step, one.total))


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
