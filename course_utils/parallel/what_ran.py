"""What really runs: the ranks, the wrapper and the shards of a Trainer, seen from inside (lessons 11 to 13 and 15).

Exit code 0 proves nothing about a distributed run: processes that never found each other, or a sharding setting that
nobody read, end with 0 too (lesson 15 shows such settings). ``describe`` looks at the objects that train.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer

FILE = "run.json"
PREFLIGHT = "preflight.json"  # of recipes/preflight, which the launch scripts start first


class WrongRun(RuntimeError):
    """What runs is not what was asked for; the message is one sentence."""


def check_ranks(trainer: Trainer) -> None:
    """Raise ``WrongRun`` if the launcher's processes did not find each other, or a strategy asked for is not in use."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if trainer.args.world_size != started:
        raise WrongRun(
            f"the launcher started {started} processes, but each trains alone (world size {trainer.args.world_size}); "
            "without a GPU pass --use_cpu"
        )
    kind = trainer.accelerator.distributed_type.name
    asked = None
    if trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        asked = "FSDP"
    if trainer.args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        asked = "DEEPSPEED"
    if asked and kind != asked and started > 1:
        raise WrongRun(
            f"{asked} was asked for, but the run would be {kind}: accelerate shards on GPUs only; for a rehearsal on "
            "the CPU put course_utils.parallel.cpu_site_folder() on PYTHONPATH"
        )


def describe(trainer: Trainer) -> dict[str, Any]:
    """Facts about a Trainer that has begun to train, gathered from all ranks; every rank must call it.

    ``parameters_held`` and ``optimizer_held`` are numbers of elements per rank (a list, rank 0 first); before the
    first step the optimizer holds nothing.
    """
    args, accelerator = trainer.args, trainer.accelerator
    distributed = torch.distributed
    backend = distributed.get_backend() if distributed.is_initialized() else None
    wrapped = trainer.model_wrapped
    mine = {
        "pid": os.getpid(),
        "parameters_held": sum(map(local_numel, wrapped.parameters())),
        "optimizer_held": optimizer_numel(trainer.optimizer),
    }
    ranks = [mine]
    if distributed.is_initialized():
        ranks = [None] * distributed.get_world_size()
        distributed.all_gather_object(ranks, mine)
    return {
        "world_size": args.world_size,
        "backend": backend,
        "device": args.device.type,
        "distributed_type": accelerator.distributed_type.name,
        "wrapper": " ".join(type(wrapped).__name__.split()),
        "precision": accelerator.mixed_precision,
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in wrapped.parameters()}),
        **{name: [rank[name] for rank in ranks] for name in mine},
        "effective_batch": effective_batch(trainer),
        **_sharding(trainer),
    }


def preflight(folder: str | Path) -> dict[str, Any]:
    """What the preflight found before this run: ``{"preflight": {...}}``, and ``{}`` where it wrote nothing readable.

    ``at`` is its time; ``bandwidth`` (bytes: GB/s) and ``network`` are rank 0's, ``links`` the slowest and the fastest
    between machines (GB/s, empty on one machine).
    """
    try:
        found = json.loads((Path(folder) / PREFLIGHT).read_text(encoding="utf-8"))
        first, speeds = found["ranks"][0], [speed for rank in found["ranks"] for speed in rank["links"].values()]
        return {
            "preflight": {
                "at": found["at"],
                "problems": found["problems"],
                "bandwidth": first["bandwidth"],
                "links": [min(speeds), max(speeds)] if speeds else [],
                "network": first["transport"]["network"],
            }
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def local_numel(parameter: torch.Tensor) -> int:
    """Elements of ``parameter`` this rank keeps: of its FSDP or ZeRO-3 shard, or all."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3; padded to a multiple of the ranks
        return parameter.ds_tensor.numel()
    if hasattr(parameter, "to_local"):  # FSDP2's DTensor
        return parameter.to_local().numel()
    return parameter.numel()  # FSDP1 has put views of its shard in place


def whole_numel(parameter: torch.Tensor) -> int:
    """Elements of the whole ``parameter``, which ZeRO-3 may have taken apart already."""
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()


def optimizer_numel(optimizer: Any) -> int:
    """Elements of Adam's first moments that this rank keeps (0 before the first step)."""
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        optimizer = optimizer.optimizer
    moments = (state["exp_avg"] for state in optimizer.state.values() if "exp_avg" in state)
    return sum(map(local_numel, moments))


def effective_batch(trainer: Trainer) -> int:
    """Rows per optimizer step over all ranks, in the engine's own words under DeepSpeed.

    ``rows_seen`` of ``run.json`` is counted from the loader's batches instead: both must agree.
    """
    if trainer.is_deepspeed_enabled:
        return trainer.model_wrapped.train_batch_size()
    args = trainer.args
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * data_ranks(trainer)


def data_ranks(trainer: Trainer) -> int:
    """Ranks with rows of their own: those of tensor, context and sequence parallelism share theirs."""
    return trainer.args.world_size // ranks_a_row(trainer)


def ranks_a_row(trainer: Trainer) -> int:
    return trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size()


def _sharding(trainer: Trainer) -> dict[str, Any]:
    """The strategy's settings as the wrapper holds them, not as they were written."""
    wrapped, kind = trainer.model_wrapped, trainer.accelerator.distributed_type.name
    if kind == "DEEPSPEED":
        offload = {"optimizer": wrapped.zero_offload_optimizer(), "parameters": wrapped.zero_offload_param()}
        return {
            "strategy": f"zero{wrapped.zero_optimization_stage()}",
            "offload": [name for name, value in offload.items() if value is not None and value.device != "none"],
        }
    if kind != "FSDP":
        return {"strategy": "ddp" if trainer.args.world_size > 1 else "single", "offload": []}
    plugin = trainer.accelerator.state.fsdp_plugin
    facts = {"strategy": f"fsdp{plugin.fsdp_version}"}
    return facts | (_fsdp2(wrapped) if plugin.fsdp_version == 2 else _fsdp1(wrapped))


def _fsdp1(wrapped: nn.Module) -> dict[str, Any]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    units = FullyShardedDataParallel.fsdp_modules(wrapped)
    strategies = {unit.sharding_strategy.name for unit in units}
    return {
        "sharding": sorted(strategies),
        "reshard_after_forward": strategies <= {"FULL_SHARD", "HYBRID_SHARD"},
        "units": len(units),
        "offload": ["all"] if any(unit.cpu_offload.offload_params for unit in units) else [],
    }


def _fsdp2(wrapped: nn.Module) -> dict[str, Any]:
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule

    groups = [unit._get_fsdp_state()._fsdp_param_group for unit in wrapped.modules() if isinstance(unit, FSDPModule)]
    groups = [group for group in groups if group is not None]
    mesh = groups[0].mesh_info.mesh
    # What is needed at the end of the forward pass (head, outermost unit) stays gathered in any case.
    resharded = [group for group in groups if group.post_forward_mesh_info is not None]
    return {
        "mesh": list(mesh.shape),
        "reshard_after_forward": bool(resharded),
        "units": len(groups),
        "offload": ["all"] if all(isinstance(group.offload_policy, CPUOffloadPolicy) for group in groups) else [],
    }


class WriteRun(TrainerCallback):
    """Write ``run.json`` into the output folder: what runs, when training begins; steps and losses when it ends.

    Its ``state`` is "running", then "trained", or "stopped" before the last step; the program says "finished" when its
    result is saved. ``trainer.add_callback(WriteRun(trainer))`` is all that another program needs.
    """

    def __init__(self, trainer: Trainer) -> None:
        # Counted now: once FSDP1 has wrapped the model, a rank knows its own part only.
        self.trainer, self.facts = trainer, {"parameters": sum(map(whole_numel, trainer.model.parameters()))}
        self.rows_before = 0  # seen by the runs that this one goes on from; whoever resumes says it
        self._rows = 0  # this rank's, in this process
        take_step = trainer.training_step

        def count_and_step(model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> torch.Tensor:
            self._rows += rows_of(inputs)
            return take_step(model, inputs, *arguments, **options)

        trainer.training_step = count_and_step  # callbacks never see a batch

    def rows_seen(self) -> int:
        """Rows in all batches of all ranks so far, as the model got them; every rank must call it."""
        rows = torch.tensor(self._rows, device=self.trainer.args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(rows)
        return self.rows_before + int(rows) // ranks_a_row(self.trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.facts |= describe(self.trainer) | {"resumed_from": state.global_step, "state": "running"}
        self.facts |= preflight(args.output_dir)
        self._write(args)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.facts |= describe(self.trainer) | {
            "state": "trained" if state.global_step >= state.max_steps else "stopped",
            "steps": state.global_step,
            "rows_seen": self.rows_seen(),
            "losses": [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry],
        }
        self._write(args)

    def finish(self) -> None:
        """Say that the result is saved; called on every rank."""
        self.facts["state"] = "finished"
        self._write(self.trainer.args)

    def _write(self, args: Any) -> None:
        if not self.trainer.is_world_process_zero():
            return
        path = Path(args.output_dir) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.facts, indent=1))
        temporary.replace(path)  # whoever reads it meanwhile sees the old file or the new one


def rows_of(batch: Mapping[str, Any]) -> int:
    """Rows of a batch: the length of its first tensor."""
    return next((len(value) for value in batch.values() if torch.is_tensor(value) and value.ndim), 0)
