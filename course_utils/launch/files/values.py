"""What the templates of the core files print besides ``spec`` and ``folder``."""

from __future__ import annotations

from typing import Any

from course_utils.launch.files import preflight, why
from course_utils.launch.spec import Spec, arguments, settings


def spec_yaml(spec: Spec, folder: str) -> dict[str, Any]:
    values = spec.model_dump(mode="json")
    return {
        "fields": [
            (name, values[name], _meaning(field.description, field.json_schema_extra["unit"]))
            for name, field in Spec.model_fields.items()
        ]
    }


def _meaning(description: str, unit: str) -> str:
    return f"[{unit}] {description}" if unit else description


def accelerate_yaml(spec: Spec, folder: str) -> dict[str, Any]:
    return {"lines": list(why.yaml_lines(settings.accelerate_config(spec, folder), spec))}


def fsdp_json(spec: Spec, folder: str) -> dict[str, Any]:
    return {"config": settings.fsdp_config(spec)}


def deepspeed_json(spec: Spec, folder: str) -> dict[str, Any]:
    return {"config": settings.deepspeed_config(spec)}


def script(launcher: str, spec: Spec) -> dict[str, Any]:
    """A shell script of one launcher. Paths into its folder are not values: the script finds them beside itself."""
    variables = settings.environment_variables(spec, launcher) | settings.recorder_variables(spec)
    config_variable = variables.pop("ACCELERATE_DEEPSPEED_CONFIG_FILE", None)
    kind = "fsdp" if spec.is_fsdp else "deepspeed" if spec.is_deepspeed else ""
    config_flags = kind if arguments.config_flags(spec, launcher) else ""
    # torchrun fills in string.Template's names (torch.distributed.elastic.utils.api.macros), and so does accelerate,
    # which starts it, except for a single process. deepspeed hands words on as they are.
    doubles = launcher == "torchrun" or (launcher == "accelerate" and settings.starts_torchrun(spec))
    return {
        "launcher": launcher,
        "doubles": doubles,
        "here": "${HERE//[$]/$dollars}" if doubles else "$HERE",
        "several": spec.nodes > 1,
        "uses_here": bool(config_flags or config_variable or launcher != "torchrun" or preflight.applies(spec)),
        "preflight": preflight.words(spec) if preflight.applies(spec) else [],
        "reasons": why.VARIABLES,
        "restarts": settings.restarts_by_launcher(spec),
        "variables": list(variables.items()),
        "config_variable": config_variable,
        "program": arguments.program(spec),
        "flags": arguments.flags(spec),
        "config_flags": config_flags,
    }


def torchrun_sh(spec: Spec, folder: str) -> dict[str, Any]:
    return script("torchrun", spec)


def accelerate_sh(spec: Spec, folder: str) -> dict[str, Any]:
    return script("accelerate", spec)


def deepspeed_sh(spec: Spec, folder: str) -> dict[str, Any]:
    return script("deepspeed", spec)


def slurm_sbatch(spec: Spec, folder: str) -> dict[str, Any]:
    """What the containers need: pyxis wants # between registry and image; a file of an image has no registry."""
    first, _, rest = spec.image.partition("/")
    is_file = first in ("", ".", "..") or spec.image.endswith((".sqsh", ".sif"))
    has_registry = rest and ("." in first or ":" in first or first == "localhost")
    return {
        "ports": settings.slurm_ports(spec),
        "pyxis_image": f"{first}#{rest}" if has_registry and not is_file else spec.image,
        "apptainer_image": spec.image if is_file else f"docker://{spec.image}",
    }


def hostfile(spec: Spec, folder: str) -> dict[str, Any]:
    """One machine without a name is this one."""
    return {"hosts": spec.host_names if spec.nodes > 1 or spec.hosts else ("localhost",)}


def readme(spec: Spec, folder: str) -> dict[str, Any]:
    if spec.is_deepspeed:
        rows = why.json_rows(settings.deepspeed_config(spec), why.DEEPSPEED)
    else:
        rows = why.json_rows(settings.fsdp_config(spec), why.FSDP) if spec.is_fsdp else ()
    name = "deepspeed.json" if spec.is_deepspeed else "fsdp.json"
    is_ours = spec.trainer_flags and arguments.is_one_of(spec, [arguments.FINETUNE])
    data = arguments.data_of(spec) if is_ours else ""
    return {
        "several": spec.nodes > 1,
        "preflight": preflight.applies(spec),
        "recorder": settings.RECORDER_PREFIX if settings.recorder_variables(spec) else "",
        "ports": settings.slurm_ports(spec),
        "json_name": name,
        "json_rows": list(rows),
        "data": data,
    }
