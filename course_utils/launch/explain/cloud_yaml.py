"""SkyPilot tasks and Kubeflow TrainJobs: read by the service's own models or names, their commands as shell text."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from typing import Any

from course_utils.launch.check.cloud import lost
from course_utils.launch.explain import environment, shell_script
from course_utils.launch.explain.reading import Open, Reading, number

# SkyPilot 0.14, sky/utils/schemas.py: top level and resources
SKY = set(
    [
        "name",
        "workdir",
        "event_callback",
        "num_nodes",
        "file_mounts",
        "file_mounts_mapping",
        "setup",
        "run",
        "envs",
        "secrets",
        "inputs",
        "outputs",
        "resources",
        "service",
        "pool",
        "config",
        "experimental",
        "volumes",
        "volume_mounts",
        "api_server",
        "priority",
        "_metadata",
        "_user_specified_yaml",
        "_policy_mutated_yaml",
    ]
)
SKY_RESOURCES = set(
    [
        "accelerators",
        "accelerator_args",
        "any_of",
        "autostop",
        "cloud",
        "cpus",
        "disk_size",
        "disk_tier",
        "image_id",
        "infra",
        "instance_type",
        "job_recovery",
        "labels",
        "local_disk",
        "max_hourly_cost",
        "memory",
        "network_tier",
        "ordered",
        "ports",
        "priority",
        "priority_class",
        "region",
        "spot_recovery",
        "use_spot",
        "zone",
        "_cluster_config_overrides",
        "_docker_login_config",
        "_docker_username_for_runpod",
        "_is_image_managed",
        "_no_missing_accel_warnings",
        "_requires_fuse",
    ]
)
OLD_KINDS = ("PyTorchJob", "MPIJob", "TFJob", "XGBoostJob")


def is_sky(content: dict[str, Any]) -> bool:
    return "run" in content and bool({"resources", "num_nodes", "setup", "workdir", "envs"} & set(content))


def sky(reading: Reading, content: dict[str, Any]) -> None:
    reading.kind = "SkyPilot task"
    resources = content.get("resources")
    resources = resources if isinstance(resources, dict) else {}
    for place, known, values in (("", SKY, content), ("resources.", SKY_RESOURCES, resources)):
        for key, value in values.items():
            if key in known:
                if not isinstance(value, dict) and key not in ("run", "setup"):
                    reading.set(f"{place}{key}", value, value, "SkyPilot")
                continue
            near = difflib.get_close_matches(str(key), known, 1, 0.7)
            cure = f"write `{near[0]}`" if near else "delete it"
            reading.set(f"{place}{key}", value, "refused", "SkyPilot")
            reading.find("sky-unknown-key", name=f"{place}{key}", cure=cure)
    nodes = number(content.get("num_nodes", 1))
    if nodes is None:
        reading.find(
            "bad-value", name="num_nodes", value=content.get("num_nodes"), tool="SkyPilot", allowed="a whole number"
        )
    reading.know("nodes", nodes, "num_nodes")
    accelerators = str(resources.get("accelerators", ""))
    reading.know(
        "gpus_per_node", number(accelerators.rpartition(":")[2]) if ":" in accelerators else None, "accelerators"
    )
    run, envs = content.get("run"), content.get("envs")
    run = run if isinstance(run, str) else ""
    if isinstance(nodes, int) and nodes > 1 and not ("SKYPILOT_NODE_RANK" in run or "SKYPILOT_NODE_IPS" in run):
        reading.find("sky-alone", nodes=nodes)
    known = {str(key): str(value) for key, value in envs.items()} if isinstance(envs, dict) else {}
    known |= {"SKYPILOT_NUM_NODES": str(nodes)} if nodes else {}
    if gpus := reading.fact("gpus_per_node"):
        known["SKYPILOT_NUM_GPUS_PER_NODE"] = str(gpus)
    shell_script.commands(reading, run, known)


def is_trainjob(content: dict[str, Any]) -> bool:
    return content.get("kind") in ("TrainJob", *OLD_KINDS)


def trainjob(reading: Reading, content: dict[str, Any]) -> None:
    reading.kind = str(content["kind"])
    if content["kind"] in OLD_KINDS:
        reading.find("pytorchjob", kind=content["kind"])
        for command in _commands(content):
            shell_script.commands(reading, command, {})
        return
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    try:
        job = TrainerV1alpha1TrainJob.from_dict(content)
        read = job.to_dict() if job else {}
    except Exception as error:  # pydantic's, or an attribute error on an odd shape
        said = " ".join(str(error).split())[:160]
        reading.find("trainjob-refused", error=said or type(error).__name__)
        return
    gone = [place for place in lost(content, read) if not place.startswith("metadata")]
    for place in gone:
        reading.find("trainjob-unread", name=place)
    trainer = (read.get("spec") or {}).get("trainer") or {}
    for key, value in trainer.items():
        if not isinstance(value, list | dict):
            reading.set(f"trainer.{key}", value, value, "Kubeflow")
    limits = ((trainer.get("resourcesPerNode") or {}).get("limits")) or {}
    gpus = number(limits.get("nvidia.com/gpu"), float)  # a quantity in Kubernetes
    gpus = int(gpus) if gpus else None
    processes = number(trainer.get("numProcPerNode"))
    if gpus and processes and gpus != processes:
        reading.find("gpus-not-processes", processes=processes, gpus=gpus)
    reading.know("nodes", number(trainer.get("numNodes")), "numNodes")
    reading.know("gpus_per_node", gpus, "nvidia.com/gpu")
    reading.know("processes_per_node", processes, "numProcPerNode")
    pet = {
        f"PET_{name}": Open(f"$PET_{name}", (f"PET_{name}",)) for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    pet |= {
        "PET_NNODES": str(trainer.get("numNodes", 1)),
        "PET_NPROC_PER_NODE": str(trainer.get("numProcPerNode", "auto")),
    }
    given = trainer.get("env") or []
    given = {str(one.get("name")): str(one["value"]) for one in given if isinstance(one, dict) and "value" in one}
    words = [str(word) for word in [*(trainer.get("command") or []), *(trainer.get("args") or [])]]
    if words[1:2] == ["-c"] and len(words) > 2:
        shell_script.commands(reading, words[2], pet | given)
    elif words:
        shell_script.commands(reading, shlex.join(words), pet | given)
    else:
        environment.judge(reading, given)


def _commands(content: Any) -> Iterator[str]:
    """The container commands anywhere in an older job."""
    if isinstance(content, dict):
        words = [*(content.get("command") or [])] if isinstance(content.get("command"), list) else []
        words += content["args"] if isinstance(content.get("args"), list) else []
        if words:
            texts = [str(word) for word in words]
            yield texts[2] if texts[1:2] == ["-c"] and len(texts) > 2 else shlex.join(texts)
        for value in content.values():
            yield from _commands(value)
    elif isinstance(content, list):
        for value in content:
            yield from _commands(value)
