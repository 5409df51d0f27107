"""What the cloud templates print: names that each service accepts, machines it offers, and numbers it may change.

The files for SageMaker, Kubernetes, SkyPilot and Ray hold no account, bucket, role or token: those are arguments or
environment variables of whoever starts them.
"""

from __future__ import annotations

import re
from typing import Any

from course_utils.gpus import GPUS
from course_utils.launch.files import why
from course_utils.launch.spec import Spec, arguments, settings

CPU_INSTANCE = "ml.c5.4xlarge"  # 16 processor cores: the rehearsal

SAGEMAKER_CHECKPOINTS = "/opt/ml/checkpoints"  # SageMaker keeps this folder and an S3 prefix equal, both ways
KUBERNETES_OUTPUT = "/output"  # where the TrainJob mounts its claim
LEFT_AT_HOME = (".git", ".venv", ".env", "__pycache__", ".cache", ".ipynb_checkpoints", "runs", "ray_results", "wandb")


def job_name(spec: Spec) -> str:
    """The job's name as an RFC 1035 label (Kubernetes, SageMaker), short enough for what they append to it."""
    name = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"job-{name}"
    return name[:40].rstrip("-")


def sky_name(spec: Spec) -> str:
    """The job's name as SkyPilot accepts it: at most two of ``. _ -`` in a row, none at the end."""
    return re.sub(r"([._-]{2})[._-]+", r"\1", spec.name).rstrip("._-")


def instance_type(spec: Spec) -> str:
    """The SageMaker instance of one machine of the spec; empty where there is none (see ``no_instance``)."""
    return CPU_INSTANCE if spec.device == "cpu" else GPUS[spec.gpu].instances.get(spec.gpus_per_node, "")


def no_instance(spec: Spec) -> str:
    """Why ``instance_type`` is empty, in one sentence; empty where it is not.

    The spec is good elsewhere, so this is no ``SpecError``: the other files are written, and SageMaker's say this when
    they are started without ``--instance-type``.
    """
    if instance_type(spec):
        return ""
    offered = " or ".join(str(number) for number in GPUS[spec.gpu].instances)
    return (
        f"gpus_per_node={spec.gpus_per_node} is not offered by SageMaker with gpu={spec.gpu!r}; "
        f"allowed: {offered}, or --instance-type with an instance of your choice"
    )


def hyperparameters(spec: Spec) -> dict[str, int]:
    """The numbers that a tuning job or SageMaker's console may change; text stays in the entry point.

    SDK 3 writes hyperparameters into a shell script between single quotes without escaping them
    (``sagemaker/train/container_drivers/scripts/environment.py``): a quote in a text would end up as commands.
    """
    if not spec.trainer_flags:
        return {}
    return {
        "per_device_train_batch_size": spec.micro_batch,
        "gradient_accumulation_steps": spec.accumulation_steps,
        "max_steps": spec.max_steps,
    }


def sagemaker_values(spec: Spec, folder: str) -> dict[str, Any]:
    return {
        "job": job_name(spec),
        "instance_type": instance_type(spec),
        "no_instance": no_instance(spec),
        "hyperparameters": hyperparameters(spec),
        "checkpoints": SAGEMAKER_CHECKPOINTS,
        "left_at_home": list(LEFT_AT_HOME),
    }


def sagemaker_v2_values(spec: Spec, folder: str) -> dict[str, Any]:
    """SDK 2 starts one process per GPU, and knows no other number: no rehearsal on a CPU."""
    found = sagemaker_values(spec, folder)
    if spec.device == "cpu":
        found["instance_type"] = ""
        found["no_instance"] = "device='cpu' is not for SDK 2, which counts GPUs; allowed: sagemaker_v3.py"
    return found


def entry_values(spec: Spec, folder: str) -> dict[str, Any]:
    """SageMaker's entry point: output goes to the folder that SageMaker copies to S3."""
    there = spec.but(output_dir=SAGEMAKER_CHECKPOINTS) if spec.trainer_flags else spec
    return _program_values(there) | {"stop_after": spec.time_limit * 60 - spec.warning}


def ray_values(spec: Spec, folder: str) -> dict[str, Any]:
    return _program_values(spec)


def _program_values(spec: Spec) -> dict[str, Any]:
    """The program and its arguments, for files that run it inside their own process (``_program.py.j2``)."""
    kind = "fsdp" if spec.is_fsdp else "deepspeed" if spec.is_deepspeed else ""
    variables = settings.environment_variables(spec, "torchrun")
    config_variable = variables.pop("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    return {
        "job": job_name(spec),
        "program": arguments.program(spec),
        "flags": arguments.flags(spec),
        "config_flags": kind if arguments.config_flags(spec) else "",
        "variables": variables,
        "reasons": why.VARIABLES,
        "config_variable": config_variable,
    }


def has_fast_network(spec: Spec) -> bool:
    """Whether a network that goes around the operating system was asked for, between several machines with GPUs."""
    return spec.nodes > 1 and spec.device == "cuda" and spec.network_kind in ("infiniband", "roce", "efa")


def network_devices(spec: Spec) -> dict[str, int]:
    """What one machine's pod asks for besides GPUs: resource -> how many; for one machine nothing."""
    if spec.nodes == 1 or spec.device == "cpu":
        return {}
    return {name: int(number) for name, number in (device.split("=") for device in spec.network_devices)}


def trainjob_values(spec: Spec, folder: str) -> dict[str, Any]:
    # Kubernetes replaces $(NAME) in arguments; $$ is its way to write a dollar sign.
    script = f"{folder}/torchrun.sh".replace("$", "$$")
    return {
        "job": job_name(spec),
        "script": script,
        "fast_network": has_fast_network(spec),
        "devices": network_devices(spec),
        "mount": KUBERNETES_OUTPUT,
        "output": f"{KUBERNETES_OUTPUT}/{job_name(spec)}",
    }


def skypilot_values(spec: Spec, folder: str) -> dict[str, Any]:
    return {"job": sky_name(spec), "accelerator": GPUS[spec.gpu].accelerator, "script": f"{folder}/torchrun.sh"} | {
        "fast_network": has_fast_network(spec)
    }
