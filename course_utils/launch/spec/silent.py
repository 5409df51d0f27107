"""The catalogue of silent settings: what is ignored, gone, contradictory or dangerous, since when, and the cure.

The data are in silent.yaml, one line each; ``python -m course_utils.launch explain`` and the check find them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

KINDS = ("ignored", "removed", "contradictory", "refused", "dangerous")


class Silent(NamedTuple):
    """One entry; ``what`` and ``cure`` have ``{names}`` that the finder fills in."""

    name: str
    kind: str  # one of KINDS
    since: str  # tool and version
    what: str
    shows: str
    cure: str
    source: str

    def sentence(self, **details: object) -> str:
        """What is wrong and the cure, as one sentence on one line."""
        return " ".join(f"{self.what.format(**details)}: {self.cure.format(**details)}".split())


@cache
def catalogue() -> dict[str, Silent]:
    """Every entry by its name."""
    lines = yaml.safe_load(Path(__file__).with_name("silent.yaml").read_text(encoding="utf-8"))
    return {name: Silent(name, *map(str, fields)) for name, fields in lines.items()}


# TrainingArguments' names that are gone in the pinned version (transformers 5.23), and what to write instead.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # below 1 it is a ratio
    "no_cuda": "use_cpu",
    "use_mps_device": "use_cpu=False",
    "group_by_length": 'train_sampling_strategy="group_by_length"',
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_organization": "hub_model_id",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
    "adafactor": 'optim="adafactor"',
    "fsdp_min_num_params": 'fsdp_config={"min_num_params": ...}',
    "fsdp_transformer_layer_cls_to_wrap": 'fsdp_config={"transformer_layer_cls_to_wrap": ...}',
    "include_inputs_for_metrics": 'include_for_metrics=["inputs"]',
    "dispatch_batches": 'accelerator_config={"dispatch_batches": ...}',
    "split_batches": 'accelerator_config={"split_batches": ...}',
    "fp16_backend": "fp16",
    "half_precision_backend": "fp16",
}
DEPRECATED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
REMOVED = {
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "delete it, and the folder if it is old",
    "save_safetensors": "delete it: checkpoints are always safetensors",
    "fp16_opt_level": "delete it: apex is gone",
    "use_ipex": "delete it",
    "jit_mode_eval": "delete it",
    "tpu_num_cores": "delete it",
    "tpu_metrics_debug": "delete it",
    "past_index": "delete it",
    "use_legacy_prediction_loop": "delete it",
    "ray_scope": "delete it",
}
# TRL 1.16 (SFTConfig and its relatives)
RENAMED_TRL = {
    "max_seq_length": "max_length",
    "torch_dtype": "dtype",  # of ModelConfig, which TrlParser fills from the same file
    "use_liger": "use_liger_kernel",
    "use_liger_loss": "use_liger_kernel",
    "vllm_max_model_len": "vllm_max_model_length",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "padding_value": "pad_token",
}
REMOVED_TRL = {
    "max_prompt_length": "delete it, and cut the prompts in the data set",
    "max_target_length": "delete it: `max_length` counts the whole sequence",
    "rpo_alpha": 'write `loss_type=["sigmoid", "sft"]` with `loss_weights`',
    "is_encoder_decoder": "delete it",
    "generate_during_eval": "delete it",
    "force_use_ref_model": "delete it",
    "label_pad_token_id": "delete it",
    "dataset_batch_size": "delete it",
    "num_of_sequences": "delete it",
    "chars_per_token": "delete it",
    "vllm_device": "write `vllm_mode`",
}
OLD_KEYWORDS = {("from_pretrained", "torch_dtype"): "dtype"}  # still read
# Keywords of other calls: (function, keyword) -> cure
KEYWORDS = {
    ("from_pretrained", "use_auth_token"): "write `token=`",
    ("from_pretrained", "load_in_8bit"): "write `quantization_config=BitsAndBytesConfig(load_in_8bit=True)`",
    ("from_pretrained", "load_in_4bit"): "write `quantization_config=BitsAndBytesConfig(load_in_4bit=True)`",
    ("save_pretrained", "safe_serialization"): "delete it: it is ignored",
    ("Accelerator", "fp16"): 'write `mixed_precision="fp16"`',
    ("Accelerator", "dispatch_batches"): "write `dataloader_config=DataLoaderConfiguration(dispatch_batches=...)`",
    ("Accelerator", "even_batches"): "write `dataloader_config=DataLoaderConfiguration(even_batches=...)`",
    ("Accelerator", "use_seedable_sampler"): "write `dataloader_config=DataLoaderConfiguration(...)`",
    ("Accelerator", "logging_dir"): "write `project_config=ProjectConfiguration(logging_dir=...)`",
}
IMPORTS = {
    ("transformers", "AdamW"): "import `torch.optim.AdamW`",
    ("transformers.optimization", "AdamW"): "import `torch.optim.AdamW`",
    ("transformers", "deepspeed"): "import from `transformers.integrations`",
    ("transformers.deepspeed", "HfDeepSpeedConfig"): "import from `transformers.integrations`",
}
# Environment variables (torch 2.13 ProcessGroupNCCL.hpp and FlightRecorder.hpp, huggingface_hub 1, transformers 5.23).
OLD_VARIABLES = {
    "NCCL_ASYNC_ERROR_HANDLING": "write `TORCH_NCCL_ASYNC_ERROR_HANDLING`, or delete it: 3 is the default",
    "NCCL_BLOCKING_WAIT": "write `TORCH_NCCL_BLOCKING_WAIT`",
    "NCCL_DESYNC_DEBUG": "write `TORCH_NCCL_DESYNC_DEBUG`",
    "NCCL_ENABLE_TIMING": "write `TORCH_NCCL_ENABLE_TIMING`",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "write `TORCH_FR_BUFFER_SIZE`",
    "TORCH_NCCL_TRACE_CPP_STACK": "write `TORCH_FR_CPP_STACK`",
    "HF_HUB_ENABLE_HF_TRANSFER": "write `HF_XET_HIGH_PERFORMANCE`",
    "TRANSFORMERS_CACHE": "write `HF_HOME`",
}
SLOW_VARIABLES = {  # switched on: what is lost
    "NCCL_P2P_DISABLE": "GPUs of one machine exchange through its main memory, NVLink or not",
    "NCCL_SHM_DISABLE": "GPUs of one machine exchange over the network where they have no direct path",
    "NCCL_IB_DISABLE": "machines exchange over TCP, whatever network they have",
    "CUDA_LAUNCH_BLOCKING": "the CPU waits for every kernel, and nothing overlaps",
    "TORCH_NCCL_BLOCKING_WAIT": "the CPU waits for every collective",
    "NCCL_BLOCKING_WAIT": "the CPU waits for every collective",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "the driver allocates every tensor anew",
}
OFF_VARIABLES = {  # switched off: what is lost
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "a rank that hangs keeps the others waiting until the job's time limit",
    "NCCL_ASYNC_ERROR_HANDLING": "a rank that hangs keeps the others waiting until the job's time limit",
    "TORCH_FR_BUFFER_SIZE": "no flight recorder says afterwards which collective hung",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "no flight recorder says afterwards which collective hung",
}
# "auto" at these places is filled in by transformers 5.23 (HfTrainerDeepSpeedConfig) from this argument.
TRAINER_FILLS = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_batch_size": "per_device_train_batch_size x gradient_accumulation_steps x ranks",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.betas": "adam_beta1, adam_beta2",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_min_lr": "0",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "scheduler.params.total_num_steps": "max_steps",
    "fp16.enabled": "fp16",
    "bf16.enabled": "bf16",
    "zero_optimization.reduce_bucket_size": "the model's hidden size",
    "zero_optimization.stage3_prefetch_bucket_size": "the model's hidden size",
    "zero_optimization.stage3_param_persistence_threshold": "the model's hidden size",
}
