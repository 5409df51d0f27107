"""accelerate's YAML, as ``accelerate launch --config_file`` and the plugins behind it read it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from course_utils.launch.explain.reading import Reading, number, state_dict_kind, truth

TOOL = "accelerate"
FLAG_ONLY = ("rdzv_backend", "same_network")  # the command line's defaults win over the file
OFFLOAD = ("offload_optimizer_device", "offload_param_device")
SECTIONS = {"fsdp_config": "FSDP", "deepspeed_config": "DEEPSPEED"}
FSDP1_ONLY = {
    "fsdp_sharding_strategy",
    "fsdp_backward_prefetch",
    "fsdp_forward_prefetch",
    "fsdp_use_orig_params",
    "fsdp_sync_module_states",
}
SHARDING = {"FULL_SHARD": "true", "1": "true", "SHARD_GRAD_OP": "false", "2": "false"}
KNOWN_TO_WIZARD = {"downcast_bf16", "main_training_function", "tpu_use_cluster", "tpu_use_sudo", "tpu_env", "debug"}


@cache
def options() -> dict[str, Any]:
    """Every option of ``accelerate launch`` by its name: its argparse action."""
    from accelerate.commands.launch import launch_command_parser

    return {action.dest: action for action in launch_command_parser()._actions}


@cache
def keys() -> set[str]:
    """The keys that accelerate's configuration classes know; any other one raises."""
    from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig

    return {field.name for kind in (ClusterConfig, SageMakerConfig) for field in dataclasses.fields(kind)}


def is_accelerate(content: dict[str, Any]) -> bool:
    own = {
        "distributed_type",
        "compute_environment",
        "num_machines",
        "mixed_precision",
        "num_processes",
        "machine_rank",
    }
    own |= {"main_process_ip", "main_process_port"}
    return len(own & set(content)) >= 2 or "distributed_type" in content


def explain(reading: Reading, content: dict[str, Any]) -> None:
    reading.kind = "accelerate configuration"
    args = _resolved(reading, content)
    for key, value in content.items():
        if not isinstance(value, dict):
            _top_level(reading, str(key), value, args)
    kind = str(content.get("distributed_type", "NO")).upper()
    for name, wanted in SECTIONS.items():
        section = content.get(name)
        if section and kind != wanted:
            reading.find("section-not-in-use", name=name, kind=kind, wanted=wanted)
    _processes(reading, content, kind)
    for name, section in content.items():
        if isinstance(section, dict):
            _section(reading, name, section, kind)


def _resolved(reading: Reading, content: dict[str, Any]) -> Any:
    """The options after accelerate merged file and defaults; None (and a finding) where it refuses the file."""
    from accelerate.commands import launch as tool

    unknown = [key for key in content if str(key) not in keys()]
    for key in unknown:
        near = difflib.get_close_matches(str(key), keys(), 1, 0.8)
        cure = f"write `{near[0]}`" if near else "delete it"
        if key == "gradient_accumulation_steps":
            cure = "move it into `deepspeed_config`, or tell the program"
        reading.find("yaml-unknown-key", name=key, cure=cure)
    known = {key: value for key, value in content.items() if key not in unknown}
    known.setdefault("compute_environment", "LOCAL_MACHINE")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(known), encoding="utf-8")
        taken = mock.patch("accelerate.utils.launch.is_port_in_use", return_value=False)
        quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
        with mock.patch.dict(os.environ, {"HOME": folder}, clear=True), taken, quiet[0], quiet[1]:
            try:
                words = ["--config_file", str(path), "program.py"]
                if content.get("num_processes") is None:  # it would only ask for it
                    words[2:2] = ["--num_processes", "1"]
                return tool._validate_launch_command(tool.launch_command_parser().parse_args(words))[0]
            except (Exception, SystemExit) as error:
                said = " ".join(str(error).split())[:160].replace(folder, "").strip() or type(error).__name__
                if not unknown:
                    reading.find("tool-refuses", tool=TOOL, name="the file", error=said, cure="correct what it names")
                return None


def _top_level(reading: Reading, key: str, value: Any, args: Any) -> None:
    if key not in keys():
        reading.set(key, value, "refused", TOOL)
        return
    if key in FLAG_ONLY and value is not None:
        resolved = {"rdzv_backend": "static", "same_network": False}[key]
        reading.set(key, value, resolved, TOOL)
        if value not in (resolved, str(resolved)) and not (key == "same_network" and value is True and _is_alone(args)):
            reading.find("yaml-flag-only", name=key, value=value)
        return
    reading.set(key, value, getattr(args, key, value) if key in options() else value, TOOL)
    if key in ("num_processes", "num_machines", "machine_rank") and number(value) is None and value is not None:
        reading.find("bad-value", name=key, value=value, tool=TOOL, allowed="a whole number")
    if key == "mixed_precision" and str(value).lower() not in ("no", "fp16", "bf16", "fp8", "false", "none"):
        reading.find("bad-value", name=key, value=value, tool=TOOL, allowed="no, fp16, bf16 or fp8")
    if key == "main_process_port" and (port := number(value)) is not None and not (port == 0 or 1024 <= port <= 65535):
        reading.find("privileged-port", port=port)


def _is_alone(args: Any) -> bool:
    """One machine: nobody needs to find anybody."""
    return args is None or (number(getattr(args, "num_machines", 1)) or 1) == 1


def _processes(reading: Reading, content: dict[str, Any], kind: str) -> None:
    world, machines = number(content.get("num_processes")), number(content.get("num_machines")) or 1
    on_cpu = truth(content.get("use_cpu")) is True
    if content.get("num_processes") is None and content.get("compute_environment") != "AMAZON_SAGEMAKER":
        reading.find("yaml-no-processes")
    if on_cpu and (world or 1) > 1 and kind not in ("MULTI_CPU",):
        reading.find("cpu-one-process", world=world)
    elif kind in ("NO", "FALSE") and (world or 1) > 1 and "distributed_type" in content:
        reading.find("no-distribution", world=world)
    elif world and machines > 0 and world % machines:
        reading.find("processes-round-down", world=world, machines=machines, each=world // machines)
    if machines > 1 and content.get("main_process_ip") in (None, ""):
        cure = "write `main_process_ip`, the address of machine 0, or pass `--main_process_ip`"
        reading.find("rendezvous-missing", nodes=machines, cure=cure)
    elif machines > 1 and str(content.get("main_process_ip")) in ("localhost", "127.0.0.1"):
        reading.find("local-master", address=content["main_process_ip"], nodes=machines)
    reading.know("nodes", machines if "num_machines" in content else None, "num_machines")
    reading.know("world_size", world, "num_processes")
    precision = str(content.get("mixed_precision", "")).lower()
    precision = {"false": "no", "none": "no"}.get(precision, precision)
    if precision and not (content.get("deepspeed_config") or {}).get("deepspeed_config_file", None):
        reading.know("precision", precision, "mixed_precision")
    sizes = content.get("parallelism_config")
    if isinstance(sizes, dict):
        found = [
            number(value)
            for name, value in sizes.items()
            if str(name).startswith("parallelism_config_") and str(name).endswith("_size")
        ]
        product = 1
        for size in found:
            product *= size or 1
        if found and world and product != world:
            reading.find("parallelism-product", product=product, world=world)


def _section(reading: Reading, name: str, section: dict[Any, Any], kind: str) -> None:
    version = number(section.get("fsdp_version")) or 1
    for key, value in section.items():
        key, reads, resolved = str(key), True, value
        if name == "fsdp_config":
            reads, resolved = _fsdp_key(reading, key, value, version, "fsdp_version" in section)
        elif name == "parallelism_config" and not key.startswith("parallelism_config_"):
            reads = False
            if f"parallelism_config_{key}" in options():
                reading.find("parallelism-prefix", name=key)
            else:
                reading.find("yaml-unread-key", name=key, section=name, cure="delete it")
        elif name == "deepspeed_config":
            reads = _deepspeed_key(reading, key, value, section)
        reading.set(f"{name}.{key}", value, resolved if reads else "not read", TOOL)
    if name == "fsdp_config" and kind == "FSDP":
        if version == 1:
            strategy = str(section.get("fsdp_sharding_strategy", "FULL_SHARD"))
            reading.set("fsdp_config: version", section.get("fsdp_version", "not written"), 1, TOOL)
            reading.know("reshard_after_forward", {"true": True, "false": False}.get(SHARDING.get(strategy, "")), key)
        else:
            resolved = truth(section.get("fsdp_reshard_after_forward", True))
            written = section.get("fsdp_reshard_after_forward", "not written")
            reading.set("fsdp_config: reshard after forward", written, resolved, TOOL)
            reading.know("reshard_after_forward", resolved, "fsdp_reshard_after_forward")
        reading.know("strategy", f"fsdp{version}", "fsdp_version")
        reading.know("state_dict", state_dict_kind(section.get("fsdp_state_dict_type")), "fsdp_state_dict_type")
        reading.know("offload", truth(section.get("fsdp_offload_params")), "fsdp_offload_params")
        reading.know(
            "checkpointing", truth(section.get("fsdp_activation_checkpointing")), "fsdp_activation_checkpointing"
        )
    if name == "deepspeed_config" and kind == "DEEPSPEED":
        reading.know("zero_stage", stage := number(section.get("zero_stage")), "zero_stage")
        reading.know("strategy", f"zero{stage}" if stage in (1, 2, 3) else None, "zero_stage")
        reading.know("accumulation", number(section.get("gradient_accumulation_steps")), "gradient_accumulation_steps")
        devices = [str(section[name]) for name in OFFLOAD if section.get(name) is not None]
        reading.know("offload", any(name not in ("none", "None") for name in devices) if devices else None, OFFLOAD[0])
        clipping = number(section.get("gradient_clipping"), float)
        reading.know("max_grad_norm", clipping, "gradient_clipping")


def _fsdp_key(reading: Reading, key: str, value: Any, version: int, has_version: bool) -> tuple[bool, Any]:
    """Whether accelerate reads a key of ``fsdp_config``, and what it makes of it; notes what is wrong."""
    if key not in options():
        near = difflib.get_close_matches(key if key.startswith("fsdp_") else f"fsdp_{key}", options(), 1, 0.75)
        cure = f"write `{near[0]}`" if near else "delete it"
        reading.find("yaml-unread-key", name=key, section="fsdp_config", cure=cure)
        return False, value
    if version == 2 and key in FSDP1_ONLY:
        cure = "delete it"
        if key == "fsdp_sharding_strategy":
            wanted = SHARDING.get(str(value).upper())
            cure = f"write `fsdp_reshard_after_forward: {wanted}`" if wanted else "write `fsdp_reshard_after_forward`"
        harmless = key != "fsdp_sharding_strategy" and str(value).lower() in ("false", "no_prefetch")
        if not harmless:
            reading.find("fsdp2-ignores-key", name=key, value=value, cure=cure)
        return False, value
    if version == 1 and key == "fsdp_reshard_after_forward" and str(value).upper() != "FULL_SHARD":
        if truth(value) is not None and not has_version:
            reading.find("fsdp-version-missing", name=key, value=str(value).lower())
        elif value is not True:
            reading.find("fsdp1-ignores-key", name=key, value=value)
        return value is True, value
    if key == "fsdp_transformer_layer_cls_to_wrap" and isinstance(value, list):
        reading.find("layer-class-list")
        return True, str(value)
    if version == 2 and key == "fsdp_state_dict_type" and value == "LOCAL_STATE_DICT":
        reading.find("local-state-dict")
    return True, value


def _deepspeed_key(reading: Reading, key: str, value: Any, section: dict[Any, Any]) -> bool:
    if key not in options():
        near = difflib.get_close_matches(key, options(), 1, 0.75)
        cure = f"write `{near[0]}`" if near else "move it into DeepSpeed's JSON"
        reading.find("yaml-unread-key", name=key, section="deepspeed_config", cure=cure)
        return False
    only_json = ("gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device")
    only_json += ("offload_param_device", "zero3_save_16bit_model")
    if section.get("deepspeed_config_file") and key in only_json:
        reading.find("deepspeed-file-wins", name=key)
    return True
