"""Does a run fit, how fast will it be, what will it cost, and what else could be done: ``plan`` (lesson 15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from course_utils.launch import memory, speed
from course_utils.launch.errors import SpecError
from course_utils.launch.rules import GPUS
from course_utils.launch.shapes import ModelShape, shape_of
from course_utils.launch.spec import Spec

GIB = memory.GIB
NAMES = {"ddp": "DDP", "fsdp1": "FSDP1", "fsdp2": "FSDP2", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}


@dataclass(frozen=True)
class Plan:
    """Memory and speed of one spec; bytes and seconds, shown as GiB and as what reads best.

    ``moments`` are the bytes on a GPU, ``{moment: {component: bytes}}``; ``host`` those in a machine's memory, for what
    is offloaded; ``parameters`` counts all of the model with its adapters, ``trained`` those that learn.
    """

    spec: Spec
    shape: ModelShape
    parameters: int
    trained: int
    moments: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]
    speed: speed.Speed

    @property
    def name(self) -> str:
        """The strategy with what it is combined with, such as ``"ZeRO-2 + optimizer offload"``."""
        parts = [NAMES[self.spec.strategy]]
        if self.spec.replicas > 1:
            parts.append(f"{self.spec.replicas} replicas")
        if not self.spec.reshard_after_forward:
            parts.append("no reshard")
        if self.spec.offload != "none":
            parts.append("offload" if self.spec.offload == "all" else "optimizer offload")
        return " + ".join(parts)

    @property
    def moment(self) -> str:
        """When memory is tightest: one of ``course_utils.launch.memory.MOMENTS``."""
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

    @property
    def verdict(self) -> str:
        """One sentence: it fits, or what it lacks and the cheapest change that makes it fit."""
        need = f"needs {self.total / GIB:.1f} GiB of a GPU's {self.limit / GIB:.1f} GiB"
        if self.host_total:
            known = self.spec.host_memory
            need += f" and {self.host_total / GIB:.1f} GiB of a machine's memory" + (
                f" of {known:g} GiB" if known else ""
            )
        if self.fits:
            return f"{self.name} fits: it {need}."
        from course_utils.launch.changes import cheapest_change

        found = cheapest_change(self.spec, self.shape)
        advice = found.sentence if found else "no change known to this planner makes it fit."
        return f"{self.name} does not fit: it {need}; {advice}"

    def table(self) -> str:
        """Text for a terminal: memory by component at every moment, speed, and the verdict."""
        return "\n".join([_heading(self), "", *_memory_lines(self), "", *_speed_lines(self), "", self.verdict])


def plan(spec: Spec, shape: ModelShape | None = None) -> Plan:
    """The plan of a spec: arithmetic only, nothing is allocated or started.

    Args:
        shape: of ``spec.model``, where it is known already.

    Raises:
        SpecError: the model is not known, see ``shape_of``.
    """
    shape = shape or shape_of(spec.model)
    whole, trained = memory.total_parameters(spec, shape)
    on_gpu, on_host = memory.on_gpu(spec, shape), memory.on_host(spec, shape)
    return Plan(spec, shape, whole, trained, on_gpu, on_host, speed.speed(spec, shape))


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


def strategies_table(plans: Sequence[Plan]) -> str:
    """Text for a terminal: one line per plan."""
    width = max(len(one.name) for one in plans) + 2
    paid = any(one.speed.cost is not None for one in plans)
    cost = f"{'cost $':>10}" if paid else ""
    lines = [
        f"{'strategy':{width}}{'fits':>5}{'GPU GiB':>9}{'host GiB':>10}{'s/step':>9}{'tokens/s':>11}{'hours':>9}{cost}"
    ]
    for one in plans:
        fast = one.speed
        memory_of = f"{one.total / GIB:9.1f}{one.host_total / GIB:10.1f}"
        cost = f"{fast.cost:10,.0f}" if fast.cost is not None else ""
        times = f"{fast.step:9.3f}{fast.tokens_per_second:11,.0f}{fast.hours:9.2f}"
        lines.append(f"{one.name:{width}}{'yes' if one.fits else 'no':>5}{memory_of}{times}{cost}")
    return "\n".join(lines)


def _heading(one: Plan) -> str:
    spec = one.spec
    model = spec.model if isinstance(spec.model, str) else "a model"
    trained = "" if one.trained == one.parameters else f", {one.trained / 1e6:,.1f} M trained"
    return (
        f"{model}: {one.parameters / 1e9:.3f} B parameters{trained}; {one.name} on {spec.nodes} x {spec.gpus_per_node} "
        f"{spec.gpu}; {spec.effective_batch} sequences of {spec.sequence_length} tokens a step"
    )


def _memory_lines(one: Plan) -> list[str]:
    """GiB by component and moment; components that are nowhere are left out."""
    lines = [f"{'GiB per GPU':18}" + "".join(f"{moment:>13}" for moment in one.moments)]
    for component in memory.COMPONENTS:
        sizes = [found[component] / GIB for found in one.moments.values()]
        if any(sizes):
            lines.append(f"{component:18}" + "".join(f"{size:13.2f}" for size in sizes))
    sums = [sum(found.values()) / GIB for found in one.moments.values()]
    lines.append(f"{'total':18}" + "".join(f"{size:13.2f}" for size in sums) + f"   limit {one.limit / GIB:.1f}")
    host = ", ".join(f"{name} {size / GIB:.1f}" for name, size in one.host.items())
    return lines + ([f"GiB per machine:  {host}"] if host else [])


def _speed_lines(one: Plan) -> list[str]:
    fast = one.speed
    parts = (
        f"computing {fast.compute:.3f}, waiting for communication {fast.exposed:.3f}, for offload {fast.offload:.3f}"
    )
    factor = speed.recompute_factor(one.spec, one.shape)
    recomputing = f", of which recomputation leaves {one.spec.mfu / factor:.2f}" if factor > 1 else ""
    lines = [
        f"a step: {fast.step:.3f} s ({parts}); a GPU sends {fast.volume / GIB:.2f} GiB",
        f"{fast.tokens_per_second:,.0f} tokens/s at MFU {one.spec.mfu:g}{recomputing}",
        f"{one.spec.max_steps:,} steps: {fast.hours:.2f} h",
    ]
    return lines + ([f"cost: ${fast.cost:,.2f}"] if fast.cost is not None else [])
