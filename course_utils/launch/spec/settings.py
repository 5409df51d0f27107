"""What a spec means in the words of each tool: accelerate's YAML, DeepSpeed's JSON, TrainingArguments' fsdp_config.

Plain dictionaries, so that the templates print them, the check compares them, and the lesson can show them. Sources:
accelerate 1.15 (``ClusterConfig``, ``FullyShardedDataParallelPlugin``, ``ParallelismConfig``), transformers 5.23
(``TrainingArguments._process_fsdp_args``), https://www.deepspeed.ai/docs/config-json.
"""

from __future__ import annotations

from typing import Any

from course_utils.errors import SpecError
from course_utils.launch.spec import overrides
from course_utils.launch.spec.spec import Spec
from course_utils.models.configs import shape_of
from course_utils.models.shapes import ModelShape

# finetune's names for the course's own models. ModernBERT's default list would wrap the embeddings twice: FSDP2 raises.
COURSE_LAYERS = {"course/encoder": "ModernBertEncoderLayer", "course/causal": "Qwen3DecoderLayer"}
RECORDER_PREFIX = "nccl_trace_rank_"  # a rank's number follows; torchfrtrace --prefix
BUCKET = 200_000_000  # elements that ZeRO gathers or reduces at a time: 400 MB in 16 bit


def layer_class(spec: Spec) -> str:
    """The class of the model's layers, which FSDP gathers one by one; empty where only the model itself can say."""
    if isinstance(spec.model, ModelShape):
        return spec.model.layer_class
    if spec.model in COURSE_LAYERS:
        return COURSE_LAYERS[spec.model]
    try:
        return shape_of(spec.model, hub=False).layer_class
    except (SpecError, OSError):  # OSError: no file system takes such a name
        return ""


def mixed_precision(spec: Spec) -> str:
    """accelerate's word: the type of the computation where it differs from that of the weights."""
    return spec.precision if spec.precision in ("bf16", "fp16") else "no"


def sharding_strategy(spec: Spec) -> str:
    """FSDP1's name of the strategy (accelerate's ``FSDP_SHARDING_STRATEGY``)."""
    if spec.replicas > 1:
        return "HYBRID_SHARD" if spec.reshard_after_forward else "HYBRID_SHARD_ZERO2"
    return "FULL_SHARD" if spec.reshard_after_forward else "SHARD_GRAD_OP"


def dp_shard_size(spec: Spec) -> int:
    """Ranks over which FSDP divides each parameter, not counting context-parallel ranks."""
    return spec.data_parallel_size // spec.replicas


def parallel_sizes(spec: Spec) -> dict[str, int]:
    """``ParallelismConfig``'s sizes; empty where sharding over all ranks (or none) is all there is."""
    if spec.strategy != "fsdp2" or spec.replicas * spec.tensor_parallel * spec.context_parallel == 1:
        return {}
    return {
        "dp_replicate_size": spec.replicas,
        "dp_shard_size": dp_shard_size(spec),
        "tp_size": spec.tensor_parallel,
        "cp_size": spec.context_parallel,
    }


def _fsdp(spec: Spec) -> dict[str, Any]:
    """Settings that accelerate and TrainingArguments name alike (accelerate puts ``fsdp_`` before them)."""
    on_gpus = spec.device == "cuda"
    found: dict[str, Any] = {"version": 2 if spec.strategy == "fsdp2" else 1}
    if spec.strategy == "fsdp2":
        found["reshard_after_forward"] = spec.reshard_after_forward
    found["auto_wrap_policy"] = "TRANSFORMER_BASED_WRAP"
    if wrapped := layer_class(spec):
        found["transformer_layer_cls_to_wrap"] = wrapped
    found["state_dict_type"] = f"{spec.state_dict.upper()}_STATE_DICT"
    found["cpu_ram_efficient_loading"] = on_gpus
    found["activation_checkpointing"] = spec.checkpointing
    if spec.strategy == "fsdp1":
        found |= {"backward_prefetch": "BACKWARD_PRE", "forward_prefetch": False, "use_orig_params": True}
        found["sync_module_states"] = on_gpus
    return found


def fsdp_config(spec: Spec) -> dict[str, Any]:
    """``TrainingArguments(fsdp=True, fsdp_config=...)``: keys without ``fsdp_``, which it strips."""
    return _fsdp(spec) | {"cpu_offload": spec.offload == "all"}


def starts_torchrun(spec: Spec) -> bool:
    """Whether ``accelerate launch`` starts torchrun's agent; a single process without a plugin it starts itself."""
    return spec.is_fsdp or spec.is_deepspeed or spec.world_size > 1


def accelerate_config(spec: Spec, folder: str = "launch") -> dict[str, Any]:
    """``accelerate launch --config_file``: a ``ClusterConfig``, ``folder`` being where deepspeed.json lies."""
    several = spec.nodes > 1
    kind = "FSDP" if spec.is_fsdp else "DEEPSPEED" if spec.is_deepspeed else "MULTI_GPU"
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO" if kind == "MULTI_GPU" and spec.world_size == 1 else kind,
        "num_machines": spec.nodes,
        "num_processes": spec.world_size,
        "machine_rank": 0,
        "main_process_ip": spec.host_names[0] if several else "127.0.0.1",
        "main_process_port": spec.port if several else 0,
        "use_cpu": False,
        "debug": False,
    }
    if not spec.is_deepspeed:
        found["mixed_precision"] = mixed_precision(spec)
    if spec.is_fsdp:
        own = {"offload_params": spec.offload == "all"}
        if spec.strategy == "fsdp1":
            own["sharding_strategy"] = sharding_strategy(spec)
        found["fsdp_config"] = {f"fsdp_{name}": value for name, value in (_fsdp(spec) | own).items()}
    if sizes := parallel_sizes(spec):
        found["parallelism_config"] = {f"parallelism_config_{name}": size for name, size in sizes.items()}
    if spec.is_deepspeed:
        found["deepspeed_config"] = {
            "deepspeed_config_file": f"{folder}/deepspeed.json",
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": spec.strategy == "zero3",
        }
    return found


def deepspeed_config(spec: Spec) -> dict[str, Any]:
    """DeepSpeed's JSON with numbers throughout: ``"auto"`` is filled in by the Hugging Face integration only."""
    stage = int(spec.strategy[-1])
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": spec.device == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
    }
    if stage < 3:
        zero["allgather_bucket_size"] = BUCKET
    else:
        zero |= {
            "stage3_prefetch_bucket_size": BUCKET // 4,
            "stage3_param_persistence_threshold": 100_000 if spec.device == "cuda" else 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    place = {"device": "cpu", "pin_memory": spec.device == "cuda"}
    if spec.offload != "none":
        zero["offload_optimizer"] = place
    if spec.offload == "all":
        zero["offload_param"] = place
    found: dict[str, Any] = {
        "train_batch_size": spec.effective_batch,
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": spec.accumulation_steps,
        "gradient_clipping": overrides.gradient_clipping(spec),
        "zero_optimization": zero,
        "bf16": {"enabled": spec.precision.startswith("bf16")},
        "fp16": {"enabled": spec.precision == "fp16"},
    }
    if spec.precision == "bf16_weights":
        found["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if spec.offload != "none":
        found["zero_force_ds_cpu_optimizer"] = spec.device == "cuda"
    return found


def environment_variables(spec: Spec, launcher: str = "torchrun", folder: str = "launch") -> dict[str, str]:
    """What a rank must find in its environment besides its program's arguments.

    ``launcher`` is "torchrun" (and all that behaves like it: TrainJob, Ray, SageMaker), "accelerate" or "deepspeed".
    """
    found: dict[str, str] = {}
    if spec.device == "cpu":
        found |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # ranks share the cores
        # Without it every rank is alone, silently; with it DeepSpeed would silently become DDP.
        found |= {"DS_ACCELERATOR": "cpu"} if spec.is_deepspeed else {"ACCELERATE_USE_CPU": "true"}
    elif spec.offload != "none":  # Adam runs on the processor, and torchrun would give it one thread
        found["OMP_NUM_THREADS"] = str(spec.cpus_per_gpu)
    found |= network_variables(spec)
    if launcher != "deepspeed" and restarts_by_launcher(spec):
        found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        if launcher == "accelerate":  # it has no option for it; its own rendezvous shares the store all the same
            found["PET_STANDALONE"] = "1"
    if not spec.trainer_flags:
        found["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(spec.accumulation_steps)
    if launcher != "accelerate":
        found |= _accelerate_variables(spec, folder)
    return found


def restarts_by_launcher(spec: Spec) -> int:
    """How often torchrun (and accelerate, which starts it) starts the ranks again, on one machine.

    On several it would have to restart all machines' ranks at once, which fixed ranks do not: the scheduler does it.
    """
    return spec.max_restarts if spec.nodes == 1 and starts_torchrun(spec) else 0


def network_variables(spec: Spec) -> dict[str, str]:
    """What NCCL and gloo are told about the network between machines; nothing on one machine, or where any will do.

    With ``NCCL_NET`` a missing device is an error at the start; without it NCCL takes sockets, and says so in its log
    only. https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
    """
    if spec.nodes == 1:
        return {}
    found = {}
    if spec.device == "cuda":
        kinds = {"ethernet": "Socket", "infiniband": "IB", "roce": "IB"}
        if spec.network_kind in kinds:
            found["NCCL_NET"] = kinds[spec.network_kind]
        if spec.network_kind == "efa":  # its plugin has had several names for NCCL_NET
            found["FI_PROVIDER"] = "efa"
    if spec.interface:
        found |= {"NCCL_SOCKET_IFNAME": spec.interface, "GLOO_SOCKET_IFNAME": spec.interface}
    return found


def recorder_variables(spec: Spec) -> dict[str, str]:
    """NCCL's flight recorder, for launchers that make the log folder: each rank's last collectives after a time-out.

    Names and meaning: torch 2.13, ``FlightRecorder.hpp`` and ``ProcessGroupNCCL.hpp``. gloo records too, and writes
    nothing.
    """
    if not spec.log_dir or spec.device != "cuda" or spec.world_size == 1:
        return {}
    prefix = f"{spec.log_dir}/{RECORDER_PREFIX}"
    return {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": prefix,
    }


def slurm_port(spec: Spec, job: int) -> int:
    """The rendezvous port of SLURM's job number ``job``: two of them on one machine rarely meet. Every second one.

    The one in between is the preflight's.
    """
    return spec.port + job % slurm_ports(spec) * 2


def slurm_ports(spec: Spec) -> int:
    """How many jobs have a port of their own, from ``spec.port`` on."""
    return max(1, min(1000, (65535 - spec.port) // 2))


def _accelerate_variables(spec: Spec, folder: str) -> dict[str, str]:
    """What ``accelerate launch`` would export, for launchers that know nothing of accelerate."""
    found: dict[str, str] = {}
    if sizes := parallel_sizes(spec):
        found["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
        found |= {f"PARALLELISM_CONFIG_{name.upper()}": str(size) for name, size in sizes.items()}
    if spec.strategy == "fsdp1":  # TrainingArguments has no word for it: without this it is always FULL_SHARD
        found["FSDP_SHARDING_STRATEGY"] = sharding_strategy(spec)
    if spec.trainer_flags:
        return found
    found["ACCELERATE_MIXED_PRECISION"] = mixed_precision(spec)
    if spec.is_fsdp:
        found |= {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": str(spec.offload == "all").lower()}
        for name, value in _fsdp(spec).items():
            key = {"transformer_layer_cls_to_wrap": "TRANSFORMER_CLS_TO_WRAP"}.get(name, name.upper())
            found[f"FSDP_{key}"] = str(value).lower() if isinstance(value, bool) else str(value)
    if spec.is_deepspeed:
        found |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": f"{folder}/deepspeed.json"}
    return found
