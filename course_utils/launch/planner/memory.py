"""What lies on each GPU, in bytes, at the moments of a training step when memory is tightest (lesson 15).

Memory is not one sum: activations shrink while gradients grow. So four moments are computed and the largest counts:

- ``loss``: all activations are there, the loss is being differentiated, no gradients yet;
- ``last layer``: the backward pass enters the last layer (with checkpointing: recomputes it);
- ``first layer``: the backward pass leaves through the first layer, almost all gradients are there;
- ``step``: the optimizer updates the weights.

The model states follow Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
section 3 and figure 1, with the byte sizes of the pinned torch, accelerate and DeepSpeed.
"""

from __future__ import annotations

from typing import NamedTuple

from course_utils.launch.planner import activations
from course_utils.launch.planner.reduction import Reduction, asked
from course_utils.launch.spec import Spec
from course_utils.launch.spec.settings import BUCKET
from course_utils.launch.spec.state import bytes_of
from course_utils.models.shapes import (
    ModelShape,
    adapter_parameters,
    linears,
    parameter_count,
    vocabulary_parameters,
)

GIB = 2**30
CONTEXT = 0.8 * GIB  # CUDA context, cuBLAS workspaces and NCCL's channels: an assumption, 0.5-1 GiB is usual
FRAGMENTATION = 0.05  # of what is allocated: an assumption about torch's caching allocator
ZERO3_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters: gathered weights kept for reuse
MOMENTS = ("loss", "last layer", "first layer", "step")
COMPONENTS = (
    "weights",
    "gradients",
    "optimizer",
    "master copies",
    "buckets",
    "whole gradients",
    "gathered units",
    "autocast copies",
    "activations",
    "logits",
    "margin",
)


def frozen_bytes(spec: Spec) -> int:
    """Bytes of a weight that LoRA leaves alone: the model's own type."""
    return 2 if spec.precision == "bf16_weights" or spec.is_deepspeed and spec.precision != "fp32" else 4


class Parameters(NamedTuple):
    """How many parameters this GPU deals with, after tensor parallelism and before sharding."""

    trained: int
    frozen: int
    layer: int
    outside: int  # embedding, output layer, final norm: FSDP's last unit
    embedding: int  # of these, the embedding where it is a matrix of its own: its gradient comes last
    matrices: int  # what autocast copies to 16 bit: all matrix multiplications


def parameters(spec: Spec, shape: ModelShape) -> Parameters:
    """Counts per tensor-parallel rank; the embedding stays whole, as in transformers' ``base_model_tp_plan``."""
    tp = spec.tensor_parallel
    one = sum(inputs * outputs for inputs, outputs in linears(shape))
    layer = one // tp + shape.layer_other
    output = shape.vocab_size * shape.hidden_size if shape.lm_head else 0
    outside = vocabulary_parameters(shape) + shape.other
    if shape.lm_head and not shape.tie_word_embeddings:
        outside -= output - output // tp
    embedding = 0 if shape.lm_head and shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
    everything = shape.num_hidden_layers * layer + outside
    adapters = adapter_parameters(shape, spec.lora_rank) if spec.lora_rank else 0
    matrices = shape.num_hidden_layers * one // tp + output // tp
    if spec.lora_rank:
        layer += adapters // shape.num_hidden_layers
        return Parameters(adapters, everything, layer, outside, embedding, matrices + adapters)
    return Parameters(everything, 0, layer, outside, embedding, matrices)


def state_shards(spec: Spec) -> int:
    """GPUs that divide one copy of the state: context parallel ranks too, tensor parallel ranks and replicas not."""
    return 1 if spec.strategy == "ddp" else spec.world_size // (spec.tensor_parallel * spec.replicas)


def share(count: int, parts: int) -> int:
    """Elements on the rank that has most of them."""
    return -(-count // parts)


def weights(spec: Spec, count: Parameters) -> int:
    """Weights as they are stored; sharded by FSDP and ZeRO-3."""
    parts = state_shards(spec) if spec.is_fsdp or spec.strategy == "zero3" else 1
    return share(count.trained, parts) * bytes_of(spec).weight + share(count.frozen, parts) * frozen_bytes(spec)


def gradients(spec: Spec, count: Parameters) -> int:
    """Gradients after the backward pass: whole in DDP and ZeRO-1, else this rank's part (ZeRO paper, section 5.2)."""
    parts = 1 if spec.strategy in ("ddp", "zero1") else state_shards(spec)
    return share(count.trained, parts) * bytes_of(spec).gradient


def reduced_bytes(spec: Spec, reduction: Reduction) -> int:
    """Bytes per gradient that FSDP adds up and reduces: the computation's type, or fp32 where that was asked for."""
    return 4 if reduction.fp32 else bytes_of(spec).gathered


def unsharded_gradients(spec: Spec, count: Parameters, reduction: Reduction | None = None) -> int:
    """Gradients that wait for the last micro-batch: FSDP under ``no_sync``, as transformers' Trainer accumulates.

    Each rank adds up whole gradients in the type of the reduction (``to_accumulated_grad_if_needed`` in torch's
    ``_fsdp_param.py``) and reduces once. ZeRO-2 and 3 reduce every time, and so does FSDP under ``sync_each_batch``.
    """
    how = asked(spec) if reduction is None else reduction
    if not spec.is_fsdp or how.each_batch or spec.accumulation_steps == 1 or spec.data_parallel_size == 1:
        return 0
    return count.trained * reduced_bytes(spec, how)


def optimizer(spec: Spec, count: Parameters) -> int:
    """AdamW's two moments (Kingma & Ba 2015, algorithm 1); sharded by everything but DDP."""
    return share(count.trained, state_shards(spec)) * bytes_of(spec).optimizer


def master_copies(spec: Spec, count: Parameters) -> int:
    """DeepSpeed's own copy of the weights for the update, sharded from stage 1 on (ZeRO paper, section 3.1)."""
    return share(count.trained, state_shards(spec)) * bytes_of(spec).master


def step_gradients(spec: Spec, count: Parameters) -> int:
    """DeepSpeed casts this rank's gradients to the master copies' type for the update (``single_grad_partition``)."""
    if not spec.is_deepspeed or bytes_of(spec).gradient == bytes_of(spec).master:
        return 0
    return share(count.trained, state_shards(spec)) * bytes_of(spec).master


def buckets(spec: Spec, count: Parameters) -> int:
    """Flat buffers for communication.

    DDP's reducer holds a copy of all gradients (``gradient_as_bucket_view=False``, torch's default). DeepSpeed reduces
    ``reduce_bucket_size`` elements at a time, in two buffers where communication overlaps (``overlap_comm``).
    """
    if spec.world_size == 1:
        return 0
    if spec.strategy == "ddp":
        return count.trained * bytes_of(spec).gradient
    if spec.is_deepspeed:
        return 2 * min(BUCKET, count.trained) * bytes_of(spec).gradient
    return 0


def _forward_surplus(spec: Spec, shape: ModelShape, more: int) -> int:
    """What ``more`` bytes add at ``loss`` that are freed before it is differentiated, when scores take the most."""
    return max(0, more - activations.logits(spec, shape) + activations.forward_logits(spec, shape))


def gathered(spec: Spec, shape: ModelShape, count: Parameters, moment: str) -> int:
    """Weights gathered from the other ranks, and the whole gradient of the unit whose backward pass runs.

    FSDP gathers a layer at a time and, in the backward pass, the next one while one is computed: two units, and a
    whole gradient of one. The output layer stays gathered from the forward to the backward pass, and so does the
    embedding where it is the same matrix or, as in FSDP1, the same unit; the buffer of the last gathering is freed
    when the forward pass is left. Without resharding everything stays. ZeRO-3 keeps up to
    ``stage3_max_live_parameters``.
    """
    each = frozen_bytes(spec) if spec.precision == "bf16_weights" else bytes_of(spec).gathered
    if moment == "step" or not (spec.is_fsdp or spec.strategy == "zero3"):
        return 0
    everything = count.trained + count.frozen
    if spec.strategy == "zero3":
        return min(everything, ZERO3_LIVE) * each
    gradient = 0 if moment == "loss" or spec.lora_rank else count.layer * each
    if not spec.reshard_after_forward and moment != "first layer":
        return everything * each + gradient
    last = count.outside - (count.embedding if spec.strategy == "fsdp2" else 0)
    if moment == "loss":
        buffer = count.layer if shape.tie_word_embeddings else last
        return last * each + _forward_surplus(spec, shape, buffer * each)
    return (2 * count.layer + (last if moment == "last layer" else 0)) * each + gradient


def autocast_copies(spec: Spec, shape: ModelShape, count: Parameters, moment: str) -> int:
    """16-bit copies of fp32 weights that autograd keeps from the forward to the backward pass under plain DDP.

    With checkpointing autograd keeps only those of the output layer and of the layer in work, but autocast's own cache
    holds all copies until the forward pass is left. Frozen weights are not cached.
    https://docs.pytorch.org/docs/stable/amp.html
    """
    if spec.strategy != "ddp" or spec.precision not in ("bf16", "fp16"):
        return 0
    output = 2 * (count.outside - count.embedding)
    if moment == "loss" and spec.checkpointing:
        cached = 0 if spec.lora_rank else 2 * count.matrices - output
        return output + _forward_surplus(spec, shape, cached)
    return {"loss": 2 * count.matrices, "step": 0}.get(moment, 2 * count.layer)


def on_gpu(
    spec: Spec, shape: ModelShape, count: Parameters, reduction: Reduction | None = None
) -> dict[str, dict[str, int]]:
    """Bytes on each GPU: ``{moment: {component: bytes}}``, for the moments and components of this module."""
    how = asked(spec) if reduction is None else reduction
    held = _activations(spec, shape)
    return {moment: _at(moment, spec, shape, count, how, held[moment]) for moment in MOMENTS}


def _at(moment: str, spec: Spec, shape: ModelShape, count: Parameters, how: Reduction, held: int) -> dict[str, int]:
    offloads = spec.offload != "none"
    found = {
        "weights": 0 if spec.offload == "all" else weights(spec, count),
        "gradients": _gradients_at(moment, spec, count, how),
        "optimizer": 0 if offloads else optimizer(spec, count),
        "master copies": 0 if offloads else master_copies(spec, count),
        "buckets": buckets(spec, count),
        "whole gradients": unsharded_gradients(spec, count, how) if moment != "step" else 0,
        "gathered units": gathered(spec, shape, count, moment),
        "autocast copies": autocast_copies(spec, shape, count, moment),
        "activations": held,
        "logits": activations.logits(spec, shape) if moment == "loss" else 0,
    }
    return with_margin(found)


def with_margin(parts: dict[str, int]) -> dict[str, int]:
    """The components and what is added for certainty; an earlier margin is replaced."""
    found = {name: size for name, size in parts.items() if name != "margin"}
    return found | {"margin": int(CONTEXT + FRAGMENTATION * sum(found.values()))}


def _activations(spec: Spec, shape: ModelShape) -> dict[str, int]:
    """Activations at each moment; the layer in work is complete, also where the others are recomputed."""
    forward, live = activations.stored(spec, shape), activations.live_layer(spec, shape)
    one = activations.tokens(spec) * activations.layer(spec, shape, activations.masked_layers(spec, shape) > 0)
    others = forward if spec.checkpointing else forward - one
    return {"loss": forward, "last layer": others + live, "first layer": live, "step": 0}


def _gradients_at(moment: str, spec: Spec, count: Parameters, how: Reduction) -> int:
    """``zero_grad`` frees gradients (set_to_none), so that the first forward pass has none; ZeRO-3's buffer stays."""
    if spec.offload != "none":
        return 0  # moved to host memory as they are reduced
    full = gradients(spec, count)
    if moment == "step":
        return full + step_gradients(spec, count)
    if spec.strategy == "zero3" or (spec.accumulation_steps > 1 and (how.each_batch or not spec.is_fsdp)):
        return full
    everything = count.trained + count.frozen
    output = count.outside - count.embedding
    reduced = {"loss": 0, "last layer": output, "first layer": everything - count.layer - count.embedding}
    return full * reduced[moment] // everything


def on_host(spec: Spec, count: Parameters) -> dict[str, int]:
    """Bytes in the memory of one machine, by component, for what is offloaded.

    ZeRO-Offload (Ren et al. 2021, section 4) keeps master copies, moments and fp32 gradients there; FSDP's
    ``CPUOffloadPolicy`` the sharded weights, gradients and moments.
    """
    if spec.offload == "none":
        return {}
    found = {
        "optimizer": optimizer(spec, count),
        "master copies": master_copies(spec, count),
        "gradients": share(count.trained, state_shards(spec)) * max(bytes_of(spec).master, bytes_of(spec).gradient),
        "weights": weights(spec, count) if spec.offload == "all" else 0,
    }
    return {name: size * spec.gpus_per_node for name, size in found.items() if size}


def total_parameters(spec: Spec, shape: ModelShape) -> tuple[int, int]:
    """All parameters of the model with its adapters, and how many of them are trained."""
    adapters = adapter_parameters(shape, spec.lora_rank) if spec.lora_rank else 0
    whole = parameter_count(shape) + adapters
    return whole, adapters or whole
