"""The command line of the program a launch file starts, each flag with the reason it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from course_utils.errors import SpecError
from course_utils.launch.spec.spec import Spec
from course_utils.launch.spec.words import value_of
from course_utils.models.shapes import ModelShape

FINETUNE = "course_utils.recipes.finetune"
# Programs that take TRL's names for model, length, type and LoRA (trl.ModelConfig, trl.SFTConfig).
TAKES_MODEL_FLAGS = (FINETUNE, "trl.scripts.sft")
MODEL_FLAGS = ("--model_name_or_path", "--max_length", "--dtype", "--use_peft", "--lora_r", "--lora_target_modules")
# Fields that are None where the program's own default is fine: field, flag, why.
OPTIONAL = (
    ("learning_rate", "learning_rate", "the highest of the run"),
    ("warmup_steps", "warmup_steps", "steps until it is reached"),
    ("seed", "seed", "of weights, dropout and the order of rows"),
    ("save_total_limit", "save_total_limit", "older checkpoints are deleted"),
    ("tracker", "report_to", "losses go there, too"),
)


class Flag(NamedTuple):
    """One argument, ``--name=value`` so that a value that begins with "-" stays a value, and why it is given."""

    text: str
    why: str


def program(spec: Spec) -> str:
    """The program as launchers want it: a path that begins with "-" would be taken for one of their options."""
    return f"./{spec.program}" if spec.program.startswith("-") else spec.program


def is_one_of(spec: Spec, programs: Sequence[str]) -> bool:
    """Whether the spec starts one of these modules, by its dotted name or by its path."""
    dotted = spec.program.removesuffix(".py").replace("/", ".")
    return any(f".{dotted}".endswith(f".{name}") for name in programs)


def task(spec: Spec) -> str:
    """finetune's ``--task``: the one that ``spec.arguments`` names, else the one whose loss the plan counts."""
    if named := value_of(spec.arguments, "--task"):
        return named
    if isinstance(spec.model, ModelShape):
        is_causal = spec.model.lm_head
    elif spec.model == "course/encoder":
        is_causal = False
    else:
        from course_utils.models import configs

        try:
            is_causal = configs.is_causal(spec.model)
        except (SpecError, OSError):  # no folder, so a name; those that are built in are causal language models
            is_causal = True
    return "causal_lm" if is_causal else "classification"


def data(train_file: str | None, dataset_name: str | None, task: str) -> str:
    """What finetune trains on, given these of its arguments (``finetune_data.load_rows``)."""
    own = {"causal_lm": "paragraphs", "classification": "labelled sentences"}.get(task, "data")
    return train_file or dataset_name or f"the course's {own} (no data argument)"


def data_of(spec: Spec) -> str:
    """What finetune trains on, as the spec asks for it."""
    given = (value_of(spec.arguments, name) for name in ("--train_file", "--dataset_name"))
    return data(*given, task(spec))


def logging_steps(spec: Spec) -> int | None:
    """Optimizer steps between logged losses: the field, else 10; None where the arguments decide."""
    named = any(value_of(spec.arguments, name) is not None for name in ("--logging_steps", "--logging-steps"))
    return None if named else spec.logging_steps or 10


def _budget(spec: Spec) -> list[Flag]:
    """What a long run needs besides: losses to look at, a learning rate, a seed, room on the disk."""
    found = [Flag(f"--{flag}={getattr(spec, field)}", why) for field, flag, why in OPTIONAL if _given(spec, field)]
    if (steps := logging_steps(spec)) is not None:
        found.insert(0, Flag(f"--logging_steps={steps}", "steps between logged losses; TrainingArguments' is 500"))
    return found


def _given(spec: Spec, field: str) -> bool:
    return getattr(spec, field) is not None


def flags(spec: Spec) -> list[Flag]:
    """What the spec decides, in TrainingArguments' words; empty for a program that does not take them."""
    if not spec.trainer_flags:
        return []
    autocast = {"bf16": spec.precision == "bf16", "fp16": spec.precision == "fp16"}
    if spec.is_deepspeed:  # must repeat deepspeed.json, where bf16 also stands for 16-bit weights
        autocast["bf16"] = spec.precision.startswith("bf16")
    found = [
        Flag(f"--output_dir={spec.output_dir}", "checkpoints and the result"),
        Flag(f"--per_device_train_batch_size={spec.micro_batch}", "sequences per process and forward pass"),
        Flag(f"--gradient_accumulation_steps={spec.accumulation_steps}", _batch_sum(spec)),
        Flag(f"--max_steps={spec.max_steps}", "optimizer steps"),
        Flag(f"--save_steps={spec.save_every}", "optimizer steps between checkpoints"),
        *_budget(spec),
        Flag(f"--ddp_timeout={spec.ddp_timeout}", "seconds until a rank that waits for the others gives up"),
        Flag(f"--bf16={autocast['bf16']}", "said either way: TRL's default is True, TrainingArguments' False"),
        Flag(f"--fp16={autocast['fp16']}", "with a loss scale, for GPUs without bf16"),
        _recomputation(spec),
    ]
    if spec.device == "cpu":
        found.append(Flag("--use_cpu=True", "without it every rank on a CPU is alone, silently"))
    return found + _model_flags(spec)


def _batch_sum(spec: Spec) -> str:
    parts = f"{spec.micro_batch} x {spec.accumulation_steps} x {spec.data_parallel_size} data-parallel ranks"
    return f"forward passes per step: {parts} = {spec.effective_batch} sequences"


def _recomputation(spec: Spec) -> Flag:
    if spec.is_fsdp:
        return Flag("--activation_checkpointing=False", "FSDP recomputes them by its own setting; both raise")
    return Flag(f"--activation_checkpointing={spec.checkpointing}", "said either way: TRL's default is True")


def _model_flags(spec: Spec) -> list[Flag]:
    if not is_one_of(spec, TAKES_MODEL_FLAGS):
        return []
    found = []
    if is_one_of(spec, [FINETUNE]) and value_of(spec.arguments, "--task") is None:
        found.append(Flag(f"--task={task(spec)}", f"head and loss, as planned; trains on {data_of(spec)}"))
    if isinstance(spec.model, str):
        found.append(Flag(f"--model_name_or_path={spec.model}", "a hub name or a folder"))
    dtype = "bfloat16" if spec.precision == "bf16_weights" else "float32"
    found += [
        Flag(f"--max_length={spec.sequence_length}", "tokens; longer sequences are cut"),
        Flag(f"--dtype={dtype}", "of the weights: a bf16 checkpoint would be trained in bf16 by default"),
    ]
    if spec.lora_rank:
        found += [
            Flag("--use_peft=True", "LoRA: train low-rank adapters, freeze the rest"),
            Flag(f"--lora_r={spec.lora_rank}", "their rank"),
            Flag("--lora_target_modules=all-linear", "on every linear layer"),
        ]
    return found


def config_flags(spec: Spec, launcher: str = "torchrun", folder: str = "launch") -> list[Flag]:
    """Where the program finds its strategy; `accelerate launch` says it through the environment instead."""
    if not spec.trainer_flags or launcher == "accelerate":
        return []
    if spec.is_fsdp:
        return [
            Flag("--fsdp", "on; a word behind it would be read as an option of the old FSDP"),
            Flag(f"--fsdp_config={folder}/fsdp.json", "how it shards"),
        ]
    if spec.is_deepspeed:
        return [Flag(f"--deepspeed={folder}/deepspeed.json", "ZeRO stage, offload and batch sizes")]
    return []


def program_arguments(spec: Spec, launcher: str = "torchrun", folder: str = "launch") -> list[str]:
    """All arguments of the program, in order: what the spec decides, its strategy, and ``spec.arguments`` last.

    ``launcher`` is "torchrun" (and all that behaves like it), "accelerate" or "deepspeed"; ``folder`` is where the
    launch files lie, seen from where the program is started.
    """
    return [flag.text for flag in flags(spec) + config_flags(spec, launcher, folder)] + list(spec.arguments)
