"""Configurations to repair (lesson 15): accepted by the tool they are for, and not what was asked."""

from __future__ import annotations

from typing import Any, NamedTuple


class Broken(NamedTuple):
    """What the run should be (fields of a spec), the file, what somebody wrote, and which rows of the check count."""

    asked: dict[str, Any]
    file: str
    written: dict[str, Any]
    tools: tuple[str, ...]


# 15.4: weights stay gathered after the forward pass, on two machines that hold a sharded copy each
ACCELERATE = Broken(
    asked={
        "model": "Qwen/Qwen3-0.6B",
        "strategy": "fsdp2",
        "reshard_after_forward": False,
        "nodes": 2,
        "gpus_per_node": 8,
        "replicas": 2,
    },
    file="accelerate.yaml",
    written={
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "num_machines": 2,
        "num_processes": 8,
        "main_process_ip": "node1",
        "main_process_port": 29500,
        "mixed_precision": "bf16",
        "use_cpu": False,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_sharding_strategy": "SHARD_GRAD_OP",
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"],
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": True,
        },
        "parallelism_config": {"dp_replicate_size": 2, "dp_shard_size": 8},
    },
    tools=("accelerate.sh", "accelerate.yaml"),
)
# 15.5: everything waits in host memory, activations are recomputed
FSDP = Broken(
    asked={"model": "Qwen/Qwen3-0.6B", "strategy": "fsdp2", "offload": "all", "checkpointing": True},
    file="fsdp.json",
    written={
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": True,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Qwen3DecoderLayer",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": True,
        "activation_checkpoint": True,
    },
    tools=("torchrun.sh", "fsdp.json"),
)
# 15.6: 4 sequences x 2 passes x 16 ranks, the optimizer's state in host memory; one "auto" the Trainer fills in
DEEPSPEED = Broken(
    asked={
        "model": "Qwen/Qwen3-0.6B",
        "strategy": "zero3",
        "offload": "optimizer",
        "nodes": 2,
        "gpus_per_node": 8,
        "micro_batch": 4,
        "accumulation": 2,
    },
    file="deepspeed.json",
    written={
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": "auto",
        "zero_optimization": {
            "stage": 3,
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_max_live_parameters": "auto",
        },
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "bf16": {"enabled": True},
    },
    tools=("deepspeed.json", "torchrun.sh"),
)
