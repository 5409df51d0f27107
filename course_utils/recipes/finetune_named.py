"""Checks of what ``finetune``'s flags only name: JSON settings, the schedule, the optimizer, packages; before any work.

Trainer finds these out in the middle of its start, with a traceback; here each is made once, for one number.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments

FROM_FILE = ("accelerator_config", "deepspeed", "fsdp_config")
INLINE = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
CHECKPOINT = ("determinism_check", "early_stop", "preserve_rng_state", "use_reentrant")  # torch.utils.checkpoint's


def json_object(name: str, given: Any) -> dict[str, Any]:
    """The settings of a flag: an object as JSON, or the name of a file with one.

    Raises:
        ValueError: it cannot be read, or is no object.
    """
    settings = given or {}
    if isinstance(given, str) and not given.lstrip().startswith("{") and name in FROM_FILE and given.strip():
        try:
            settings = Path(given).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}={given!r} cannot be read: {error}; allowed: a JSON file, or {{...}}") from error
    try:
        settings = json.loads(settings) if isinstance(settings, str) and settings.strip() else settings
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}={given!r} is no JSON: {error}") from error
    if isinstance(settings, str) and not settings.strip():
        return {}
    if not isinstance(settings, dict):
        raise ValueError(f"{name}={given!r} is no object; allowed: names and values, {{...}}")
    return settings


def check_json(early: Any) -> None:
    """Raise ``ValueError`` where a JSON flag of ``early``, the flags as they were typed, holds what nothing reads."""
    found = {name: json_object(name, getattr(early, name, None)) for name in (*FROM_FILE, *INLINE)}
    _check_accelerator(found["accelerator_config"])
    zero = found["deepspeed"].get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(f"deepspeed: zero_optimization={zero!r} is no object; allowed: names and values, {{...}}")
    for name in INLINE[1:]:
        if unknown := sorted(found[name].keys() - set(CHECKPOINT)):
            raise ValueError(f"{name}: {unknown[0]!r} is not known; allowed: {', '.join(CHECKPOINT)}")


def _check_accelerator(given: dict[str, Any]) -> None:
    from transformers.trainer_pt_utils import AcceleratorConfig

    hints = typing.get_type_hints(AcceleratorConfig)
    for name, value in given.items():
        if name not in {field.name for field in dataclasses.fields(AcceleratorConfig)}:
            raise ValueError(f"accelerator_config: {name!r} is not known; allowed: {', '.join(hints)}")
        if hints[name] is bool and not isinstance(value, bool):
            raise ValueError(f"accelerator_config: {name}={value!r} is out of range; allowed: true, false")
    inner = given.get("gradient_accumulation_kwargs") or {}
    if not isinstance(inner, dict) or "num_steps" in inner:
        raise ValueError(
            f"accelerator_config: gradient_accumulation_kwargs={inner!r} contradicts gradient_accumulation_steps; "
            "allowed: an object without num_steps"
        )


def check_named(args: TrainingArguments) -> None:
    """Raise ``ValueError`` where the schedule, the optimizer or a package cannot be had as the flags say."""
    from transformers.utils import is_liger_kernel_available

    if args.dataloader_persistent_workers and not args.dataloader_num_workers:
        raise ValueError(
            "dataloader_persistent_workers=True is read by nothing with dataloader_num_workers=0; allowed: 1 or more"
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("use_liger_kernel=True needs the package liger-kernel, which is not here; allowed: false")
    _try(f"torch_compile_mode={args.torch_compile_mode!r}", lambda: _compile(args))
    schedule = (
        f"lr_scheduler_type={args.lr_scheduler_type.value!r} with lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}"
    )
    _try(schedule, lambda: _schedule(args))
    _try(
        f"optim={getattr(args.optim, 'value', args.optim)!r} with optim_args={args.optim_args!r}",
        lambda: _optimizer(args),
    )


def _try(named: str, make: Any) -> None:
    try:
        make()
    except Exception as error:  # whatever the class, its package or torch raises
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        raise ValueError(
            f"{named} cannot be used ({reason}); allowed: what transformers' documentation lists"
        ) from error


def _compile(args: TrainingArguments) -> None:
    import torch

    if args.torch_compile and args.torch_compile_mode:
        torch.compile(torch.nn.Identity(), mode=args.torch_compile_mode)


def _one_number() -> list[Any]:
    import torch

    return [torch.nn.Parameter(torch.zeros(1))]


def _schedule(args: TrainingArguments) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD(_one_number(), lr=max(args.learning_rate, 1e-30))
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=0,
        num_training_steps=10,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )


def _optimizer(args: TrainingArguments) -> None:
    from transformers import Trainer

    found = Trainer.get_optimizer_cls_and_kwargs(args)  # imports what the optimizer comes from, and reads optim_args
    if args.optim_args:
        plain = copy.copy(args)
        plain.optim_args = None
        if Trainer.get_optimizer_cls_and_kwargs(plain) == found:
            raise ValueError("this optimizer reads no optim_args, or not these")
