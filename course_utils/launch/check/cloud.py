"""The cloud files, each read by its service's own models where they are installed, else by stand-ins of them.

TrainJob: Kubeflow's models. SkyPilot: its ``Task``, or the JSON schema beside this file. SageMaker and Ray: the file
is executed, and what reaches ``ModelTrainer``, ``HuggingFace`` and ``TorchTrainer`` is compared (``stand_ins``). What
these files start in the end is compared with what torchrun.sh starts, or resolved as it is (``check_program``).
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from course_utils.gpus import GPUS
from course_utils.launch.check import program as check_program
from course_utils.launch.check.program import Program
from course_utils.launch.check.rows import Row, guarded
from course_utils.launch.check.scripts import Started, resolve
from course_utils.launch.check.stand_ins import record
from course_utils.launch.files import cloud
from course_utils.launch.spec import Spec

FIRST, PORT = "10.0.0.1", "23456"  # the first machine, as a cluster would name it
SAGEMAKER_OPTIONS = ("--image", "image", "--role", "role", "--checkpoints", "s3://bucket/c", "--data", "s3://bucket/d")


def rows(spec: Spec, folder: Path) -> list[Row]:
    """Every cloud file of ``folder``; a row "resolved by" names the tool and its version, or says "stand-in"."""
    found = guarded("trainjob.yaml", trainjob, spec, folder) + guarded("skypilot.yaml", skypilot, spec, folder)
    found += guarded("sagemaker_v3.py", sagemaker_v3, spec, folder)
    found += guarded("sagemaker_v2.py", sagemaker_v2, spec, folder)
    return found + guarded("ray_train.py", ray_train, spec, folder)


def tool_row(file: str, tool: str) -> Row:
    """Not a comparison: says whose models read the file."""
    return Row(file, "resolved by", tool, tool)


def trainjob(spec: Spec, folder: Path) -> Iterable[Row]:
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    file = "trainjob.yaml"
    written = yaml.safe_load((folder / file).read_text(encoding="utf-8"))
    job = TrainerV1alpha1TrainJob.from_dict(written)
    yield tool_row(file, f"kubeflow-trainer-api {importlib.metadata.version('kubeflow-trainer-api')}")
    yield Row(file, "keys that nobody reads", [], sorted(lost(written, job.to_dict())))
    yield Row(file, "apiVersion", "trainer.kubeflow.org/v1alpha1", job.api_version)
    yield Row(file, "kind", "TrainJob", job.kind)
    is_label = bool(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job.metadata.name))
    yield Row(file, "name is an RFC 1035 label", True, is_label)
    trainer = job.spec.trainer
    yield Row(file, "image", spec.image or None, trainer.image)
    yield Row(file, "nodes", spec.nodes, trainer.num_nodes)
    yield Row(file, "processes per node", spec.gpus_per_node, trainer.num_proc_per_node)
    limits = job.to_dict()["spec"]["trainer"].get("resourcesPerNode", {}).get("limits", {})
    asked = {"nvidia.com/gpu": spec.gpus_per_node} if spec.device == "cuda" else {}
    yield Row(file, "GPUs and network devices per node", asked | cloud.network_devices(spec), limits)
    yield Row(file, "time limit [s]", spec.time_limit * 60, job.spec.active_deadline_seconds)
    pod = job.spec.runtime_patches[0].training_runtime_spec.template.spec.replicated_jobs[0].template.spec.template.spec
    yield Row(file, "warning [s]", spec.warning, pod.termination_grace_period_seconds)
    output = f"{cloud.KUBERNETES_OUTPUT}/{cloud.job_name(spec)}"
    mounts = [mount.mount_path for mount in pod.containers[0].volume_mounts]
    security = pod.containers[0].security_context
    locked = bool(security and "IPC_LOCK" in (security.capabilities.add or []))
    yield Row(file, "memory may be locked", cloud.has_fast_network(spec), locked)
    yield Row(file, "output is on a volume", True, str(Path(output).parent) in mounts)
    command = [expanded(word) for word in [*trainer.command, *trainer.args]]
    rank = str(spec.nodes - 1)
    rendezvous = {"PET_NODE_RANK": rank, "PET_MASTER_ADDR": FIRST, "PET_MASTER_PORT": PORT}
    started = resolve_command(f"exec {shlex.join(command)}", folder, **rendezvous)
    extra = [f"--output_dir={output}"] if spec.trainer_flags else []
    yield from same_as_torchrun(spec, file, folder, started, PORT, extra)


def expanded(word: str) -> str:
    """``word`` after Kubernetes' ``$(NAME)`` expansion; names are unknown here, so a reference would show as a gap."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda found: "$" if found[0] == "$$" else "", word)


def lost(written: Any, read: Any, place: str = "") -> Iterable[str]:
    """Where ``read`` lacks what ``written`` says: Kubeflow's models drop unknown keys without a word."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from lost(value, read.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, value in enumerate(written):
            yield from lost(value, read[index], f"{place}[{index}]")
    elif written != read:
        yield place


def skypilot(spec: Spec, folder: Path) -> Iterable[Row]:
    file = "skypilot.yaml"
    task = yaml.safe_load((folder / file).read_text(encoding="utf-8"))
    tool, task = sky_task(folder / file, task)
    yield tool_row(file, tool)
    yield Row(file, "name", cloud.sky_name(spec), task["name"])
    yield Row(file, "nodes", spec.nodes, task["num_nodes"])
    resources = task["resources"]
    accelerators = f"{GPUS[spec.gpu].accelerator}:{spec.gpus_per_node}" if spec.device == "cuda" else None
    yield Row(file, "accelerators per node", accelerators, resources.get("accelerators"))
    yield Row(file, "image", f"docker:{spec.image}" if spec.image else None, resources.get("image_id"))
    tier = "best" if cloud.has_fast_network(spec) else None
    yield Row(file, "network between machines", tier, resources.get("network_tier"))
    seconds = re.search(r"--kill-after=(\d+) (\d+) ", task["run"])
    asked = [spec.warning, spec.time_limit * 60 - spec.warning]
    yield Row(file, "warning, time before it [s]", asked, [int(n) for n in seconds.groups()] if seconds else None)
    nodes = "\n".join([FIRST, *(f"10.0.1.{rank}" for rank in range(1, spec.nodes))])
    set_by_sky = {"SKYPILOT_NODE_RANK": str(spec.nodes - 1), "SKYPILOT_NODE_IPS": nodes}
    mounts = (task.get("file_mounts") or {}).items()  # place there -> folder here, or a bucket's settings
    root, here = root_of("", task["envs"], folder), folder.resolve()
    uploaded = [place for place, source in mounts if isinstance(source, str) and (root / source).resolve() == here]
    script = task["envs"]["TORCHRUN_SH"]
    yield Row(file, "script is uploaded", True, script in [f"{place}/torchrun.sh" for place in uploaded])
    started = resolve_command(task["run"], folder, **task["envs"], **set_by_sky)
    yield from same_as_torchrun(spec, file, folder, started, str(spec.port))


def sky_task(path: Path, written: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tool, and the task as SkyPilot itself understands it; with our schema where it is not installed."""
    try:
        tool = f"skypilot {importlib.metadata.version('skypilot')}"
    except importlib.metadata.PackageNotFoundError:
        import jsonschema

        schema = json.loads(Path(__file__).with_name("skypilot.schema.json").read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(schema).validate(written)
        return "skypilot stand-in", written
    code = "import sky, sys, json; print(json.dumps(sky.Task.from_yaml(sys.argv[1]).to_yaml_config()))"
    with tempfile.TemporaryDirectory() as home:  # importing sky writes into the home folder
        command = [sys.executable, "-c", code, str(path.resolve())]
        root = root_of("", written["envs"], path.parent)  # where it is started: paths are seen from there
        environment = {"HOME": home, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    task = json.loads(done.stdout.splitlines()[-1])
    resources = task["resources"]
    if isinstance(accelerators := resources.get("accelerators"), dict):  # kind -> number
        resources["accelerators"] = ",".join(f"{kind}:{number}" for kind, number in accelerators.items())
    if isinstance(images := resources.get("image_id"), dict):  # region -> image, here for any region
        resources["image_id"] = ",".join(images.values())
    task.setdefault("num_nodes", 1)
    return tool, task


def resolve_command(command: str, folder: Path, **environment: str) -> Started:
    """What a command of a YAML file starts, executed where its paths lead to ``folder`` (the project's root)."""
    with tempfile.TemporaryDirectory() as place:
        script = Path(place, "command.sh")
        script.write_text(f"cd -- {shlex.quote(str(root_of(command, environment, folder)))}\n{command}\n", "utf-8")
        return resolve(script, **environment)


def root_of(command: str, environment: dict[str, str], folder: Path) -> Path:
    """The folder above ``folder`` from which the command's path to torchrun.sh is right, else the one right above."""
    target = (folder / "torchrun.sh").resolve()
    words = [*environment.values(), *shlex.split(command, comments=True)]
    named = sorted((word for word in words if word.endswith("torchrun.sh")), key=len, reverse=True)  # not bash's $0
    roots = [root for word in named for root in target.parents if (root / word).resolve() == target]
    return roots[0] if roots else target.parent.parent


def same_as_torchrun(
    spec: Spec, file: str, folder: Path, started: Started, port: str, extra: Iterable[str] = ()
) -> Iterable[Row]:
    """``started`` on the last node is what torchrun.sh starts there, which has its own rows."""
    rendezvous = {"NODE_RANK": str(spec.nodes - 1), "MASTER_ADDR": FIRST, "MASTER_PORT": port}
    alone = resolve(folder / "torchrun.sh", **rendezvous)
    yield Row(file, "starts what torchrun.sh starts", [*alone.arguments, *extra], started.arguments)
    ignored = ("PET_", "SKYPILOT_", "TORCHRUN_SH", "WRITE_DOWN", "PATH", "PWD", "OLDPWD", "SHLVL", "_", *rendezvous)
    kept = [
        {name: value for name, value in one.environment.items() if not name.startswith(ignored)}
        for one in (alone, started)
    ]
    yield Row(file, "in the same environment", *kept)
    if spec.trainer_flags:
        yield Row(file, "effective batch", spec.effective_batch, effective_batch(spec, started.arguments))


def effective_batch(spec: Spec, words: list[str]) -> int:
    """Sequences per optimizer step on the spec's ranks; of two equal flags the last one counts, as in the program."""
    given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    numbers = [given.get(f"--{name}", 1) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    return int(numbers[0]) * int(numbers[1]) * spec.data_parallel_size


def sagemaker_v3(spec: Spec, folder: Path) -> Iterable[Row]:
    file = "sagemaker_v3.py"
    found = record(folder / file, *SAGEMAKER_OPTIONS, *instance_option(spec, cloud.instance_type(spec)))
    trainer = found["ModelTrainer"]
    yield tool_row(file, found["tool"])
    yield from instances(spec, file, cloud.instance_type(spec), trainer["compute"])
    yield Row(file, "processes per instance", spec.gpus_per_node, trainer["distributed"]["process_count_per_node"])
    limit = trainer["stopping_condition"]["max_runtime_in_seconds"]
    yield Row(file, "time limit [s]", spec.time_limit * 60, limit)
    yield Row(file, "checkpoints", ["s3://bucket/c", cloud.SAGEMAKER_CHECKPOINTS], list(by_name(trainer, "checkpoint")))
    channel = {"channel_name": "training", "data_source": "s3://bucket/d"}
    yield Row(file, "data", [channel], found["start"]["input_data_config"])
    source = trainer["source_code"]
    yield Row(file, "entry point", f"{folder.resolve().name}/sagemaker_entry.py", source["entry_script"])
    yield from entry(spec, folder, file, trainer["hyperparameters"])


def by_name(trainer: dict[str, Any], name: str) -> tuple[str, str]:
    config = trainer[f"{name}_config"]
    return config["s3_uri"], config["local_path"]


def sagemaker_v2(spec: Spec, folder: Path) -> Iterable[Row]:
    file = "sagemaker_v2.py"
    instance = cloud.sagemaker_v2_values(spec, "")["instance_type"]
    found = record(folder / file, *SAGEMAKER_OPTIONS, *instance_option(spec, instance))
    estimator = found["HuggingFace"]
    yield tool_row(file, found["tool"])
    yield from instances(spec, file, instance, estimator)
    yield Row(file, "started by torchrun", {"torch_distributed": {"enabled": True}}, estimator["distribution"])
    yield Row(file, "time limit [s]", spec.time_limit * 60, estimator["max_run"])
    checkpoints = [estimator["checkpoint_s3_uri"], estimator["checkpoint_local_path"]]
    yield Row(file, "checkpoints", ["s3://bucket/c", cloud.SAGEMAKER_CHECKPOINTS], checkpoints)
    yield Row(file, "data", [{"training": "s3://bucket/d"}], found["start"]["positional"])
    yield Row(file, "entry point", f"{folder.resolve().name}/sagemaker_entry.py", estimator["entry_point"])
    yield from entry(spec, folder, file, estimator["hyperparameters"])


def instance_option(spec: Spec, instance: str) -> tuple[str, ...]:
    """SageMaker does not offer every machine; the files then ask for one on the command line."""
    return () if instance else ("--instance-type", "ml.chosen.by.hand")


def instances(spec: Spec, file: str, instance: str, found: dict[str, Any]) -> Iterable[Row]:
    yield Row(file, "instance type", instance or "ml.chosen.by.hand", found["instance_type"])
    yield Row(file, "instances", spec.nodes, found["instance_count"])


def entry(spec: Spec, folder: Path, file: str, hyperparameters: dict[str, int]) -> Iterable[Row]:
    """The entry point, run as SageMaker does with these hyperparameters, up to the point where the program starts."""
    texts = {name: value for name, value in hyperparameters.items() if type(value) is not int}
    yield Row(file, "hyperparameters that are text", {}, texts)  # SDK 3 does not quote them
    with tempfile.TemporaryDirectory() as model_folder:
        machines = {"SM_HOSTS": json.dumps([f"algo-{rank + 1}" for rank in range(spec.nodes)])}
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(spec.world_size)}
        given = {"SM_HPS": json.dumps(hyperparameters), "SM_MODEL_DIR": model_folder}
        found = record(folder / "sagemaker_entry.py", environment=machines | ranks | given)["program"]
    tail = [f"--{name}={value}" for name, value in hyperparameters.items()]
    words, last = found["arguments"], len(found["arguments"]) - len(tail)
    name = f"sagemaker_entry.py from {file.removesuffix('.py')}"
    yield Row(name, "SM_HPS comes last", tail, words[last:])
    if spec.trainer_flags:
        yield Row(name, "effective batch with SM_HPS", spec.effective_batch, effective_batch(spec, words))
        steps = [word for word in words if word.startswith("--max_steps=")][-1:]
        yield Row(name, "optimizer steps with SM_HPS", [f"--max_steps={spec.max_steps}"], steps)
        spec = spec.but(output_dir=cloud.SAGEMAKER_CHECKPOINTS)
    environment = {key: value for key, value in found["environment"].items() if key not in given | machines | ranks}
    program = Program(name, found["name"], found["is_module"], words[:last], environment, spec.world_size)
    yield from check_program.rows(spec, program)


def ray_train(spec: Spec, folder: Path) -> Iterable[Row]:
    file = "ray_train.py"
    found = record(folder / file, "--storage", "s3://bucket/ray")
    trainer = found["TorchTrainer"]
    yield tool_row(file, found["tool"])
    scaling, run = trainer["scaling_config"], trainer["run_config"]
    yield Row(file, "workers", spec.world_size, scaling["num_workers"])
    yield Row(file, "GPUs", spec.device == "cuda", scaling["use_gpu"])
    yield Row(file, "backend", "gloo" if spec.device == "cpu" else "nccl", trainer["torch_config"]["backend"])
    yield Row(file, "storage", "s3://bucket/ray", run["storage_path"])
    yield Row(file, "restarts after a lost machine", spec.max_restarts or 3, run["failure_config"]["max_failures"])
    program = found["program"]  # what a worker runs
    yield from check_program.rows(spec, Program(file, **program, world_size=scaling["num_workers"]))
