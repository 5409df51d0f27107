"""Execute a generated Python launch file where its service is not, and write down what would reach the service.

    python stand_ins.py sagemaker_v3.py --image IMAGE --checkpoints s3://bucket/folder

Of the tool's package whatever is installed is used, so that its own models validate the values; only the classes that
would start something are replaced by ones that write down their arguments. Where the package is missing, every name
imported from it is a stand-in that accepts the keywords in ``ACCEPTED`` and no others. Prints JSON. Runs in a process
of its own (``record``): the files change their environment and import path.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Keywords each class takes, read from sagemaker 3.27.0, sagemaker 2.257.7 and ray 2.60.0.
ACCEPTED = {
    "sagemaker.train.ModelTrainer": """training_mode sagemaker_session role base_job_name input_s3_key_prefix
        source_code distributed compute networking stopping_condition training_image algorithm_name
        training_image_config
        output_data_config input_data_config checkpoint_config training_input_mode environment hyperparameters tags
        local_container_root model_package_config""",
    "sagemaker.train.distributed.Torchrun": "process_count_per_node smp",
    "sagemaker.core.training.configs.SourceCode": """source_dir requirements entry_script command args
        ignore_patterns""",
    "sagemaker.core.training.configs.Compute": """instance_type instance_count volume_size_in_gb volume_kms_key_id
        keep_alive_period_in_seconds instance_groups training_plan_arn instance_placement_config instance_preferences
        enable_managed_spot_training""",
    "sagemaker.core.training.configs.StoppingCondition": """max_runtime_in_seconds max_wait_time_in_seconds
        max_pending_time_in_seconds""",
    "sagemaker.core.training.configs.CheckpointConfig": "s3_uri local_path",
    "sagemaker.core.training.configs.InputData": "channel_name data_source content_type",
    "sagemaker.huggingface.HuggingFace": """py_version entry_point transformers_version tensorflow_version
        pytorch_version source_dir hyperparameters image_uri distribution role instance_count instance_type
        volume_size max_run base_job_name checkpoint_s3_uri checkpoint_local_path environment sagemaker_session""",
    "ray.train.ScalingConfig": """num_workers use_gpu resources_per_worker placement_strategy accelerator_type use_tpu
        topology label_selector trainer_resources elastic_resize_monitor_interval_s""",
    "ray.train.RunConfig": """name storage_path storage_filesystem failure_config checkpoint_config callbacks
        worker_runtime_env logging_config""",
    "ray.train.FailureConfig": "max_failures controller_failure_limit fail_fast",
    "ray.train.torch.TorchConfig": "backend init_method timeout_s",
    "ray.train.torch.TorchTrainer": """train_loop_config torch_config scaling_config run_config datasets
        dataset_config metadata resume_from_checkpoint""",
}
STARTERS = ("ModelTrainer", "HuggingFace", "TorchTrainer")  # never the real ones: they would ask the service
VERSIONS = {"sagemaker_v3.py": ("sagemaker", "3"), "sagemaker_v2.py": ("sagemaker", "2"), "ray_train.py": ("ray", "2")}

KEPT = ("PATH", "HOME", "LANG", "PYTHONIOENCODING", "LC_CTYPE")  # this process's own environment

recorded: dict[str, Any] = {}


def stand_in(name: str) -> type:
    """A class that takes the keywords of the real one and writes its arguments down, as well as those of its start."""
    accepted = set(ACCEPTED[name].split())
    short = name.rpartition(".")[2]

    class StandIn:
        def __init__(self, *positional: Any, **keywords: Any) -> None:
            if unknown := sorted(set(keywords) - accepted):
                raise TypeError(f"{short}() got an unexpected keyword argument {unknown[0]!r}")
            self.positional, self.keywords = positional, keywords
            if short in STARTERS:
                recorded[short] = keywords

        def start(self, *positional: Any, **keywords: Any) -> None:
            recorded["start"] = {"positional": positional, **keywords}
            if short == "TorchTrainer":  # one worker, in the environment Ray was asked to give it
                os.environ.update(recorded["init"]["runtime_env"]["env_vars"])
                self.positional[0](self.keywords["train_loop_config"])

        train = fit = start

    StandIn.__name__ = short
    return StandIn


def install(tool: str) -> None:
    """Put stand-ins for ``tool`` where the file's imports find them; modules that exist keep all but the starters."""
    for full_name in ACCEPTED:
        place, _, short = full_name.rpartition(".")
        if place.split(".")[0] != tool.split(" ")[0]:
            continue
        if "stand-in" in tool:
            parts = place.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                sys.modules.setdefault(name, ModuleType(name))
                if end > 1:
                    setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[name])
            setattr(sys.modules[place], short, stand_in(full_name))
        elif short in STARTERS:
            with contextlib.suppress(ImportError):  # of the other generation of the SDK
                setattr(importlib.import_module(place), short, stand_in(full_name))
    if tool.startswith("ray"):
        sys.modules["ray"].init = lambda **keywords: recorded.__setitem__("init", keywords)


def installed(file: str) -> str:
    """``"ray 2.60.0"`` if the generation of the tool that ``file`` is for is installed, else ``"ray stand-in"``."""
    package, generation = VERSIONS[file]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(package)
        if version.split(".")[0] == generation and importlib.util.find_spec(package):
            return f"{package} {version}"
    return f"{package} stand-in"


def plain(value: Any) -> Any:
    """What JSON has no word for: models and stand-ins as their fields, anything else as its name."""
    if hasattr(value, "keywords"):
        return value.keywords
    if hasattr(value, "model_dump"):
        return {name: getattr(value, name) for name in value.model_fields_set}
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return getattr(value, "__name__", None) or str(type(value).__name__)


def write_down_programs() -> None:
    """The entry point and Ray's workers run a program in their own process: write down which, with what, instead."""

    def write_down(program: str, is_module: bool) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in KEPT}
        found = {"name": program, "is_module": is_module, "arguments": sys.argv[1:], "environment": environment}
        recorded["program"] = found

    runpy.run_module = lambda name, **options: write_down(name, True)
    runpy.run_path = lambda name, **options: write_down(name, False)


def main(path: str, *options: str) -> None:
    file, run_path = Path(path).name, runpy.run_path
    sys.argv = [path, *options]
    if file in VERSIONS:
        recorded["tool"] = installed(file)
        install(recorded["tool"])
        shutil.copytree = lambda source, target, **options: target  # of the whole project, for an upload
    write_down_programs()
    with contextlib.redirect_stdout(io.StringIO()):
        run_path(path, run_name="__main__")
    print(json.dumps(recorded, default=plain))


def record(path: Path, *options: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What executing ``path`` in the folder above its own, with ``options`` and ``environment``, hands to its service.

    Raises:
        RuntimeError: the file ended with an error; the message is the last line of what it said.
    """
    known = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = path.resolve()
    done = subprocess.run(
        [sys.executable, __file__, str(path), *options],
        cwd=path.parent.parent,
        env=known | {"PYTHONIOENCODING": "utf-8"} | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its module names are not for launch files to import
    main(*sys.argv[1:])
