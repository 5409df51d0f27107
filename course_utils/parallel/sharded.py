"""A model sharded in any way of lesson 12, with its optimizer: by hand, by torch's FSDP2 and FSDP1, by accelerate.

device = join()                                   # on every rank
model, optimizer, step, facts = set_up("fully_shard", model)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_utils.data.batches import Batch, to_device
from course_utils.parallel import reference
from course_utils.parallel.held import bytes_behind, gathered_bytes, local
from course_utils.parallel.zero import STAGES


def join() -> torch.device:
    """Join the process group that the launcher's variables describe, NCCL on GPUs, else gloo; this rank's device."""
    here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    on_gpus = gpus >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(here)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpus else "gloo")
    return torch.device("cuda", here) if on_gpus else torch.device("cpu")


@contextmanager
def rehearsal(rehearse: bool = True) -> Iterator[None]:
    """Inside the block accelerate shards on CPU ranks as it does on GPUs; where there are GPUs, nothing changes.

    accelerate 1.15 looks at FSDP when the ranks are labelled MULTI_GPU, and CPU ranks are MULTI_CPU: so the label is
    changed, the device and the backend are not. Enter it after the ranks have met (``Accelerator`` of an earlier run,
    ``TrainingArguments``, or ``PartialState(cpu=True)``, which is called here) and before the Accelerator is made.

    Args:
        rehearse: False: the label stays.
    """
    from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState

    shared = PartialState(cpu=not torch.cuda.is_available())._shared_state
    before = {name: shared[name] for name in ("distributed_type", "device")}
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    if rehearse and shared["distributed_type"] == DistributedType.MULTI_CPU:
        shared |= {"distributed_type": DistributedType.MULTI_GPU, "device": torch.device("cpu")}
    try:
        yield
    finally:
        shared |= before
        AcceleratorState._reset_state(False)


def shard(model: nn.Module, per_layer: bool = True, **options: Any) -> nn.Module:
    """``fully_shard`` on each decoder layer, then on the whole model for what is left; changed in place.

    Args:
        model: a transformers decoder.
        per_layer: False: one unit, the whole model.
        **options: for ``fully_shard``: ``reshard_after_forward``, ``mp_policy``, ``offload_policy``, ``mesh``.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers if per_layer else ():
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def my_rows(batch: Batch, device: torch.device) -> Batch:
    """This rank's rows of a global batch, on its device."""
    return to_device(reference.share(batch, dist.get_rank(), dist.get_world_size()), device)


def whole_weights(model: nn.Module) -> Tensor:
    """All parameters in one row, float32, on every rank: DTensors are gathered (every rank must call it)."""
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        parts = (p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())
        return torch.cat([part.detach().flatten().float().cpu() for part in parts])


def shard_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Name -> shape of what this rank keeps of each parameter."""
    return {name: list(local(p).shape) for name, p in model.named_parameters()}


def set_up(kind: str, model: nn.Module, **options: Any) -> tuple[nn.Module, Any, Callable, dict[str, Any]]:
    """A sharded model, its optimizer, a function for one step, and facts: type, wrapper, shards, how to gather.

    ``facts["gathered"]()`` are the bytes of whole parameters that lie beside the shards at that moment.

    Args:
        kind: any of ``KINDS`` but "fsdp2_trainer".
    """
    if kind in STAGES:
        zero = STAGES[kind](model, list(model.model.layers), reference.adamw, **options)
        shards = {f"unit {number}": list(unit.own.shape) for number, unit in enumerate(zero.units)}
        facts = {"distributed_type": None, "wrapper": type(zero).__name__, "shards": shards}
        facts["gathered"] = zero.gathered_bytes if kind == "zero3" else lambda: 0  # else they are the parameters
        return model, zero.optimizer, zero.step, facts | {"gather": zero.whole_weights}
    accelerate_type = None
    if kind == "fsdp2":
        model, optimizer, accelerate_type = _prepare(model, **options)
    elif kind == "fsdp1":
        model = _fsdp1(model, **options)
        optimizer = reference.new_optimizer(model)
    elif kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = reference.new_optimizer(model)
    else:
        model = shard(model, **options)
        optimizer = reference.new_optimizer(model)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    gather = functools.partial(_fsdp1_weights if kind == "fsdp1" else whole_weights, model)
    gathered = functools.partial(_fsdp1_gathered if kind == "fsdp1" else gathered_bytes, model)
    facts = {"distributed_type": accelerate_type, "wrapper": type(model).__name__, "shards": shard_shapes(model)}
    return model, optimizer, step, facts | {"gather": gather, "gathered": gathered}


def _prepare(model: nn.Module, environment: dict[str, str] | None = None, **options: Any) -> tuple[nn.Module, Any, str]:
    """FSDP2 through ``Accelerator``, from a plugin or from a YAML file's variables; inside ``rehearsal``."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    settings = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_cls_names_to_wrap": ["Qwen3DecoderLayer"]}
    with variables(environment or {}):
        plugin = None if environment else FullyShardedDataParallelPlugin(fsdp_version=2, **(settings | options))
        accelerator = Accelerator(fsdp_plugin=plugin)
    model, optimizer = accelerator.prepare(model, reference.new_optimizer(model))
    return model, optimizer, accelerator.distributed_type.name


@contextmanager
def variables(environment: dict[str, str]) -> Iterator[None]:
    """The environment variables are set inside the block."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _fsdp1(model: nn.Module, **options: Any) -> nn.Module:
    """torch's first FSDP: a wrapper around each layer and around the model."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    policy = ModuleWrapPolicy({type(model.model.layers[0])})
    device = next(model.parameters()).device
    where = device.index if device.type == "cuda" else device
    settings = {"auto_wrap_policy": policy, "use_orig_params": True, "device_id": where}
    return FullyShardedDataParallel(model, **(settings | options))


def _fsdp1_gathered(model: nn.Module) -> int:
    from torch.distributed.fsdp import FullyShardedDataParallel

    units = FullyShardedDataParallel.fsdp_modules(model)
    return bytes_behind(unit._handle.flat_param._full_param_padded for unit in units)


def _fsdp1_weights(model: nn.Module) -> Tensor:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return reference.flat_weights(model)
