"""The cheapest change that makes a run fit: a search over what practitioners try, in the order in which it hurts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from course_utils.errors import SpecError
from course_utils.launch.planner.plan import GIB, Plan, plan
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of
from course_utils.models.shapes import ModelShape

MOST_NODES = 16  # times the nodes asked for
LORA_RANK = 16


class Change(NamedTuple):
    """A changed spec that fits, its plan, and a sentence that says what was changed."""

    spec: Spec
    plan: Plan
    sentence: str


def cheapest_change(spec: Spec, shape: ModelShape | None = None) -> Change | None:
    """The least painful change after which ``plan(spec).fits``; None: there is none, or it fits as it is.

    From painless to painful, and a painful thing is only tried when nothing before it helps:

    1. a smaller micro-batch with more accumulation: the same training, a little slower;
    2. sharding more of the state: more communication;
    3. checkpointing: a third more computing;
    4. offloading: the CPU and PCIe set the pace;
    5. more machines: money;
    6. LoRA: another training altogether.
    """
    shape = shape or shape_of(spec.model)
    before = plan(spec, shape)
    if before.fits:
        return None
    for changes in _options(spec):
        try:
            changed = spec.but(**changes)
        except SpecError:  # does not go together with the spec's other fields
            continue
        found = plan(changed, shape)
        if found.fits:
            return Change(changed, found, _sentence(before, changes, found))
    return None


def _options(spec: Spec) -> Iterator[dict[str, Any]]:
    """Changed fields, the least painful first: the last factor of the product varies fastest."""
    ranks = (0, LORA_RANK) if not spec.lora_rank else (spec.lora_rank,)
    nodes = [spec.nodes * 2**power for power in range(MOST_NODES.bit_length())]
    offloads = ("none", "optimizer", "all")[("none", "optimizer", "all").index(spec.offload) :]
    recomputes = (True,) if spec.checkpointing else (False, True)
    batches = [spec.micro_batch >> power for power in range(spec.micro_batch.bit_length())]
    for rank, count, offload, recompute, shard, batch in product(
        ranks, nodes, offloads, recomputes, _sharding(spec), batches
    ):
        wanted = {"lora_rank": rank, "nodes": count, "offload": offload, "checkpointing": recompute}
        changes = wanted | shard | {"micro_batch": batch}
        changes = {name: value for name, value in changes.items() if value != getattr(spec, name)}
        if changes:
            yield from _same_batch(spec, changes)


def _sharding(spec: Spec) -> list[dict[str, Any]]:
    """The spec's own strategy, then those of its family that shard more.

    Instead of DDP plain FSDP2: the usual setting, with the most room. ``reshard_after_forward=False`` takes more memory
    to send less, which is for those who have seen that it runs.
    """
    if spec.is_deepspeed:
        stages = ("zero1", "zero2", "zero3")
        return [{"strategy": stage} for stage in stages[stages.index(spec.strategy) :]]
    own = {"strategy": spec.strategy, "reshard_after_forward": spec.reshard_after_forward, "replicas": spec.replicas}
    if spec.strategy == "ddp":
        return [own, {**own, "strategy": "fsdp2"}]
    resharded = {**own, "reshard_after_forward": True}
    return [own, *[one for one in (resharded, {**resharded, "replicas": 1}) if one != own]]


def _same_batch(spec: Spec, changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The changes with the accumulation that keeps the effective batch; nothing where no whole number does.

    More machines than sequences make the batch grow, unless ``global_batch`` asks for its size.
    """
    if "nodes" in changes and spec.hosts:
        changes = changes | {"hosts": ()}
    batch = changes.get("micro_batch", spec.micro_batch)
    nodes = changes.get("nodes", spec.nodes)
    at_once = batch * spec.data_parallel_size // spec.nodes * nodes
    accumulation, rest = divmod(spec.effective_batch, at_once)
    if not accumulation and "nodes" in changes and spec.global_batch is None:
        accumulation, rest = 1, 0
    if rest:
        return
    if spec.accumulation is not None or (spec.global_batch is None and accumulation != 1):
        changes = changes | {"accumulation": accumulation}
    yield changes


def _sentence(before: Plan, changes: dict[str, Any], found: Plan) -> str:
    """``set micro_batch=2 (was 8) and accumulation=4 (was 1): 61.2 GiB, 1.3 x the time of a step.``"""
    parts = [
        f"{name}={value!r} (was {getattr(before.spec, name)!r})" for name, value in changes.items() if name != "hosts"
    ]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" and {parts[-1]}"
    slower, batch = found.speed.step / before.speed.step, found.spec.effective_batch
    grown = "" if batch == before.spec.effective_batch else f" of {batch} sequences, not {before.spec.effective_batch}"
    return f"set {listed}: {found.total / GIB:.1f} GiB, {slower:.2f} x the time of a step{grown}."
