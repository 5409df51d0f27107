"""Why each line of a settings file is there: the comments of accelerate.yaml and the tables of README.md.

JSON has no comments, so README.md explains deepspeed.json and fsdp.json with the same sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from course_utils.launch.spec import Spec

ACCELERATE = {
    "compute_environment": "not SageMaker's own launcher",
    "distributed_type": "NO, MULTI_GPU (DDP), FSDP or DEEPSPEED",
    "num_machines": "the same number on every machine",
    "num_processes": "over all machines; a number that does not divide by them is rounded down, silently",
    "machine_rank": "accelerate.sh gives the real one",
    "main_process_ip": "the machine of rank 0; accelerate.sh replaces it by MASTER_ADDR",
    "main_process_port": "0: any free port, so that two runs fit on one machine",
    "use_cpu": "true would start one process; a CPU run says ACCELERATE_USE_CPU=true instead",
    "debug": "true checks the shape of every collective, at a price",
    "mixed_precision": "type of the computation; 'no': that of the weights",
    "fsdp_config": "every key begins with fsdp_; a misspelt one is accepted and ignored",
    "parallelism_config": "every key in full, or it silently counts as 1; the product must be num_processes",
    "deepspeed_config": "no gradient_accumulation_steps at top level: unknown there",
}
FSDP = {
    "version": "1: flat parameters; 2: fully_shard, one DTensor per parameter",
    "reshard_after_forward": "true: free gathered weights after the forward pass (ZeRO-3); false: keep them (ZeRO-2)",
    "sharding_strategy": "FSDP1 reads this one, not reshard_after_forward",
    "auto_wrap_policy": "each transformer layer is gathered and freed as one unit",
    "transformer_layer_cls_to_wrap": "one string, commas between classes; a YAML list becomes garbage names",
    "state_dict_type": "SHARDED: each rank saves its own part; FULL: rank 0 gathers and writes everything",
    "cpu_ram_efficient_loading": "only rank 0 reads the checkpoint, the others receive their part",
    "activation_checkpointing": "FSDP's own; never together with TrainingArguments' activation_checkpointing",
    "offload_params": "parameters, gradients and optimizer state wait in host memory",
    "cpu_offload": "parameters, gradients and optimizer state wait in host memory",
    "backward_prefetch": "gather the next layer while this one computes",
    "forward_prefetch": "true helps only models whose order of layers never changes",
    "use_orig_params": "the optimizer sees parameters by name: needed for frozen ones (LoRA) and groups",
    "sync_module_states": "rank 0 sends its weights to the others; needed by cpu_ram_efficient_loading",
}
PARALLELISM = {
    "dp_replicate_size": "copies of the sharded model (HSDP)",
    "dp_shard_size": "ranks that divide each parameter",
    "tp_size": "ranks that share each matrix multiplication",
    "cp_size": "ranks that share each sequence",
}
DEEPSPEED = {
    "deepspeed_config_file": "seen from where the run is started; accelerate.sh gives the full path",
    "deepspeed_multinode_launcher": "torchrun on every machine; the default, pdsh, needs ssh between them",
    "zero3_init_flag": "build the model in parts: no rank ever holds all of it",
    "train_batch_size": "sequences per optimizer step: the product of the next two and the data-parallel ranks",
    "train_micro_batch_size_per_gpu": "sequences per process and forward pass",
    "gradient_accumulation_steps": "forward passes per optimizer step",
    "gradient_clipping": "TrainingArguments' max_grad_norm; the two must agree",
    "zero_optimization.stage": "1 shards optimizer state, 2 gradients too, 3 weights too",
    "zero_optimization.overlap_comm": "reduce gradients while the backward pass goes on",
    "zero_optimization.contiguous_gradients": "gradients move into one buffer: no fragmentation",
    "zero_optimization.reduce_bucket_size": "elements reduced at a time; smaller saves memory, larger time",
    "zero_optimization.allgather_bucket_size": "elements of updated weights gathered at a time",
    "zero_optimization.stage3_prefetch_bucket_size": "elements fetched ahead of their use",
    "zero_optimization.stage3_param_persistence_threshold": "smaller parameters stay whole on every rank; 0: none do",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "save_model writes a loadable model, not nothing",
    "zero_optimization.offload_optimizer": "optimizer state and update on the processor; pinned memory copies faster",
    "zero_optimization.offload_param": "parameters wait in host memory",
    "bf16": "bf16 copies of the weights compute, fp32 ones are updated; *_master_weights and *_states: bf16 alone",
    "fp16": "the same in fp16, with a loss scale that adapts itself",
    "zero_force_ds_cpu_optimizer": "DeepSpeed's vectorised Adam on the processor; false: torch's, nothing to compile",
}


VARIABLES = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "or restarted ranks read the dead ones' addresses (pytorch issue 135712)",
    "PET_STANDALONE": "torchrun's --standalone: with accelerate's own rendezvous restarted ranks of gloo hang",
    "OMP_NUM_THREADS": "for Adam on the processor: torchrun's 1 would leave all but one core idle",
    "TORCH_FR_BUFFER_SIZE": "NCCL's flight recorder keeps so many of a rank's last collectives",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "and writes them down when a rank waits longer than ddp_timeout",
    "TORCH_FR_DUMP_TEMP_FILE": "there, with the rank's number behind it (README.md: how to read them)",
    "NCCL_NET": "this network or an error; else NCCL falls back to sockets, and only its log says so",
    "FI_PROVIDER": "libfabric's name of the network; preflight sees whether NCCL uses it",
    "NCCL_SOCKET_IFNAME": "the interface by which ranks find each other, and of sockets",
    "GLOO_SOCKET_IFNAME": "the same for gloo",
}


def _indented(settings: dict[str, Any], reasons: dict[str, str], prefix: str) -> Iterator[tuple[int, str, Any, str]]:
    for name, value in settings.items():
        yield 2, name, value, reasons[name.removeprefix(prefix)]


def yaml_lines(config: dict[str, Any], spec: Spec) -> Iterator[tuple[int, str, Any, str]]:
    """``accelerate_config`` line by line: indentation, key, value (None for the head of a section), reason."""
    sections = {
        "fsdp_config": (FSDP, "fsdp_"),
        "parallelism_config": (PARALLELISM, "parallelism_config_"),
        "deepspeed_config": (DEEPSPEED, ""),
    }
    for name, value in config.items():
        if name not in sections:
            reason = ACCELERATE[name]
            if name == "main_process_port" and spec.nodes > 1:
                reason = "a free TCP port of the first machine"
            yield 0, name, value, reason
            continue
        yield 0, name, None, ACCELERATE[name]
        yield from _indented(value, *sections[name])


def json_rows(config: dict[str, Any], reasons: dict[str, str], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Key, value and reason of each setting, sections that have no reason of their own opened."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in reasons:
            yield key, value, reasons[key]
        else:
            yield from json_rows(value, reasons, f"{key}.")
