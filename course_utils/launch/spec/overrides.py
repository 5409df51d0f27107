"""Arguments of the program that say something else than a field of the spec: two truths, of which the last one wins.

The plan, the effective batch in the files and the check would all speak of the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from course_utils.errors import SpecError
from course_utils.launch.spec import silent
from course_utils.launch.spec.words import value_of

Spec = Any  # the class imports this module's caller: naming it here would close a circle

TRUE, FALSE = ("true", "1", "yes", "y", "t", "on"), ("false", "0", "no", "n", "f", "off")
FILES = {"fsdp": "strategy", "fsdp_config": "strategy", "deepspeed": "strategy"}  # the launch files give them


def check(spec: Spec) -> None:
    """Raise ``SpecError`` for the first of ``spec.arguments`` that contradicts a field."""
    if not spec.trainer_flags:
        return
    decided = _decided(spec)
    _whole_names(spec, decided)
    for flag, (field, wanted) in decided.items():
        written = _value(spec, flag)
        if written is None or _same(written, wanted):
            continue
        raise SpecError(
            f"arguments={f'--{flag}={written}'!r} contradicts {field}={getattr(spec, field)!r}; "
            f"allowed: leave it out, and set {field}"
        )
    for flag, field in FILES.items():
        if (written := _value(spec, flag)) is not None:
            raise SpecError(
                f"arguments={f'--{flag}={written}'!r} contradicts {field}={getattr(spec, field)!r}, whose settings "
                f"file the launch files name; allowed: leave it out, and set {field}"
            )
    _accelerator(spec)
    gradient_clipping(spec)


def _whole_names(spec: Spec, decided: Iterable[str]) -> None:
    """Argparse takes ``--max_step`` for ``--max_steps``; a name that is gone ends a program whose names are known."""
    gone = silent.RENAMED | silent.REMOVED if _is_known(spec) else {}
    for word in spec.arguments:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_") if word.startswith("--") else ""
        whole = next((flag for flag in decided if flag.startswith(name) and flag != name), None)
        if "_" in name and whole and name not in decided:
            raise SpecError(f"arguments={word!r} is short for --{whole}; allowed: whole names")
        if name in gone:
            raise SpecError(f"arguments={word!r} no longer exists in TrainingArguments; allowed: {gone[name]}")


def _accelerator(spec: Spec) -> None:
    """Two settings of accelerate's that divide or multiply the batch."""
    written = _value(spec, "accelerator_config")
    try:
        config = json.loads(written) if written else {}
    except ValueError:  # the path of a file: its business
        return
    if not isinstance(config, dict):
        return
    inner = config.get("gradient_accumulation_kwargs")
    steps = inner.get("num_steps") if isinstance(inner, dict) else None
    for name, value, field in (
        ("split_batches", config.get("split_batches") or None, "micro_batch"),
        ("num_steps", steps, "accumulation"),
    ):
        if value is not None:
            raise SpecError(
                f"arguments={f'--accelerator_config={written}'!r} contradicts {field}={getattr(spec, field)!r}; "
                f"allowed: leave {name} out, and set {field}"
            )


def _is_known(spec: Spec) -> bool:
    """Whether all names of the program's arguments are known here."""
    name = spec.program.removesuffix(".py").replace("/", ".")
    return name.endswith(("course_utils.recipes.finetune", "trl.scripts.sft"))


def gradient_clipping(spec: Spec) -> float:
    """The norm at which gradients are clipped: ``--max_grad_norm`` among the arguments, else TrainingArguments' 1.0.

    DeepSpeed must be told the same number, or the Trainer refuses to start.

    Raises:
        SpecError: it is no number from 0 on.
    """
    written = _value(spec, "max_grad_norm") if spec.trainer_flags else None
    if written is None:
        return 1.0
    try:
        found = float(written)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise SpecError(f"arguments={f'--max_grad_norm={written}'!r} is no norm; allowed: a number >= 0")
    return found


def _decided(spec: Spec) -> dict[str, tuple[str, object]]:
    """Flag -> the field that decides it, and the value that it gives."""
    found: dict[str, tuple[str, object]] = {
        "output_dir": ("output_dir", spec.output_dir),
        "per_device_train_batch_size": ("micro_batch", spec.micro_batch),
        "gradient_accumulation_steps": (
            "global_batch" if spec.global_batch is not None and spec.accumulation is None else "accumulation",
            spec.accumulation_steps,
        ),
        "max_steps": ("max_steps", spec.max_steps),
        "num_train_epochs": ("max_steps", "no epochs"),  # which steps overrule
        "save_steps": ("save_every", spec.save_every),
        "save_strategy": ("save_every", "steps"),
        "bf16": ("precision", spec.precision == "bf16" or (spec.is_deepspeed and spec.precision == "bf16_weights")),
        "fp16": ("precision", spec.precision == "fp16"),
        "ddp_timeout": ("ddp_timeout", spec.ddp_timeout),
        "use_cpu": ("device", spec.device == "cpu"),
        "auto_find_batch_size": ("micro_batch", False),  # tries smaller ones until a step fits
    }
    names = ("logging_steps", "learning_rate", "warmup_steps", "seed", "save_total_limit")
    found |= {name: (name, getattr(spec, name)) for name in names if getattr(spec, name) is not None}
    if spec.logging_steps is not None:
        found["logging_strategy"] = ("logging_steps", "steps")
    if spec.tracker is not None:
        found["report_to"] = ("tracker", spec.tracker)
    recomputed = spec.checkpointing and not spec.is_fsdp  # FSDP does it by its own setting, and both raise
    found |= dict.fromkeys(("activation_checkpointing", "gradient_checkpointing"), ("checkpointing", recomputed))
    if _is_known(spec):
        found |= {
            "max_length": ("sequence_length", spec.sequence_length),
            "use_peft": ("lora_rank", spec.lora_rank > 0),
        }
        found |= {"dtype": ("precision", "bfloat16" if spec.precision == "bf16_weights" else "float32")}
        if isinstance(spec.model, str):
            found["model_name_or_path"] = ("model", spec.model)
        found |= dict.fromkeys(("load_in_4bit", "load_in_8bit"), ("precision", False))
        found["lora_r"] = ("lora_rank", spec.lora_rank)
    return found


def _value(spec: Spec, flag: str) -> str | None:
    """What the arguments give for a flag, under either spelling; a flag alone means true."""
    for name in (f"--{flag}", f"--{flag.replace('_', '-')}"):
        if (written := value_of(spec.arguments, name)) is not None:
            return written if written and not written.startswith("--") else "True"
    opposite = {f"--no_{flag}", f"--no-{flag.replace('_', '-')}"}  # HfArgumentParser makes them
    return "False" if opposite & set(spec.arguments) else None


def _same(written: str, wanted: object) -> bool:
    if isinstance(wanted, bool):
        return written.lower() in (TRUE if wanted else FALSE)
    if isinstance(wanted, int | float):
        try:
            return float(written) == wanted
        except ValueError:
            return False
    return written == wanted
