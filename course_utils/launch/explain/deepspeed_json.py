"""DeepSpeed's JSON: numbers as DeepSpeed reads them, "auto" as the Trainer fills it in."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

from course_utils.launch.explain.reading import Open, Reading, number, truth
from course_utils.launch.spec.silent import TRAINER_FILLS

TOOL = "DeepSpeed"
FACTS = {
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
    "train_batch_size": "global_batch",
}
# deepspeed 0.19 docs/_pages/config-json.md and runtime/config.py, runtime/constants.py
TOP_LEVEL = set(
    [
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "optimizer",
        "scheduler",
        "communication_data_type",
        "seq_parallel_communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "gradient_allreduce_op",
        "sparse_gradients",
        "fp16",
        "bf16",
        "bfloat16",
        "amp",
        "gradient_clipping",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "steps_per_print",
        "wall_clock_breakdown",
        "dump_state",
        "disable_allgather",
        "disable_python_gc",
        "memory_breakdown",
        "aio",
        "flops_profiler",
        "activation_checkpointing",
        "comms_logger",
        "sparse_attention",
        "data_efficiency",
        "curriculum_learning",
        "compression_training",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
        "elasticity",
        "checkpoint",
        "data_types",
        "dataloader_drop_last",
        "autotuning",
        "compile",
        "hybrid_engine",
        "tensor_parallel",
        "progressive_layer_drop",
        "eigenvalue",
        "pipeline",
        "use_data_before_expert_parallelism",
        "nebula",
        "weight_quantization",
        "torch_autocast",
        "log_level",
        "timers",
        "graph_harvesting",
        "sequence_parallel_size",
        "expert_parallel",
        "vocabulary_size",
        "managed_gradient_accumulation",
        "load_universal_checkpoint",
        "sparse_training",
        "legacy_fusion",
        "zenflow",
        "keep_in_fp32_modules",
        "monitor_config",
        "zero_quantized_weights",
        "moe",
        "tag_validation",
    ]
)
INSIDE_ZERO = ("stage", "offload_optimizer", "offload_param", "overlap_comm", "contiguous_gradients")
DEPRECATED_ZERO = {
    "cpu_offload": 'offload_optimizer": {"device": "cpu"}',
    "cpu_offload_params": 'offload_param": {"device": "cpu"}',
    "cpu_offload_use_pin_memory": 'offload_optimizer": {"pin_memory": true}',
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}


@cache
def zero_keys() -> set[str]:
    """Settings of ``zero_optimization``, under either of their names."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields.items()
    return {name for name, _ in fields} | {field.alias for _, field in fields if field.alias}


def is_deepspeed(content: dict[str, Any]) -> bool:
    own = {"zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size", "zero_allow_untested_optimizer"}
    return bool(own & set(content)) or ({"bf16", "fp16"} & set(content) and isinstance(content.get("bf16"), dict))


def explain(reading: Reading, content: dict[str, Any]) -> None:
    reading.kind = reading.kind or "DeepSpeed configuration"  # or the file it stands in
    for key, value in leaves(content):
        _setting(reading, key, value)
    for key in content:
        if key in TOP_LEVEL:
            continue
        if key in zero_keys() and (key in INSIDE_ZERO or key not in TOP_LEVEL):
            reading.find("deepspeed-misplaced", name=key, section="zero_optimization")
        else:
            near = difflib.get_close_matches(str(key), TOP_LEVEL, 1, 0.8)
            reading.find("deepspeed-unknown-key", name=key, cure=f"write `{near[0]}`" if near else "delete it")
    zero = content.get("zero_optimization")
    if isinstance(zero, dict):
        _zero(reading, zero)
    sections = {name: content[name] for name in ("bf16", "fp16") if isinstance(content.get(name), dict)}
    said = [section["enabled"] for section in sections.values() if "enabled" in section]
    on = [name for name, section in sections.items() if truth(section.get("enabled"))]
    if len(on) == 2:
        reading.find("both-precisions")
    elif on:
        reading.know("precision", on[0], f"{on[0]}.enabled")
    elif said and "auto" not in said:
        reading.know("precision", "no", "bf16.enabled")
    for key, fact in FACTS.items():
        reading.know(fact, number(content.get(key)), key)
    reading.know("max_grad_norm", number(content.get("gradient_clipping"), float), "gradient_clipping")
    _batch(reading, content)
    if isinstance(optimizer := content.get("optimizer"), dict) and isinstance(optimizer.get("params"), dict):
        reading.know("learning_rate", number(optimizer["params"].get("lr"), float), "optimizer.params.lr")


def leaves(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every value with its dotted name."""
    if not isinstance(content, dict) or not content:
        return [(prefix, content)]
    return [leaf for key, value in content.items() for leaf in leaves(value, f"{prefix}.{key}".lstrip("."))]


def _setting(reading: Reading, key: str, value: Any) -> None:
    if value != "auto":
        if key in FACTS and number(value) is None:
            reading.find("bad-value", name=key, value=value, tool=TOOL, allowed='a whole number or "auto"')
        reading.set(key, value, value, TOOL)
    elif key in TRAINER_FILLS:
        reading.set(key, value, Open(f"open: the Trainer's {TRAINER_FILLS[key]}", (key,)), "transformers")
    else:
        reading.set(key, value, "not filled in", TOOL)
        reading.find("auto-nobody-fills", name=key)


def _zero(reading: Reading, zero: dict[str, Any]) -> None:
    stage = number(zero.get("stage", 0))
    if stage is None or not 0 <= stage <= 3:
        if zero.get("stage") != "auto":
            reading.find(
                "bad-value", name="zero_optimization.stage", value=zero.get("stage"), tool=TOOL, allowed="0 to 3"
            )
        return
    reading.know("zero_stage", stage, "zero_optimization.stage")
    reading.know("strategy", f"zero{stage}" if stage else "ddp", "zero_optimization.stage")
    for key in zero:
        if key in DEPRECATED_ZERO:
            reading.find("zero-renamed-key", name=key, cure=DEPRECATED_ZERO[key].removeprefix('"'))
        elif key not in zero_keys():
            near = difflib.get_close_matches(str(key), zero_keys(), 1, 0.75)
            reading.find("zero-unknown-key", name=key, cure=f"write `{near[0]}`" if near else "delete it")
        elif stage < 3 and (
            (key == "offload_param" and _device(zero[key]) not in (None, "none"))
            or (key == "stage3_gather_16bit_weights_on_model_save" and zero[key] is True)
        ):
            reading.find("zero-stage3-key", name=key, stage=stage)
    gathers = ("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save")
    if stage == 3 and not any(zero.get(key) for key in (*gathers, "stage3_gather_fp16_weights_on_model_save")):
        reading.find("no-model-saved")
    offload = _device(zero.get("offload_optimizer")) not in (None, "none")
    reading.know("offload", offload or _device(zero.get("offload_param")) not in (None, "none"), "zero_optimization")


def _device(section: Any) -> Any:
    return section.get("device", "none") if isinstance(section, dict) else None


def _batch(reading: Reading, content: dict[str, Any]) -> None:
    batch, micro, accumulation = (number(content.get(key)) for key in ("train_batch_size", *list(FACTS)[:2]))
    if batch and micro and accumulation and micro * accumulation > 0 and batch % (micro * accumulation):
        product = f"a multiple of {micro * accumulation}"
        details = {"batch": batch, "micro": micro, "accumulation": accumulation, "world": "any number of ranks"}
        reading.find("deepspeed-batch-product", product=product, **details)
