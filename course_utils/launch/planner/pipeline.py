"""A pipeline: the layers divided among groups of machines, through which micro-batches pass one after the other.

Planned only: no launch file starts one. The schedule is 1F1B as torch runs it (``torch.distributed.pipelining``,
``Schedule1F1B``): a stage lets in as many micro-batches as stages follow it, itself included, then does one forward and
one backward pass in turn. With p stages and m micro-batches the machines are idle for (p-1)/(m+p-1) of the time, the
bubble (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
section 2.2.1, which gives it as (p-1)/m of the useful time).

Inside a stage FSDP2 shards, with copies and tensor parallelism as without a pipeline. torch keeps a stage's weights
gathered from the first forward pass to the end of the step, and reduces gradients once, after the last backward pass,
when nothing is left to hide behind (``_PipelineStageBase.backward_maybe_with_nosync`` and ``perform_reduce_grad``).
"""

from __future__ import annotations

from typing import NamedTuple

from course_utils.errors import SpecError, out_of_range
from course_utils.launch.planner import activations, memory, speed
from course_utils.launch.planner.reduction import Reduction
from course_utils.launch.spec import Spec
from course_utils.launch.spec.state import bytes_of
from course_utils.models.shapes import ModelShape

Moments = dict[str, dict[str, int]]


class Stage(NamedTuple):
    """One stage: its layers, and micro-batches in flight at most.

    Seconds of a micro-batch: computing, waiting for messages inside the stage; of a step: gathering its weights.
    """

    layers: int
    in_flight: int
    compute: float
    waited: float
    gathering: float

    @property
    def seconds(self) -> float:
        """Of one micro-batch, forward and backward pass."""
        return self.compute + self.waited


class Pipeline(NamedTuple):
    """The stages of a plan; ``tightest`` counts from 0; ``passed``: bytes of a micro-batch between two stages."""

    stages: tuple[Stage, ...]
    tightest: int
    micro_batches: int
    passed: int

    @property
    def bubble(self) -> float:
        """Share of the passing time in which the slowest stage waits for others; (p-1)/(m+p-1) where all are alike."""
        slowest = max(stage.seconds for stage in self.stages)
        everything = sum(stage.seconds for stage in self.stages) + (self.micro_batches - 1) * slowest
        return 1 - self.micro_batches * slowest / everything


def divide(layers: int, stages: int) -> list[int]:
    """Layers of each stage. The rest goes to the middle, then to the first stage: the last one has the output layer.

    So Llama 3's 126 layers on 16 stages are 7, 14 x 8, 7 (Grattafiori et al. 2024, section 3.3.2).
    """
    least, rest = divmod(layers, stages)
    order = [*range(1, stages - 1), 0, stages - 1]
    return [least + (stage in order[:rest]) for stage in range(stages)]


def shapes_of(shape: ModelShape, stages: int) -> list[ModelShape]:
    """What each stage holds: the first the embedding, the last the final norm and the output layer.

    A matrix that is both is held twice, and its two gradients are added up.
    """
    embedding = shape.vocab_size * shape.hidden_size
    output = shape.vocab_size if shape.lm_head else 0
    found = []
    for stage, layers in enumerate(divide(shape.num_hidden_layers, stages)):
        is_last = stage == stages - 1
        sizes = {"num_hidden_layers": layers, "tie_word_embeddings": True, "vocab_size": output if is_last else 0}
        sizes["other"] = shape.other if is_last else embedding if stage == 0 else 0
        found.append(shape.model_copy(update=sizes))
    return found


def check(spec: Spec, shape: ModelShape, stages: int) -> None:
    """Raise ``SpecError`` for a pipeline that does not exist; ``spec`` is that of one stage's machines."""
    if not isinstance(stages, int) or not 1 <= stages <= shape.num_hidden_layers:
        raise out_of_range("stages", stages, f"a number from 1 to num_hidden_layers={shape.num_hidden_layers}")
    if spec.strategy != "fsdp2" or spec.offload != "none":
        raise SpecError(
            f"stages={stages} is planned with strategy='fsdp2' and offload='none' only; allowed with "
            f"{spec.strategy!r} and {spec.offload!r}: 1"
        )
    if spec.accumulation_steps < stages:  # as Schedule1F1B does
        raise SpecError(
            f"stages={stages} needs at least as many micro-batches in a step, and the batch leaves "
            f"{spec.accumulation_steps}; allowed: at most {spec.accumulation_steps}, or a larger batch"
        )


def build(spec: Spec, shape: ModelShape, stages: int, how: Reduction) -> tuple[Moments, Pipeline, speed.Speed]:
    """Memory of the tightest stage, the stages, and the speed of ``stages`` times the spec's machines.

    Args:
        spec: of one stage: its machines, and the whole run's batch.
        shape: of the whole model.

    Raises:
        SpecError: see ``check``.
    """
    check(spec, shape, stages)
    spec, shapes = spec.but(reshard_after_forward=False), shapes_of(shape, stages)
    rows = _stages(spec, shapes, how)
    # The second stage has the most layers and, of the middle ones, the most in flight.
    candidates = {number: _on_gpu(spec, shapes[number], rows[number], how) for number in {0, 1, stages - 1}}
    tightest = max(candidates, key=lambda number: max(sum(found.values()) for found in candidates[number].values()))
    passed = activations.tokens(spec) * shape.hidden_size * activations.kept(spec).residual
    found = Pipeline(rows, tightest, spec.accumulation_steps, passed)
    return candidates[tightest], found, _speed(spec, shape, shapes, found, how)


Pass = tuple[str, int, int]  # "forward" or "backward", micro-batch, stage


def schedule(seconds: list[tuple[float, float]], number: int, passing: float = 0.0) -> dict[Pass, tuple[float, float]]:
    """When each pass of a step begins and ends, event by event, in the order of torch's 1F1B.

    Nothing of ``_speed`` is used. A stage may compute something else while it waits for a micro-batch.

    Args:
        seconds: (forward, backward) of one micro-batch on each stage.
        number: micro-batches.
        passing: seconds from one stage to the next.
    """
    last, orders = len(seconds) - 1, []
    for place in range(len(seconds)):
        ahead = min(last + 1 - place, number)
        order = [("forward", one) for one in range(ahead)]
        for one in range(number):
            order += [("backward", one)] + ([("forward", one + ahead)] if one + ahead < number else [])
        orders.append(order)
    clocks, found = [0.0] * len(seconds), {}
    while any(orders):
        for place, order in enumerate(orders):
            while order:
                kind, one = order[0]
                source = place - 1 if kind == "forward" else place + 1
                if 0 <= source <= last and (kind, one, source) not in found:
                    break
                arrives = found[kind, one, source][1] + passing if 0 <= source <= last else 0.0
                start = max(clocks[place], arrives)
                clocks[place] = start + seconds[place][kind == "backward"]
                found[kind, one, place] = (start, clocks[place])
                del order[0]
    return found


def _stages(spec: Spec, shapes: list[ModelShape], how: Reduction) -> tuple[Stage, ...]:
    """Most of the middle stages are alike: each kind is computed once."""
    number, known, found = spec.accumulation_steps, {}, []
    for place, shape in enumerate(shapes):
        kind = (shape.num_hidden_layers, shape.vocab_size, shape.other)
        if kind not in known:
            waited = sum(speed.ring_time(spec, message) for message in _inside(spec, shape, how))
            gather = speed.fsdp_units(spec, shape, memory.parameters(spec, shape), how)[0]
            seconds = speed.compute_time(spec, shape) / number, waited / number, speed.ring_time(spec, gather)
            known[kind] = seconds
        found.append(Stage(shape.num_hidden_layers, len(shapes) - place, *known[kind]))
    return tuple(found)


def _on_gpu(spec: Spec, shape: ModelShape, stage: Stage, how: Reduction) -> Moments:
    """As without a pipeline, with what the other micro-batches in flight have left, and all weights gathered."""
    found = memory.on_gpu(spec, shape, memory.parameters(spec, shape), how)
    others = (stage.in_flight - 1) * activations.stored(spec, shape)
    for moment in ("loss", "last layer", "first layer"):
        found[moment]["activations"] += others
        found[moment]["gathered units"] = found["last layer" if moment == "first layer" else moment]["gathered units"]
    return {moment: memory.with_margin(parts) for moment, parts in found.items()}


def _inside(spec: Spec, shape: ModelShape, how: Reduction) -> list[speed.Message]:
    """Collectives among the GPUs that share a matrix or a sequence, which hide behind nothing."""
    found = speed.messages(spec, shape, memory.parameters(spec, shape), how)
    return [message for message in found if not message.window]


def _speed(spec: Spec, shape: ModelShape, shapes: list[ModelShape], pipeline: Pipeline, how: Reduction) -> speed.Speed:
    """Seconds of a step: all stages once, the slowest for every further micro-batch, and what hides nowhere.

    This is exact where all are alike or the last one is the slowest, as its output layer makes it; else a little long.
    A micro-batch's numbers pass from stage to stage forward and backward while the receiver waits. The weights of a
    stage are gathered behind its first forward pass; its gradients are reduced when the step is over. The first stage,
    whose last backward pass comes last, sends the ``volume``.
    """
    stages, number = pipeline.stages, pipeline.micro_batches
    slowest = max(stages, key=lambda stage: stage.seconds)
    latency, bandwidth = speed.link(spec, 2, spec.world_size)  # to the same GPU of the next stage's machines
    passing = 2 * (number + len(stages) - 2) * (latency + pipeline.passed / bandwidth)
    forward = speed.forward_share(spec, shape)
    late = sum(max(0.0, stage.gathering - stage.compute * forward) for stage in stages)
    gather, *reductions = speed.fsdp_units(spec, shapes[0], memory.parameters(spec, shapes[0]), how)
    if shape.tie_word_embeddings and shape.lm_head:  # the first stage and the last hold the matrix
        mine = memory.share(shape.vocab_size * shape.hidden_size, memory.state_shards(spec)) * bytes_of(spec).gradient
        reductions.append(speed.Message(mine, 1, 2, spec.world_size, passes=2))
    reducing = sum(speed.ring_time(spec, message) for message in reductions)
    sent = sum(speed.sent(message) for message in (gather, *reductions, *_inside(spec, shapes[0], how)))
    waited = number * slowest.waited + passing + reducing
    return speed.finish(
        spec,
        len(stages) * spec.world_size,
        compute=number * slowest.compute,
        communication=waited + stages[0].gathering,
        exposed=waited + late,
        volume=sent + number * pipeline.passed,
        bubble=sum(stage.seconds for stage in stages) - slowest.seconds,
    )
