"""How long a training step takes: computing, communicating, moving offloaded state (lesson 15).

An estimate from a few numbers of the machines, to compare strategies before renting anything: the assumptions are the
spec's ``mfu``, the constants below, and that communication hides behind the computing that runs at the same time
(``windows``). What hides nowhere, the first gathering and the last bucket, is taken to be short.
"""

from __future__ import annotations

from typing import NamedTuple

from course_utils.gpus import GPUS
from course_utils.launch.planner import activations, memory
from course_utils.launch.planner.reduction import Reduction, asked
from course_utils.launch.spec import Spec
from course_utils.models.shapes import ModelShape, adapter_parameters, matrix_parameters

LATENCY, NETWORK_LATENCY = 5e-6, 20e-6  # seconds per message between two GPUs of a machine, of two machines
DDP_BUCKET = 25 * 2**20  # bytes of a message of torch's reducer (bucket_cap_mb)
PCIE = 25e9  # bytes/s between host and GPU
HOST_BANDWIDTH = 100e9  # bytes/s of a machine's memory, which bounds AdamW on the CPU
WINDOWS = ("forward", "backward", "last backward", "update")  # what a step computes, one after the other


class Speed(NamedTuple):
    """Seconds of one optimizer step, and what follows; ``volume`` is the bytes a GPU sends in it."""

    compute: float
    communication: float
    exposed: float
    offload: float
    volume: int
    step: float
    tokens_per_second: float
    hours: float
    cost: float | None
    bubble: float = 0.0  # seconds in which a pipeline's stages wait for each other


class Message(NamedTuple):
    """One kind of collective of a step: how much data in all, in how many calls, over which ranks.

    ``passes`` is 1 for all-gather and reduce-scatter, 2 for all-reduce. ``gap`` is the distance between the ranks that
    are neighbours in the group; ``window``: one of ``WINDOWS``, what is computed meanwhile, or "" where nothing is.
    """

    data: int
    calls: int
    ranks: int
    gap: int
    passes: int = 1
    window: str = ""


class Window(NamedTuple):
    """A part of the step: seconds of its computing, and of the communication that may hide behind it."""

    name: str
    compute: float
    communication: float

    @property
    def exposed(self) -> float:
        """Seconds in which the GPU waits."""
        return max(0.0, self.communication - self.compute)


def flops_per_token(spec: Spec, shape: ModelShape) -> float:
    """Floating-point operations that training on one token takes, without recomputation: what MFU counts.

    ``6 N + 12 L H Q T`` (Chowdhery et al. 2022, "PaLM", appendix B), N being the weights of matrix multiplications,
    with half the attention term where it is causal. Frozen weights need no gradient of their own: 4 N.
    """
    dense, adapters, scores = _matrices(spec, shape)
    return (4 * dense + 6 * adapters if spec.lora_rank else 6 * dense) + 12 * scores


def recompute_factor(spec: Spec, shape: ModelShape) -> float:
    """How many times the model's FLOPs a step computes: 1, or about 4/3 where checkpointing repeats the forward pass.

    A run that recomputes shows an MFU of ``spec.mfu`` over this factor: PaLM's MFU does not count repeated work.
    """
    if not spec.checkpointing:
        return 1.0
    dense, adapters, scores = _matrices(spec, shape)
    return 1 + (2 * (dense + adapters) + 4 * scores) / flops_per_token(spec, shape)


def forward_share(spec: Spec, shape: ModelShape) -> float:
    """The forward pass's share of a step's computing: a third, a quarter with checkpointing, half with LoRA."""
    dense, adapters, scores = _matrices(spec, shape)
    forward = 2 * (dense + adapters) + 4 * scores
    return forward / (flops_per_token(spec, shape) * recompute_factor(spec, shape))


def _matrices(spec: Spec, shape: ModelShape) -> tuple[int, int, float]:
    """Weights of the model's matrix multiplications, those of adapters, and L H Q T (half of it where causal)."""
    scores = shape.num_hidden_layers * shape.query_size * spec.sequence_length / (2 if shape.lm_head else 1)
    return matrix_parameters(shape), adapter_parameters(shape, spec.lora_rank), scores


def compute_time(spec: Spec, shape: ModelShape) -> float:
    """Seconds: FLOPs of this GPU's tokens over its peak times ``mfu`` (PaLM, appendix B), and what is recomputed.

    ``mfu`` is that of the run without recomputation, so that it holds with and without checkpointing.
    """
    gpu = GPUS[spec.gpu]
    peak = (gpu.peak_fp32 if spec.precision == "fp32" else gpu.peak) * 1e12
    flops = flops_per_token(spec, shape) * recompute_factor(spec, shape)
    work = activations.tokens(spec) * spec.accumulation_steps * flops / spec.tensor_parallel
    return work / (peak * spec.mfu)


def link(spec: Spec, ranks: int, gap: int) -> tuple[float, float]:
    """Latency (s) and bandwidth (bytes/s) between neighbours of a ring over ``ranks`` GPUs, ``gap`` apart.

    A ring that leaves the machine shares its network with the rings that start at the machine's other GPUs.
    """
    inside = GPUS[spec.gpu].link * 1e9
    if ranks * gap <= spec.gpus_per_node:
        return LATENCY, inside
    network = (spec.network or GPUS[spec.gpu].network) * 1e9
    return NETWORK_LATENCY, min(inside, network / min(gap, spec.gpus_per_node))


def ring_time(spec: Spec, message: Message) -> float:
    """Seconds of a ring: ``passes x ((n-1) alpha calls + (n-1)/n S/B)``.

    The alpha-beta model (Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective Communication Operations in
    MPICH", section 4); an all-reduce is a reduce-scatter and an all-gather.
    """
    if message.ranks == 1:
        return 0.0
    latency, bandwidth = link(spec, message.ranks, message.gap)
    steps = message.ranks - 1
    return message.passes * (steps * latency * message.calls + steps / message.ranks * message.data / bandwidth)


def messages(
    spec: Spec, shape: ModelShape, count: memory.Parameters, reduction: Reduction | None = None
) -> list[Message]:
    """All collectives of one optimizer step."""
    how = asked(spec) if reduction is None else reduction
    state = _of_fsdp if spec.is_fsdp else _of_zero if spec.is_deepspeed else _of_ddp
    found = [message for message in state(spec, shape, count, how) if message.data]
    return [*found, *_tensor_parallel(spec, shape), *_context(spec, shape)]


def _in_backward(message: Message, each_batch: bool, g: int) -> list[Message]:
    """One reduction per step hides behind the last backward pass; one per micro-batch behind each of them."""
    last = message._replace(window="last backward")
    if not each_batch:
        return [last]
    before = message._replace(data=message.data * (g - 1), calls=message.calls * (g - 1), window="backward")
    return [before, last]


def _of_ddp(spec: Spec, shape: ModelShape, count: memory.Parameters, how: Reduction) -> list[Message]:
    """One all-reduce of the gradients, in their own type: 4 bytes under autocast, so 8 a parameter sent."""
    data = count.trained * memory.bytes_of(spec).gradient
    message = Message(data, data // DDP_BUCKET + 1, spec.world_size, 1, passes=2)
    return _in_backward(message, how.each_batch, spec.accumulation_steps)


def _of_fsdp(spec: Spec, shape: ModelShape, count: memory.Parameters, how: Reduction) -> list[Message]:
    """Weights are gathered for every forward pass, with resharding for every backward pass too; gradients are reduced
    once (``no_sync``), or in every micro-batch. HSDP then adds up the shards of its replicas.

    FSDP1 without resharding keeps the weights of a whole step gathered under ``no_sync``
    (``ShardingStrategy.SHARD_GRAD_OP``).
    """
    gather, reduce, replicas = fsdp_units(spec, shape, count, how)
    g = spec.accumulation_steps
    kept = spec.strategy == "fsdp1" and not spec.reshard_after_forward and not how.each_batch
    forwards = 1 if kept else g
    found = [gather._replace(data=gather.data * forwards, calls=gather.calls * forwards, window="forward")]
    if spec.reshard_after_forward:
        found += _in_backward(gather, True, g)
    return found + _in_backward(reduce, how.each_batch, g) + _in_backward(replicas, how.each_batch, g)


def fsdp_units(
    spec: Spec, shape: ModelShape, count: memory.Parameters, how: Reduction
) -> tuple[Message, Message, Message]:
    """All units once: gather their weights, reduce their gradients to shards, add up the shards of the replicas."""
    parts, gap, units = memory.state_shards(spec), spec.tensor_parallel, shape.num_hidden_layers + 1
    whole = (count.trained + count.frozen) * memory.bytes_of(spec).gathered
    reduced = count.trained * memory.reduced_bytes(spec, how)
    replicas = Message(reduced // parts, units, spec.replicas, parts * gap, passes=2)
    return Message(whole, units, parts, gap), Message(reduced, units, parts, gap), replicas


def _of_zero(spec: Spec, shape: ModelShape, count: memory.Parameters, how: Reduction) -> list[Message]:
    """As in section 7 of the ZeRO paper, except that DeepSpeed all-reduces in stages 1 and 2.

    With Psi parameters and g micro-batches: 3 Psi for ZeRO-1, (2 g + 1) Psi for ZeRO-2, 3 g Psi for ZeRO-3. The paper's
    reduce-scatter would be 2 Psi and (g + 1) Psi, but DeepSpeed's default is one all-reduce per bucket
    (``use_multi_rank_bucket_allreduce``, deepspeed/runtime/zero/config.py). Stage 1 reduces at the accumulation's
    boundary, from hooks of the last backward pass (``overlap_comm``). ``how`` is not asked: DeepSpeed decides.
    """
    parts, gap, g = memory.state_shards(spec), spec.tensor_parallel, spec.accumulation_steps
    each, buckets = memory.bytes_of(spec), count.trained // memory.BUCKET + 1
    passes = 1 if spec.strategy == "zero3" else 2
    reduce = Message(count.trained * each.gradient, buckets, parts, gap, passes=passes)
    found = _in_backward(reduce, spec.strategy != "zero1", g)
    if spec.strategy != "zero3":  # the updated weights: nothing is computed meanwhile
        return [*found, Message(count.trained * each.weight, buckets, parts, gap, window="update")]
    whole, units = (count.trained + count.frozen) * each.gathered, shape.num_hidden_layers + 1
    gather = Message(whole, units, parts, gap)
    forward = gather._replace(data=whole * g, calls=units * g, window="forward")
    return [forward, *_in_backward(gather, True, g), *found]


def _tensor_parallel(spec: Spec, shape: ModelShape) -> list[Message]:
    """All-reduces of a layer's output: two forward, two backward (Shoeybi et al. 2019, "Megatron-LM", section 3)."""
    calls = (6 if spec.checkpointing else 4) * shape.num_hidden_layers * spec.accumulation_steps
    data = activations.tokens(spec) * shape.hidden_size * activations.kept(spec).compute
    return [Message(calls * data, calls, spec.tensor_parallel, 1, passes=2)]


def _context(spec: Spec, shape: ModelShape) -> list[Message]:
    """Keys and values of the whole sequence, gathered forward and backward, and their gradients reduced."""
    calls = (4 if spec.checkpointing else 3) * shape.num_hidden_layers * spec.accumulation_steps
    data = spec.micro_batch * spec.sequence_length * 2 * shape.key_value_size * activations.kept(spec).compute
    sent = calls * data // spec.tensor_parallel
    return [Message(sent, calls, spec.context_parallel, spec.tensor_parallel)]


def windows(
    spec: Spec, shape: ModelShape, count: memory.Parameters, reduction: Reduction | None = None
) -> dict[str, Window]:
    """The step's parts, and behind which of them the communication of the training state can hide.

    With g micro-batches: ``forward`` are all forward passes, ``backward`` the first g - 1 backward passes, ``last
    backward`` the last one, in which gradients become final, ``update`` the optimizer's, taken to be instant. What is
    reduced once per step can only hide behind the last backward pass, however long the step is.
    """
    compute, g = compute_time(spec, shape), spec.accumulation_steps
    forward = compute * forward_share(spec, shape)
    backward = (compute - forward) / g
    computing = dict(zip(WINDOWS, (forward, backward * (g - 1), backward, 0.0), strict=True))
    times = dict.fromkeys(WINDOWS, 0.0)
    for message in messages(spec, shape, count, reduction):
        if message.window:
            times[message.window] += ring_time(spec, message)
    return {name: Window(name, computing[name], times[name]) for name in WINDOWS}


def offload_time(spec: Spec, count: memory.Parameters) -> float:
    """Seconds for what waits in host memory: gradients down and weights up over PCIe, AdamW on the CPU.

    The update reads weight, gradient and two moments and writes three of them: 28 bytes a parameter (Ren et al. 2021,
    "ZeRO-Offload", section 5.1). With everything offloaded, weights travel up again for each forward and backward pass.
    """
    if spec.offload == "none":
        return 0.0
    each = memory.bytes_of(spec)
    mine = memory.share(count.trained, memory.state_shards(spec))
    moved = mine * (each.gradient + each.weight)
    if spec.offload == "all":
        whole = memory.share(count.trained + count.frozen, memory.state_shards(spec))
        moved += whole * each.weight * 2 * spec.accumulation_steps
    return moved / PCIE + mine * spec.gpus_per_node * 28 / HOST_BANDWIDTH


def speed(spec: Spec, shape: ModelShape, count: memory.Parameters, reduction: Reduction | None = None) -> Speed:
    """Seconds of a step and its parts, tokens a second over all GPUs, hours and cost of ``max_steps``."""
    compute, messages_of_step = compute_time(spec, shape), messages(spec, shape, count, reduction)
    waited = sum(ring_time(spec, message) for message in messages_of_step if not message.window)
    parts = windows(spec, shape, count, reduction).values()
    exposed = waited + sum(part.exposed for part in parts)
    offload = offload_time(spec, count)
    communication = waited + sum(part.communication for part in parts)
    volume = sum(sent(message) for message in messages_of_step)
    return finish(spec, spec.world_size, compute, communication, exposed, volume, offload)


def sent(message: Message) -> int:
    """Bytes that one GPU sends."""
    return message.passes * message.data * (message.ranks - 1) // message.ranks


def finish(spec: Spec, gpus: int, compute: float, communication: float, exposed: float, volume: int,
           offload: float = 0.0, bubble: float = 0.0) -> Speed:  # fmt: skip
    """The step's seconds added up, and what follows for ``max_steps`` of them."""
    step = compute + exposed + offload + bubble
    tokens_per_second, hours = spec.effective_batch * spec.sequence_length / step, spec.max_steps * step / 3600
    cost = None if spec.price is None else hours * gpus * spec.price
    return Speed(compute, communication, exposed, offload, volume, step, tokens_per_second, hours, cost, bubble)
