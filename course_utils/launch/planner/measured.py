"""The planner's truth: a training step of the real model whose allocations are counted, without the memory (lesson 15).

Under ``FakeTensorMode`` tensors have a shape and a type but no storage, so a step of a 7B model needs no 100 GB.
torch's ``MemTracker`` and ``FSDPMemTracker`` (``torch.distributed._tools``) follow each storage and know what it is.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from course_utils.launch.planner.activations import is_padded
from course_utils.launch.spec import Spec
from course_utils.models.shapes import ModelShape

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


class Measured(NamedTuple):
    """Bytes on one rank: states, what a step holds besides them at its peak, and that peak's total."""

    shape: ModelShape
    weights: int
    gradients: int
    optimizer: int
    working: int  # activations, logits, gathered units and temporary tensors, all that is no state
    peak: int


def build(spec: Spec, config: PreTrainedConfig) -> tuple[nn.Module, ModelShape]:
    """The model of a config as a program would build it for the spec, and its shape; call it under a FakeTensorMode."""
    import torch
    from transformers import initialization

    from course_utils.models.configs import model_class, shape_of_model

    dtype = torch.bfloat16 if spec.precision == "bf16_weights" else torch.float32
    with initialization.no_init_weights():
        model = model_class(config).from_config(config, dtype=dtype).train()
    model.tie_weights()  # which initialising would have done
    shape = shape_of_model(model, config)
    if spec.lora_rank:
        model = _with_adapters(model, spec.lora_rank)
    if spec.checkpointing:
        _checkpoint(model)
    return model, shape


def _with_adapters(model: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from torch import nn

    # A fake adapter is where it should be already, and torch cannot move it ("Cannot swap t1").
    with mock.patch.object(nn.Module, "to", lambda module, *_, **__: module):
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    model.enable_input_require_grads()  # as transformers' Trainer does where it checkpoints
    return model


def _checkpoint(model: nn.Module) -> None:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.activation_checkpointing_enable({"use_reentrant": False})


@contextlib.contextmanager
def _masks_as_with_numbers(spec: Spec) -> Iterator[None]:
    """A full sequence needs no mask. transformers sees that by looking at numbers, which fake tensors do not have."""
    from transformers import masking_utils

    looks = mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None)
    with contextlib.nullcontext() if is_padded(spec) else looks:
        yield


@contextlib.contextmanager
def _dropout_as_on_gpus() -> Iterator[None]:
    """A GPU's dropout keeps a mask, a byte a number, and its fused attention the state of the random numbers.

    The CPU's keeps a factor as wide as its input, and with dropout in attention the scores.
    """
    import torch
    from torch.nn import functional

    fused = functional.scaled_dot_product_attention

    def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return torch.native_dropout(input, p, True)[0] if training and p else input

    def attention(*tensors: Any, dropout_p: float = 0.0, **options: Any) -> Any:
        return fused(*tensors, **options)

    with (
        mock.patch.object(functional, "dropout", dropout),
        mock.patch.object(functional, "scaled_dot_product_attention", attention),
    ):
        yield


@contextlib.contextmanager
def _fake(spec: Spec) -> Iterator[None]:
    """Tensors without storage that behave as a GPU's would."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), _masks_as_with_numbers(spec), _dropout_as_on_gpus():
        yield


def measured_step(spec: Spec, config: PreTrainedConfig) -> Measured:
    """One optimizer step on one GPU (DDP's local part: no buckets), the second one, when AdamW's moments exist."""
    from torch.distributed._tools.mem_tracker import MemTracker

    def tracker(model: nn.Module, optimizer: Any) -> MemTracker:
        found = MemTracker()
        found.track_external(model, optimizer)
        return found

    with _fake(spec):
        model, shape = build(spec, config)
        return _second_step(spec, shape, model, tracker, ("Parameter", "Gradient", "Optstate"))


def measured_shard(spec: Spec, config: PreTrainedConfig) -> Measured:
    """The same on rank 0 of ``spec.world_size`` FSDP2 ranks: one process, collectives that only allocate.

    The model is wrapped as ``accelerate.utils.fsdp_utils.fsdp2_prepare_model`` does.
    """
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    with _fake_ranks(spec) as mesh, _fake(spec):
        model, shape = build(spec, config)
        shard(spec, model, mesh)
        return _second_step(spec, shape, model, FSDPMemTracker, ("Sharded Param", "Sharded Grad", "OptState"))


@contextlib.contextmanager
def _fake_ranks(spec: Spec) -> Iterator[Any]:
    """A device mesh over ranks that do not exist, replicas first."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=spec.world_size, store=FakeStore())
    try:
        if spec.replicas > 1:
            sizes = (spec.replicas, spec.world_size // spec.replicas)
            yield init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "shard"))
        else:
            yield init_device_mesh("cpu", (spec.world_size,))
    finally:
        dist.destroy_process_group()


def shard(spec: Spec, model: nn.Module, mesh: Any) -> None:
    """``fully_shard`` each layer, then norm and vocabulary matrices as the last unit, then the rest."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(spec.precision)
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low, output_dtype=low)
    options = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": spec.reshard_after_forward}
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in inner.model.layers:
        fully_shard(layer, **options)
    embedding, output = inner.get_input_embeddings(), inner.get_output_embeddings()
    tied = embedding.weight is output.weight
    if not tied:
        fully_shard(embedding, **options)
    tail = [inner.model.norm, embedding, output] if tied else [inner.model.norm, output]
    fully_shard(tail, **options | {"reshard_after_forward": False})
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _second_step(
    spec: Spec, shape: ModelShape, model: nn.Module, make_tracker: Callable, states: tuple[str, str, str]
) -> Measured:
    """Allocations at the peak of the second forward and backward pass, and after it.

    ``states`` are the tracker's names of weights, gradients and AdamW's moments.
    """
    from torch.optim import AdamW

    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    _forward_backward(spec, shape, model)
    optimizer.step()
    optimizer.zero_grad()
    tracker = make_tracker(model, optimizer)
    _pass_over_frozen(tracker, model)
    with tracker:
        for left in reversed(range(spec.accumulation_steps)):
            if spec.is_fsdp and spec.accumulation_steps > 1:
                model.set_requires_gradient_sync(left == 0)  # what no_sync does
            _forward_backward(spec, shape, model)
        peak, end = (_by_name(tracker.get_tracker_snapshot(kind)) for kind in ("peak", "current"))
    working = peak["Total"] - peak["Buffer"] - sum(peak[name] for name in states)
    return Measured(shape, *(end[name] for name in states), working=working, peak=peak["Total"])


def _forward_backward(spec: Spec, shape: ModelShape, model: nn.Module) -> None:
    import torch

    ids = torch.zeros(spec.micro_batch, spec.sequence_length, dtype=torch.long)
    labels = ids if shape.lm_head else torch.zeros(spec.micro_batch, dtype=torch.long)
    mask = {"attention_mask": torch.ones_like(ids)} if is_padded(spec) else {}
    casts = spec.precision == "bf16" and spec.strategy == "ddp"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=casts):
        loss = model(input_ids=ids, labels=labels, **mask).loss
    loss.backward()


def _pass_over_frozen(tracker: Any, model: nn.Module) -> None:
    """The tracker would wait for gradients of frozen weights too, and fail; say that it does already."""
    from torch.utils.hooks import RemovableHandle

    nothing = RemovableHandle(OrderedDict())
    for weight in model.parameters():
        if not weight.requires_grad:
            tracker._param_to_grad_hook_handles[weight] = (nothing, nothing)


def _by_name(snapshot: dict) -> dict[str, int]:
    (sizes,) = snapshot.values()  # one device
    return {str(getattr(kind, "value", kind)): size for kind, size in sizes.items()}
