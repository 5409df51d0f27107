"""Solutions of lesson 15's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

from typing import Any


def solution_1(config: dict[str, Any]) -> dict[str, Any]:
    """All processes, FSDP2's own words, one string of classes, prefixed sizes."""
    config["num_processes"] = 16  # 2 machines x 8
    fsdp = config["fsdp_config"]
    del fsdp["fsdp_sharding_strategy"]
    fsdp["fsdp_reshard_after_forward"] = False
    fsdp["fsdp_transformer_layer_cls_to_wrap"] = "Qwen3DecoderLayer"
    sizes = config["parallelism_config"]
    config["parallelism_config"] = {f"parallelism_config_{name}": size for name, size in sizes.items()}
    return config


def solution_2(config: dict[str, Any]) -> dict[str, Any]:
    """TrainingArguments' names, without a prefix, so that nothing depends on its being stripped."""
    config = {name.removeprefix("fsdp_"): value for name, value in config.items()}
    config["cpu_offload"] = config.pop("offload_params")
    config["activation_checkpointing"] = config.pop("activation_checkpoint")
    return config


def solution_3(config: dict[str, Any]) -> dict[str, Any]:
    """A sum that multiplies out, a number for "auto", and the offload where DeepSpeed looks for it."""
    config["gradient_accumulation_steps"] = 2
    config["train_batch_size"] = 4 * 2 * 16
    config["gradient_clipping"] = 1.0  # the Trainer's max_grad_norm
    config["zero_optimization"]["offload_optimizer"] = config.pop("offload_optimizer")
    return config


def solution_4() -> dict[str, Any]:
    """Shard everything, recompute nothing, one sequence at a time: it fits, and no operation is done twice."""
    return {"strategy": "fsdp2", "micro_batch": 1, "checkpointing": False}


def solution_5(hosts: tuple[str, ...], gpus: int, k: int, port: int) -> list[str]:
    """The same words on each machine, but for the rank."""
    return [
        "torchrun",
        f"--nnodes={len(hosts)}",
        f"--nproc-per-node={gpus}",
        f"--node-rank={k}",
        f"--master-addr={hosts[0]}",
        f"--master-port={port}",
    ]
