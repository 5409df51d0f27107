"""What the started program makes of its arguments and environment: TrainingArguments, and the plugins behind it.

The objects are the ones a rank would build (``Trainer.create_accelerator_and_postprocess``, ``Accelerator.__init__``),
built here without ranks and without a GPU, under the environment the launcher would give them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from course_utils.launch.check.rows import Row
from course_utils.launch.spec import Spec, arguments, settings

NETWORK = ("NCCL_NET", "FI_PROVIDER", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


class Program(NamedTuple):
    """A program as its launcher starts it, on ``world_size`` processes."""

    file: str  # the launch file it was found in
    name: str  # module or path
    is_module: bool
    arguments: list[str]
    environment: dict[str, str]
    world_size: int


def rows(spec: Spec, program: Program) -> Iterable[Row]:
    """World size, program, arguments, batch, precision and strategy of ``program`` against ``spec``."""
    file = program.file
    yield Row(file, "world size", spec.world_size, program.world_size)
    yield Row(file, "program", arguments.program(spec), program.name)
    yield Row(file, "started as a module", spec.program_is_module, program.is_module)
    last = len(program.arguments) - len(spec.arguments)
    yield Row(file, "arguments", list(spec.arguments), program.arguments[max(last, 0) :])
    network = {name: program.environment.get(name) for name in NETWORK}
    yield Row(file, "network", settings.network_variables(spec), {k: v for k, v in network.items() if v is not None})
    with as_a_rank(program):
        if spec.trainer_flags:
            yield from _training_arguments(spec, program)
        else:
            yield from _accelerator(spec, program)


@contextlib.contextmanager
def as_a_rank(program: Program) -> Iterator[None]:
    """The program's environment, a GPU that knows bf16, no process group; afterwards the caller's state as it was."""
    import torch
    from transformers import TrainingArguments
    from transformers.integrations import deepspeed as hub_deepspeed

    remembered = hub_deepspeed._hf_deepspeed_config_weak_ref  # ZeRO-3 would change how this process loads models
    # Ranks do not exist here: neither look for other ranks nor let a plugin believe it is one.
    alone = {name: value for name, value in program.environment.items() if name not in ("RANK", "LOCAL_RANK")}
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.dict(os.environ, alone, clear=True))
        patches.enter_context(mock.patch.object(TrainingArguments, "_setup_devices", torch.device("cpu")))
        patches.enter_context(mock.patch.object(TrainingArguments, "world_size", program.world_size))
        patches.enter_context(mock.patch("transformers.training_args.is_torch_bf16_gpu_available", return_value=True))
        patches.enter_context(mock.patch("accelerate.utils.dataclasses.is_cuda_available", return_value=True))
        patches.enter_context(mock.patch("torch.cuda.current_device", return_value=0))
        try:
            yield
        finally:
            hub_deepspeed._hf_deepspeed_config_weak_ref = remembered


def parse(words: list[str]) -> tuple[Any, list[str]]:
    """TrainingArguments from a command line, and the words it does not know."""
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> None:
            raise ValueError(message)

    parser = Parser(TrainingArguments, add_help=False)
    return parser.parse_args_into_dataclasses(words, return_remaining_strings=True)


def _training_arguments(spec: Spec, program: Program) -> Iterable[Row]:
    file = program.file
    args, others = parse(program.arguments)
    yield Row(file, "output_dir", os.path.expanduser(spec.output_dir), args.output_dir)
    yield Row(file, "micro batch", spec.micro_batch, args.per_device_train_batch_size)
    yield Row(file, "accumulation", spec.accumulation_steps, args.gradient_accumulation_steps)
    yield Row(file, "optimizer steps", spec.max_steps, args.max_steps)
    yield Row(file, "steps between checkpoints", spec.save_every, args.save_steps)
    yield from _budget(spec, file, args)
    yield Row(file, "longest wait for other ranks [s]", spec.ddp_timeout, args.ddp_timeout)
    yield Row(file, "on the CPU", spec.device == "cpu", args.use_cpu)
    autocast = "bf16" if spec.is_deepspeed and spec.precision == "bf16_weights" else settings.mixed_precision(spec)
    yield Row(file, "precision", autocast, args.mixed_precision)
    parallel = _parallel()
    ranks = program.world_size // (parallel["tp_size"] * parallel["cp_size"])
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
    yield Row(file, "effective batch", spec.effective_batch, batch)
    yield from _own_flags(spec, file, others)
    fsdp = _fsdp_plugin(args.fsdp_plugin_args)
    recomputed = ["TrainingArguments"] * bool(args.activation_checkpointing)
    recomputed += ["FSDP"] * bool(fsdp and fsdp.activation_checkpointing)
    asked = ["FSDP" if spec.is_fsdp else "TrainingArguments"] if spec.checkpointing else []
    yield Row(file, "activations recomputed by", asked, recomputed)
    yield from _strategy(spec, file, fsdp, args.deepspeed_plugin, parallel)
    if args.fsdp:
        yield Row("fsdp.json", "keys that nobody reads", [], unread_fsdp_keys(args, program.arguments))
    if args.deepspeed:
        mismatches = [line.removeprefix("- ds ") for line in args.hf_deepspeed_config.mismatches]
        yield Row(file, "contradicts deepspeed.json", [], mismatches)


def _budget(spec: Spec, file: str, args: Any) -> Iterable[Row]:
    """How often losses are logged, and whatever else of a long run the spec decides."""
    if (steps := arguments.logging_steps(spec)) is not None:
        yield Row(file, "steps between logged losses", steps, args.logging_steps)
    for field, flag, _ in arguments.OPTIONAL:
        if (asked := getattr(spec, field)) is not None:
            found = getattr(args, flag)
            reported = (",".join(found) or "none") if isinstance(found, list) else found
            yield Row(file, field.replace("_", " "), asked, reported)


def _own_flags(spec: Spec, file: str, words: list[str]) -> Iterable[Row]:
    """The flags that TrainingArguments does not know and the program does: task, data, model, length, type, LoRA."""
    if arguments.is_one_of(spec, [arguments.FINETUNE]):
        config = _finetune_config(words)
        yield Row(file, "task", arguments.task(spec), config.task)
        resolved = arguments.data(config.train_file, config.dataset_name, config.task)
        yield Row(file, "training data", arguments.data_of(spec), resolved)
    given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    for flag in arguments.flags(spec):
        name, _, value = flag.text.partition("=")
        if name in arguments.MODEL_FLAGS:
            yield Row(file, name, value, given.get(name))


def _finetune_config(words: list[str]) -> Any:
    """finetune's own settings, read by its own parser; not validated, because its files may be on the cluster only."""
    finetune = importlib.import_module(f"{arguments.FINETUNE}_settings")
    parser = finetune.Parser(finetune.Config, allow_abbrev=False, add_help=False)
    with mock.patch.object(finetune.Config, "__post_init__", lambda self: None):
        return parser.parse_args_into_dataclasses(words, return_remaining_strings=True)[0]


def _accelerator(spec: Spec, program: Program) -> Iterable[Row]:
    """A program that builds ``Accelerator()`` itself: everything comes from the environment."""
    found = os.environ
    accumulation = found.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    yield Row(program.file, "accumulation", str(spec.accumulation_steps), accumulation)
    fsdp = _fsdp_plugin(None)
    deepspeed = None
    if found.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from accelerate.utils import DeepSpeedPlugin

        deepspeed = DeepSpeedPlugin()
    if not spec.is_deepspeed:
        precision = found.get("ACCELERATE_MIXED_PRECISION", "no")
        yield Row(program.file, "precision", settings.mixed_precision(spec), precision)
    if fsdp:
        asked = spec.checkpointing
        yield Row(program.file, "activations recomputed by FSDP", asked, fsdp.activation_checkpointing)
    yield from _strategy(spec, program.file, fsdp, deepspeed, _parallel())


def _parallel() -> dict[str, int]:
    """``Accelerator``'s sizes from the environment; 1 each where it would build no ParallelismConfig."""
    names = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size")
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return dict.fromkeys(names, 1)
    from accelerate import ParallelismConfig

    config = ParallelismConfig()
    return {name: getattr(config, name) for name in names}


def _fsdp_plugin(trainer_arguments: dict[str, Any] | None) -> Any:
    """As the Trainer builds it from its arguments; else as the Accelerator does from the environment; else None."""
    from accelerate import FullyShardedDataParallelPlugin

    if trainer_arguments is not None:
        return FullyShardedDataParallelPlugin(**trainer_arguments)
    return FullyShardedDataParallelPlugin() if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None


def _strategy(spec: Spec, file: str, fsdp: Any, deepspeed: Any, parallel: dict[str, int]) -> Iterable[Row]:
    kind = f"fsdp{fsdp.fsdp_version}" if fsdp else f"zero{deepspeed.zero_stage}" if deepspeed else "ddp"
    yield Row(file, "strategy", spec.strategy, kind)
    sizes = settings.parallel_sizes(spec) or dict.fromkeys(parallel, 1)
    yield Row(file, "replicate x shard x tensor x context", list(sizes.values()), list(parallel.values()))
    if fsdp:
        yield from _fsdp(spec, file, fsdp)
    if deepspeed:
        places = [deepspeed.offload_optimizer_device, deepspeed.offload_param_device]
        asked = ["cpu" if spec.offload != "none" else "none", "cpu" if spec.offload == "all" else "none"]
        yield Row(file, "optimizer and parameters offloaded to", asked, places)
        yield Row(file, "model is built in parts", spec.strategy == "zero3", deepspeed.zero3_init_flag)


def _fsdp(spec: Spec, file: str, plugin: Any) -> Iterable[Row]:
    """Fields of ``FullyShardedDataParallelPlugin`` after all its defaults, environment variables and translations."""
    if plugin.fsdp_version == 1:
        yield Row(file, "sharding strategy", settings.sharding_strategy(spec), _name(plugin.sharding_strategy))
    else:
        yield Row(file, "reshard after forward", spec.reshard_after_forward, plugin.reshard_after_forward)
    offload = plugin.cpu_offload  # a CPUOffload (FSDP1), a policy or False (FSDP2)
    is_offloaded = getattr(offload, "offload_params", type(offload).__name__ == "CPUOffloadPolicy")
    yield Row(file, "offload", spec.offload == "all", bool(is_offloaded))
    wrapped = settings.layer_class(spec)
    yield Row(file, "wrapped classes", wrapped.split(",") if wrapped else None, plugin.transformer_cls_names_to_wrap)
    policy = getattr(plugin.auto_wrap_policy, "__name__", None)
    yield Row(file, "wrap policy", "transformer_auto_wrap_policy", policy)
    yield Row(file, "checkpoints", f"{spec.state_dict.upper()}_STATE_DICT", _name(plugin.state_dict_type))
    yield Row(file, "only rank 0 reads the model", spec.device == "cuda", plugin.cpu_ram_efficient_loading)


def _name(value: Any) -> str:
    return value.name.removeprefix("_") if hasattr(value, "name") else str(value)


class _Watched(dict):
    """A dictionary that remembers which keys were asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)


def unread_fsdp_keys(args: Any, words: list[str]) -> list[str]:
    """Keys of the --fsdp_config file that TrainingArguments never looks at (a leading ``fsdp_`` is stripped by it)."""
    file = next((word.split("=", 1)[1] for word in words if word.startswith("--fsdp_config=")), None)
    if file is None:
        return []
    given = json.loads(Path(file).read_text(encoding="utf-8"))
    args.fsdp, args.fsdp_config = True, _Watched(given)
    watched = args.fsdp_config
    args._process_fsdp_args()
    return sorted({key.removeprefix("fsdp_") for key in given} - watched.read)
