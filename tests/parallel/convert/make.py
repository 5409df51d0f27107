"""Real checkpoints of two ranks, every kind that Accelerate writes, made in one start (run by ``run_ranks``).

Beside each lies ``whole.pt``: the weights as the ranks gathered them, which a conversion must give back bit by bit.
"""

from __future__ import annotations

from pathlib import Path

FULL = ("fsdp1", "fsdp2", "zero1", "zero2", "zero3")
LORA = ("fsdp1-lora", "fsdp2-lora", "zero2-lora", "zero3-lora")  # as saved: the base beside the adapter
# FSDP1 is not among them: PEFT 0.21 looks up modules_to_save under a name that FSDP1 has changed, and fails.
ADAPTER = ("fsdp2-adapter", "zero2-adapter", "zero3-adapter")  # as Trainer saves: the adapter only
RANK, ALPHA, STEPS = 4, 8, 3


def lora_config(**changes):
    """Of all LoRA runs; every module's update differs from zero at the start."""
    from peft import LoraConfig

    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", "init_lora_weights": False}
    return LoraConfig(**(settings | {"modules_to_save": ["norm"]} | changes))


def make_checkpoints(folder, kinds, loads):
    """On each of two ranks: make the checkpoints in ``folder``; ``loads`` is a DCP folder to go on from."""
    from accelerate.state import AcceleratorState

    seen = {}
    for kind in kinds:
        AcceleratorState._reset_state(reset_partial_state=True)
        seen[kind] = _make(Path(folder) / kind, *kind.split("-"))
    return seen | {"resumed": _go_on(Path(loads))}


def _make(folder, strategy, peft=None):
    import os

    import torch

    from course_utils.parallel import reference

    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_USE_"))]:
        del os.environ[name]  # of the kind before
    model = reference.new_model()
    if peft:
        from peft import get_peft_model

        torch.manual_seed(1)
        model = get_peft_model(model, lora_config())
    accelerator = _accelerator(strategy)
    model, optimizer = accelerator.prepare(model, two_groups(model))
    for batch in reference.global_batches(STEPS):
        mine = reference.share(batch, accelerator.process_index, accelerator.num_processes)
        loss = reference.summed_loss(model, mine) / reference.count_targets(batch)
        accelerator.backward(loss * accelerator.num_processes)
        optimizer.step()
        optimizer.zero_grad()
    if peft == "adapter" and strategy.startswith("fsdp"):
        from accelerate.utils import save_fsdp_model

        save_fsdp_model(accelerator.state.fsdp_plugin, accelerator, model, str(folder), adapter_only=True)
    elif peft == "adapter":
        model.save_checkpoint(str(folder), exclude_frozen_parameters=True)
    else:
        accelerator.save_state(str(folder))
    if strategy.startswith("fsdp"):
        accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    whole = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        torch.save(whole, folder / "whole.pt")
    accelerator.wait_for_everyone()
    return [accelerator.distributed_type.name, accelerator.num_processes, type(model).__name__]


def two_groups(model):
    """AdamW as the Trainer sets it up: matrices decay, vectors do not. ZeRO lays each group out by itself."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = ([p for p in trained if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, foreach=False)


def _accelerator(strategy):
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DeepSpeedPlugin

    version = int(strategy[-1])
    if strategy.startswith("fsdp"):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=version,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Qwen3DecoderLayer"],
            reshard_after_forward=version == 2 or "FULL_SHARD",
            state_dict_type="SHARDED_STATE_DICT",
            **({"use_orig_params": True} if version == 1 else {}),
        )
        return Accelerator(fsdp_plugin=plugin)
    gather = {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": version} | (gather if version == 3 else {}),
    }
    return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))


def _go_on(folder):
    """Steps 3 to 6 of the reference run under ``fully_shard``, from a checkpoint that one process wrote."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    from course_utils.parallel import reference

    model = reference.new_model(seed=5)  # other weights: all must come from the checkpoint
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = reference.new_optimizer(model)
    load(folder, model, optimizer)
    train(model, optimizer, reference.global_batches(2 * STEPS)[STEPS:], dist.get_rank(), dist.get_world_size())
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {name: value.tolist() for name, value in whole.items()} if dist.get_rank() == 0 else None


def train(model, optimizer, batches, rank, ranks):
    """One step a batch, this rank's share; gradients of ``fully_shard`` are means over the ranks."""
    from course_utils.parallel import reference

    for batch in batches:
        loss = reference.summed_loss(model, reference.share(batch, rank, ranks)) / reference.count_targets(batch)
        (loss * ranks).backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder, model, optimizer):
    """Model and optimizer as a DCP folder, from any number of ranks."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def load(folder, model, optimizer):
    """What ``save`` wrote, on any number of ranks."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
