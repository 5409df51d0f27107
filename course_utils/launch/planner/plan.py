"""Does a run fit, how fast will it be, what will it cost, and what else could be done: ``plan`` (lesson 15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from course_utils.errors import SpecError
from course_utils.gpus import GPUS
from course_utils.launch.planner import memory, pipeline, speed
from course_utils.launch.planner.reduction import Reduction, asked
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of
from course_utils.models.shapes import ModelShape

GIB = memory.GIB
NAMES = {"ddp": "DDP", "fsdp1": "FSDP1", "fsdp2": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}


@dataclass(frozen=True)
class Plan:
    """Memory and speed of one spec; bytes and seconds, shown as GiB and as what reads best.

    ``moments`` are the bytes on a GPU, ``{moment: {component: bytes}}``; ``host`` those in a machine's memory, for what
    is offloaded; ``parameters`` counts all of the model with its adapters, ``trained`` those that learn. With a
    ``pipeline`` the spec is that of one stage's machines, and the memory that of the tightest stage.
    """

    spec: Spec
    shape: ModelShape
    parameters: int
    trained: int
    moments: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]
    reduction: Reduction
    speed: speed.Speed
    pipeline: pipeline.Pipeline | None = None

    @property
    def name(self) -> str:
        """The strategy with what it is combined with, such as ``"ZeRO-2 + optimizer offload"``."""
        parts = [NAMES[self.spec.strategy]]
        if self.spec.replicas > 1:
            parts.append(f"{self.spec.replicas} replicas")
        if self.spec.tensor_parallel > 1:
            parts.append(f"{self.spec.tensor_parallel} GPUs a matrix")
        if self.stages > 1:
            parts.append(f"{self.stages} stages")
        elif not self.spec.reshard_after_forward:
            parts.append("no reshard")
        if self.reduction.each_batch and not self.spec.is_deepspeed:
            parts.append("sync each batch")
        if self.reduction.fp32 and self.spec.is_fsdp:
            parts.append("fp32 reduction")
        if self.spec.offload != "none":
            parts.append("offload" if self.spec.offload == "all" else "optimizer offload")
        return " + ".join(parts)

    @property
    def stages(self) -> int:
        """Groups of machines among which a pipeline divides the layers; 1: all machines have them all."""
        return len(self.pipeline.stages) if self.pipeline else 1

    @property
    def gpus(self) -> int:
        """All that the run takes."""
        return self.stages * self.spec.world_size

    @property
    def moment(self) -> str:
        """When memory is tightest: one of ``course_utils.launch.planner.memory.MOMENTS``."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes on a GPU by component, at that moment."""
        return self.moments[self.moment]

    @property
    def total(self) -> int:
        """Bytes on a GPU at that moment: the sum of ``memory``."""
        return sum(self.memory.values())

    @property
    def limit(self) -> int:
        """Bytes a GPU has."""
        return int((self.spec.gpu_memory or GPUS[self.spec.gpu].memory) * GIB)

    @property
    def host_total(self) -> int:
        """Bytes in a machine's memory."""
        return sum(self.host.values())

    @property
    def fits(self) -> bool:
        """On the GPU, and in the machine's memory where that is known."""
        room = self.spec.host_memory is None or self.host_total <= self.spec.host_memory * GIB
        return room and self.total <= self.limit


def plan(spec: Spec, shape: ModelShape | None = None, reduction: Reduction | None = None, stages: int = 1) -> Plan:
    """The plan of a spec: arithmetic only, nothing is allocated or started.

    Args:
        spec: the run; with several stages the whole run's batch, on the machines of one stage.
        shape: of ``spec.model``, where it is known already.
        reduction: how often and in which type gradients are reduced; None: as ``spec.arguments`` ask for.
        stages: of a pipeline, which takes so many times the spec's machines.

    Raises:
        SpecError: the model is not known or not counted, see ``shape_of``; context parallelism without SDPA; a
            pipeline that does not exist, see ``pipeline.check``.
    """
    shape, how = shape or shape_of(spec.model), asked(spec) if reduction is None else reduction
    if shape.attention != "sdpa" and spec.context_parallel > 1:
        raise SpecError(
            f"context_parallel={spec.context_parallel} cuts sequences inside SDPA, and this model's attention is "
            f"{shape.attention}; allowed: 1"
        )
    whole, trained = memory.total_parameters(spec, shape)
    if stages != 1:
        on_gpu, found, fast = pipeline.build(spec, shape, stages, how)
        kept = spec.but(reshard_after_forward=False)
        return Plan(kept, shape, whole, trained, on_gpu, {}, how, fast, found)
    count = memory.parameters(spec, shape)
    on_gpu, on_host = memory.on_gpu(spec, shape, count, how), memory.on_host(spec, count)
    return Plan(spec, shape, whole, trained, on_gpu, on_host, how, speed.speed(spec, shape, count, how))


# What may be asked of the same machines: strategy, offload, reshard_after_forward.
CHOICES = (
    ("ddp", "none", True),
    ("fsdp2", "none", False),
    ("fsdp2", "none", True),
    ("fsdp2", "all", True),
    ("zero1", "none", True),
    ("zero1", "optimizer", True),
    ("zero2", "none", True),
    ("zero2", "optimizer", True),
    ("zero3", "none", True),
    ("zero3", "optimizer", True),
    ("zero3", "all", True),
)


def strategies(spec: Spec) -> list[Plan]:
    """A plan of every strategy for the same run on the same machines: those that fit first, the fastest first.

    On the same machines the fastest is the cheapest. FSDP1 plans like FSDP2. Replicas, tensor and context parallelism
    are kept where the strategy knows them; where it does not, replicas become 1 and the others drop the strategy.
    """
    shape, found = shape_of(spec.model), []
    for strategy, offload, reshard in CHOICES:
        own = {"strategy": strategy, "offload": offload, "reshard_after_forward": reshard}
        replicas = spec.replicas if strategy == "fsdp2" else 1
        try:
            found.append(plan(spec.but(replicas=replicas, **own), shape))
        except SpecError:  # the spec's other fields do not go together with this strategy
            continue
    return sorted(found, key=lambda one: (not one.fits, one.speed.step, one.total))
