"""torchrun.sh, accelerate.sh + accelerate.yaml, deepspeed.sh + hostfile + deepspeed.json, each read by its launcher."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from course_utils.launch.check import program as check_program
from course_utils.launch.check.program import Program
from course_utils.launch.check.rows import Row, guarded
from course_utils.launch.check.scripts import Started, resolve
from course_utils.launch.files import preflight
from course_utils.launch.spec import Spec, overrides, settings
from course_utils.launch.spec.silent import TRAINER_FILLS

MASTER = {"MASTER_ADDR": "first.machine", "MASTER_PORT": "23456"}  # as a scheduler would set them


def rows(spec: Spec, folder: Path, fills_auto: bool = False) -> list[Row]:
    """Every core file of ``folder`` that ``spec`` has; ``fills_auto``: "auto" is fine where the Trainer fills it in."""
    found = guarded("torchrun.sh", _torchrun, spec, folder) + guarded("accelerate.sh", _accelerate, spec, folder)
    if spec.is_deepspeed:
        found += guarded("deepspeed.json", _deepspeed_json, spec, folder, fills_auto)
        found += guarded("deepspeed.sh", _deepspeed, spec, folder)
    return found


def _last_node(spec: Spec, script: Path) -> Started:
    """The script as started on the last machine: a rank that is not the default shows whether it arrives."""
    return resolve(script, NODE_RANK=str(spec.nodes - 1), **MASTER)


def _torchrun(spec: Spec, folder: Path) -> Iterable[Row]:
    from torch.distributed.run import parse_args

    started = _last_node(spec, folder / "torchrun.sh")
    yield Row("torchrun.sh", "launcher", "torchrun", started.arguments[0])
    yield from _preflight(spec, "torchrun.sh", started)
    yield from _elastic(spec, "torchrun.sh", parse_args(started.arguments[1:]), started.environment)


def _preflight(spec: Spec, file: str, started: Started) -> Iterable[Row]:
    """What looks at the machines before training: on as many processes, with what the plan assumes."""
    from torch.distributed.run import parse_args

    asked = preflight.words(spec) if preflight.applies(spec) else []
    if not started.preflight:
        yield Row(file, "preflight", asked, [])
        return
    args = parse_args(list(started.preflight[1:]))
    words = arriving(args.training_script_args)
    yield Row(file, "preflight", asked, words[: words.index("--program")] if "--program" in words else words)
    ranks = [int(args.nnodes), int(args.nproc_per_node)]
    yield Row(file, "preflight on machines x processes", [spec.nodes, spec.gpus_per_node], ranks)


def arriving(words: list[str]) -> list[str]:
    """The words as torchrun's agent hands them to a rank: it fills in ``${local_rank}``, and ``$$`` becomes ``$``."""
    from torch.distributed.elastic.utils.api import macros

    return macros.substitute(words, "0")


def _elastic(spec: Spec, file: str, args: Any, environment: dict[str, str], by_torchrun: bool = True) -> Iterable[Row]:
    """torchrun's own reading of its options (accelerate fills in the same ones), and then the program's."""
    from torch.distributed.run import config_from_args

    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"} | environment, clear=True):
        config, _, words = config_from_args(args)
    yield Row(file, "nodes", spec.nodes, config.max_nodes if config.min_nodes == config.max_nodes else None)
    yield Row(file, "processes per node", spec.gpus_per_node, config.nproc_per_node)
    if spec.nodes > 1:
        yield Row(file, "rendezvous", "static", config.rdzv_backend)
        yield Row(file, "rank of the last node", spec.nodes - 1, config.rdzv_configs.get("rank"))
        yield Row(file, "first node", ":".join(MASTER.values()), config.rdzv_endpoint)
    else:
        alone = bool(args.standalone) or file == "accelerate.sh"  # which was given a free port
        yield Row(file, "any free port", True, alone)
    yield Row(file, "restarts after a crash", settings.restarts_by_launcher(spec), config.max_restarts)
    logs = config.logs_specs
    yield Row(file, "log of each rank", spec.log_dir or None, args.log_dir)
    tee = "ALL" if spec.log_dir else "NONE"
    yield Row(file, "streams in it", tee, getattr(logs._tee, "name", str(logs._tee)))
    is_module = bool(args.module)
    program = words[words.index(args.training_script) + 1 :]  # what stands before it is for python: -u -m
    name = args.training_script
    if by_torchrun:
        name, *program = arriving([name, *program])
    world_size = config.max_nodes * config.nproc_per_node
    found = Program(file, name, is_module, program, environment, world_size)
    yield from check_program.rows(spec, found)


@contextlib.contextmanager
def _environment(environment: dict[str, str]) -> Iterator[None]:
    """The script's environment; whether the port is taken on this machine says nothing about the cluster."""
    taken = mock.patch("accelerate.utils.launch.is_port_in_use", return_value=False)
    with mock.patch.dict(os.environ, environment, clear=True), taken:
        yield


def _accelerate(spec: Spec, folder: Path) -> Iterable[Row]:
    """As ``accelerate.commands.launch.launch_command`` goes about it, up to the point where it starts processes."""
    import torch.distributed.run
    from accelerate.commands import launch as tool
    from accelerate.utils import launch as prepare

    file = "accelerate.sh"
    started = _last_node(spec, folder / file)
    yield Row(file, "launcher", ["accelerate", "launch"], started.arguments[:2])
    yield from _preflight(spec, file, started)
    with _environment(started.environment):
        parser = tool.launch_command_parser()
        args, defaults, from_config = tool._validate_launch_command(parser.parse_args(started.arguments[2:]))
        yield from _ignored(spec, args, defaults, parser)
        by_torchrun = bool(args.use_deepspeed or args.use_fsdp or args.multi_gpu)
        if args.use_deepspeed:
            fields = [*defaults.deepspeed_config, *(["mixed_precision"] if from_config else [])]
            args.deepspeed_fields_from_accelerate_config = ",".join(fields)
            command, environment = prepare.prepare_deepspeed_cmd_env(args)
            yield Row("accelerate.yaml", "each machine starts its own ranks", None, command)
        elif args.use_fsdp or args.multi_gpu:
            environment = prepare.prepare_multi_gpu_env(args)
        else:
            command, environment = prepare.prepare_simple_launcher_cmd_env(args)
            args.nproc_per_node, args.nnodes = "1", "1"
    if spec.nodes > 1:
        yield Row(file, "same_network", True, args.same_network)
    script = ["--training_script", args.training_script, "--training_script_args", args.training_script_args]
    elastic = prepare._filter_args(args, torch.distributed.run.get_args_parser(), script)
    yield from _elastic(spec, file, elastic, environment, by_torchrun)


def _ignored(spec: Spec, args: Any, config: Any, parser: Any) -> Iterable[Row]:
    """Settings of the YAML file that accelerate accepts and does not use."""
    file = "accelerate.yaml"
    known = {action.dest for action in parser._actions}
    sections = (config.fsdp_config, config.parallelism_config, config.deepspeed_config)
    unread = [key for section in sections for key in section if key not in known]
    yield Row(file, "keys that nobody reads", [], unread)
    written = yaml.safe_load(Path(args.config_file).read_text(encoding="utf-8"))
    overridden = [
        name
        for name, value in written.items()
        if name in ("rdzv_backend", "same_network")  # the command line's defaults win over them
        or (hasattr(args, name) and name not in args.nondefault and getattr(args, name) != value)
    ]
    yield Row(file, "settings that are ignored", [], overridden)
    yield Row(file, "processes divide by machines", 0, args.num_processes % args.num_machines)


def _filled(spec: Spec, config: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """``config`` with "auto" as ``HfTrainerDeepSpeedConfig`` replaces it, and the places that nobody fills in.

    What it takes from the model or the schedule is a 1 here: the spec says nothing about it.
    """
    known = {
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": spec.accumulation_steps,
        "train_batch_size": spec.effective_batch,
        "gradient_clipping": overrides.gradient_clipping(spec),
        "bf16.enabled": spec.precision.startswith("bf16"),
        "fp16.enabled": spec.precision == "fp16",
    }
    found: dict[str, Any] = {}
    open_places: list[str] = []
    for name, value in config.items():
        place = f"{prefix}{name}"
        if isinstance(value, dict):
            found[name], inner = _filled(spec, value, f"{place}.")
            open_places += inner
        elif value != "auto":
            found[name] = value
        elif place in TRAINER_FILLS and spec.trainer_flags:
            found[name] = known.get(place, 1)
        else:
            open_places.append(place)
    return found, open_places


def _deepspeed_json(spec: Spec, folder: Path, fills_auto: bool) -> Iterable[Row]:
    """``DeepSpeedConfig`` on as many ranks as the spec has, without a single one."""
    from deepspeed.runtime import config as deepspeed_config

    file = "deepspeed.json"
    text = (folder / file).read_text(encoding="utf-8")
    written, nobody = _filled(spec, json.loads(text))
    yield Row(file, '"auto" values', 0, len(nobody) if fills_auto else text.count('"auto"'))
    if nobody:
        yield Row(file, '"auto" that nobody fills in', [], nobody)
    with mock.patch.multiple(deepspeed_config.dist, get_rank=lambda *_: 0, get_world_size=lambda *_: spec.world_size):
        config = deepspeed_config.DeepSpeedConfig(written)
    yield Row(file, "train_batch_size", spec.effective_batch, config.train_batch_size)
    yield Row(file, "micro batch", spec.micro_batch, config.train_micro_batch_size_per_gpu)
    yield Row(file, "accumulation", spec.accumulation_steps, config.gradient_accumulation_steps)
    yield Row(file, "gradient clipping", overrides.gradient_clipping(spec), config.gradient_clipping)
    yield Row(file, "ZeRO stage", int(spec.strategy[-1]), int(config.zero_optimization_stage))
    zero, bf16 = config.zero_config, config.bfloat16_config
    places = [
        getattr(place.device, "value", place.device) if place else "none"  # an enumeration, or its text
        for place in (zero.offload_optimizer, zero.offload_param)
    ]
    asked = ["cpu" if spec.offload != "none" else "none", "cpu" if spec.offload == "all" else "none"]
    yield Row(file, "optimizer and parameters offloaded to", asked, places)
    yield Row(file, "bf16", spec.precision.startswith("bf16"), bf16.enabled)
    yield Row(file, "bf16 alone", spec.precision == "bf16_weights", bf16.bf16_master_weights_and_grads)
    yield Row(file, "bf16 optimizer state", spec.precision == "bf16_weights", bf16.bf16_optimizer_states)
    yield Row(file, "fp16", spec.precision == "fp16", config.float16_config.enabled)


def _deepspeed(spec: Spec, folder: Path) -> Iterable[Row]:
    """As ``deepspeed.launcher.runner.main`` goes about it, up to the point where it starts processes."""
    from deepspeed.launcher import runner

    file = "deepspeed.sh"
    started = _last_node(spec, folder / file)
    yield Row(file, "launcher", "deepspeed", started.arguments[0])
    yield from _preflight(spec, file, started)
    args = runner.parse_args(started.arguments[1:])
    machines = runner.fetch_hostfile(args.hostfile)
    yield Row("hostfile", "found by deepspeed", True, machines is not None)
    active = runner.parse_inclusion_exclusion(machines, args.include, args.exclude)
    active = runner.apply_num_nodes_and_gpus(active, args.num_nodes, args.num_gpus)
    names = list(spec.host_names) if spec.nodes > 1 or spec.hosts else ["localhost"]
    yield Row("hostfile", "machines", names, list(active))
    yield Row("hostfile", "processes on each", [spec.gpus_per_node] * spec.nodes, [len(s) for s in active.values()])
    yield Row(file, "started without ssh", True, args.no_ssh)
    yield Row(file, "rank of the last node", spec.nodes - 1, args.node_rank)
    first = MASTER["MASTER_ADDR"] if spec.nodes > 1 else "127.0.0.1"
    yield Row(file, "first node", f"{first}:{MASTER['MASTER_PORT']}", f"{args.master_addr}:{args.master_port}")
    yield Row(file, "adds --local_rank", False, not args.no_local_rank)
    world_size = sum(map(len, active.values()))
    found = Program(file, args.user_script, args.module, args.user_args, started.environment, world_size)
    yield from check_program.rows(spec, found)
