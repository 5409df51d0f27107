"""Bytes of the training state per parameter, and of the checkpoint that holds it."""

from __future__ import annotations

from typing import NamedTuple

from course_utils.errors import SpecError
from course_utils.launch.spec.spec import Spec
from course_utils.models.configs import shape_of
from course_utils.models.shapes import ModelShape, adapter_parameters, parameter_count


class Bytes(NamedTuple):
    """Bytes per parameter: its weight as stored and as gathered for computing, gradient, master copy, moments."""

    weight: int
    gathered: int
    gradient: int
    master: int
    optimizer: int


def bytes_of(spec: Spec) -> Bytes:
    """Bytes per trained parameter before sharding, AdamW.

    Sources: accelerate 1.15 (``fsdp2_prepare_model`` upcasts trained weights to fp32 under mixed precision; its policy
    computes and reduces in 16 bit), DeepSpeed 0.19 (``single_partition_of_fp32_groups`` is an fp32 copy even of fp32
    weights; with ``bf16_master_weights_and_grads`` and ``bf16_optimizer_states`` nothing is fp32).
    """
    if spec.is_deepspeed:
        if spec.precision == "fp32":
            return Bytes(4, 4, 4, 4, 8)
        return Bytes(2, 2, 2, 2, 4) if spec.precision == "bf16_weights" else Bytes(2, 2, 2, 4, 8)
    if spec.precision == "bf16_weights":
        # peft keeps the adapters of a 16-bit model in fp32 (autocast_adapter_dtype=True).
        return Bytes(4, 4, 4, 0, 8) if spec.lora_rank else Bytes(2, 2, 2, 0, 4)
    return Bytes(4, 4 if spec.precision == "fp32" else 2, 4, 0, 8)


class Checkpoint(NamedTuple):
    """Bytes of one checkpoint: what rank 0 writes alone, and what all ranks write together."""

    by_rank_0: int
    by_all: int

    @property
    def size(self) -> int:
        return self.by_rank_0 + self.by_all


def checkpoint(spec: Spec, shape: ModelShape) -> Checkpoint:
    """What the Trainer saves: trained weights, AdamW's two moments, and what the strategy adds; frozen weights never.

    Sources: transformers 5.23 ``Trainer._save_checkpoint``. Without sharding rank 0 writes all. FSDP writes shards of
    both (``SHARDED_STATE_DICT``), or rank 0 writes all and a loadable model beside it (``FULL_STATE_DICT``). With
    DeepSpeed rank 0 saves a loadable model, in stages 1 and 2 the engine's copy of the weights as well, and every rank
    its part of master copies and moments (``DeepSpeedEngine.save_checkpoint``).
    """
    trained = adapter_parameters(shape, spec.lora_rank) if spec.lora_rank else parameter_count(shape)
    each = bytes_of(spec)
    if spec.is_fsdp:
        whole = trained * (each.weight + each.optimizer)
        return Checkpoint(whole + trained * each.weight, 0) if spec.state_dict == "full" else Checkpoint(0, whole)
    if spec.is_deepspeed:
        copies = 1 if spec.strategy == "zero3" else 2
        return Checkpoint(trained * each.weight * copies, trained * (each.master + each.optimizer))
    return Checkpoint(trained * (each.weight + each.optimizer), 0)


def save_seconds(spec: Spec, shape: ModelShape) -> float:
    """Seconds in which a checkpoint is written at ``spec.storage``; training stands still, as the Trainer saves."""
    return checkpoint(spec, shape).size / (spec.storage * 1e9)


def check_warning(spec: Spec) -> None:
    """A warning shorter than the save is refused: the run would be killed in the middle of its last checkpoint.

    A model whose shape nobody knows without the hub is let through.

    Raises:
        SpecError: ``warning`` is shorter than ``save_seconds``.
    """
    try:
        shape = shape_of(spec.model, hub=False)
    except (SpecError, OSError):
        return
    needed = save_seconds(spec, shape)
    if spec.warning < needed:
        size = checkpoint(spec, shape).size / 1e9
        raise SpecError(
            f"warning={spec.warning} is too short to save {size:,.0f} GB at storage={spec.storage:g} GB/s; "
            f"allowed: seconds >= {int(needed) + 1}"
        )
