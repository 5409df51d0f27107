"""3D layouts: how many copies of the model, how many GPUs share a matrix, how many stages share the layers (lesson 15).

Copies (HSDP) go over machines or parts of one, tensor parallelism stays inside a machine, a stage of a pipeline takes
whole machines. What is left shards the state.
"""

from __future__ import annotations

from course_utils.errors import SpecError
from course_utils.launch.planner.plan import Plan, plan
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of


def layouts(spec: Spec, stages: int = 1) -> list[Plan]:
    """A plan for every way to divide the GPUs under FSDP2: copies x shards x GPUs a matrix x stages.

    Those that fit first, the fastest first. The batch stays as asked: a layout with fewer data-parallel ranks
    accumulates more. What cannot divide the batch, or leaves a stage without enough micro-batches, is left out.
    Pipelines are planned only, see ``course_utils.launch.planner.pipeline``.

    Args:
        stages: as ``plan`` takes it: the GPUs are so many times the spec's.
    """
    nodes = spec.nodes * stages
    shape, found = shape_of(spec.model), []
    same = {"strategy": "fsdp2", "offload": "none", "accumulation": None, "global_batch": spec.effective_batch}
    for number in _divisors(nodes):
        machines = same | {"nodes": nodes // number, "hosts": ()}
        for tensor in _divisors(spec.gpus_per_node):
            for replicas in _divisors(machines["nodes"] * spec.gpus_per_node // tensor):
                try:
                    asked = spec.but(**machines, tensor_parallel=tensor, replicas=replicas)
                    found.append(plan(asked, shape, stages=number))
                except SpecError:  # the batch, the context or the layers cannot be divided like that
                    continue
    return sorted(found, key=lambda one: (not one.fits, one.speed.step, one.total))


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
