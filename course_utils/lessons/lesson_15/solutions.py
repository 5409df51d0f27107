"""Solutions of lesson 15's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_FOLDER = TemporaryDirectory()  # of solution 7's file, as long as Python runs

# A sum of 1.0 s behind a backward pass of 0.8 s; behind each of three; behind one of 2.4 s; and 0.5 s behind nothing.
solution_1 = {"once": 0.2, "each batch": 3 * 0.2, "one micro-batch": 0.0, "once, then gather": 0.2 + 0.5}


def solution_2() -> dict[str, Any]:
    """Weights stay inside a machine, and memory is spent on longer micro-batches, behind which the sum can hide."""
    return {"strategy": "fsdp2", "replicas": 2, "micro_batch": 2, "checkpointing": False}


def solution_3(hosts: tuple[str, ...], gpus: int, me: str, port: int) -> list[str]:
    """The same words on each machine, but for the rank."""
    if len(hosts) == 1:
        return ["torchrun", "--standalone", f"--nproc-per-node={gpus}"]
    return [
        "torchrun",
        f"--nnodes={len(hosts)}",
        f"--nproc-per-node={gpus}",
        f"--node-rank={list(hosts).index(me.split('.')[0])}",
        f"--master-addr={hosts[0]}",
        f"--master-port={port}",
    ]


def solution_4(config: dict[str, Any]) -> dict[str, Any]:
    """All processes, FSDP2's own words, one string of classes, prefixed sizes."""
    config["num_processes"] = 16  # 2 machines x 8
    fsdp = config["fsdp_config"]
    del fsdp["fsdp_sharding_strategy"]
    fsdp["fsdp_reshard_after_forward"] = False
    fsdp["fsdp_transformer_layer_cls_to_wrap"] = "Qwen3DecoderLayer"
    sizes = config["parallelism_config"]
    config["parallelism_config"] = {f"parallelism_config_{name}": size for name, size in sizes.items()}
    return config


def solution_5(config: dict[str, Any]) -> dict[str, Any]:
    """TrainingArguments' names, without a prefix, so that nothing depends on its being stripped."""
    config = {name.removeprefix("fsdp_"): value for name, value in config.items()}
    config["cpu_offload"] = config.pop("offload_params")
    config["activation_checkpointing"] = config.pop("activation_checkpoint")
    return config


def solution_6(config: dict[str, Any]) -> dict[str, Any]:
    """A sum that multiplies out, no "auto" that nobody fills in, and the offload where DeepSpeed looks for it."""
    config["gradient_accumulation_steps"] = 2
    config["train_batch_size"] = 4 * 2 * 16
    del config["zero_optimization"]["stage3_max_live_parameters"]  # no argument of the Trainer: its default will do
    config["zero_optimization"]["offload_optimizer"] = config.pop("offload_optimizer")
    return config


def solution_7() -> tuple[str, dict[str, Any]]:
    """A healthy DeepSpeed JSON, and what it says."""
    config = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "bf16": {"enabled": True}}
    path = Path(_FOLDER.name, "zero2.json")
    path.write_text(json.dumps(config | {"zero_optimization": {"stage": 2}}), encoding="utf-8")
    return str(path), {"micro_batch": 4, "accumulation": 2, "precision": "bf16"}


def solution_8(asked: dict[str, Any], run: dict[str, Any], log: str) -> str:
    """From what explains most to what explains least."""
    if run["world_size"] != asked["ranks"]:
        return "ranks"
    if max(run["parameters_held"]) > 1.01 * asked["parameters_held"]:  # shards are not all equally long
        return "shards"
    if run["effective_batch"] != asked["effective_batch"]:
        return "batch"
    if run["state"] == "running":
        return "memory" if "out of memory" in log else "time"
    first_stay, _, second_stay = log.partition("second stay")
    return "forgot" if second_stay and "checkpoint-" in first_stay and not run["resumed_from"] else "fine"


def solution_9(folder: str) -> Any:
    """Shards inside each machine, recomputed activations; then all files at once."""
    from course_utils.launch import Spec, write
    from course_utils.lessons.lesson_15.exercises_run import ORDER

    spec = Spec(**ORDER, strategy="fsdp2", replicas=2, micro_batch=2, checkpointing=True)
    write(spec, folder)
    return spec
