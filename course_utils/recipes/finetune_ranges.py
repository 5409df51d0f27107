"""Checks of ``finetune``'s arguments before any work: every number's range, and flags that nothing would read."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from course_utils.recipes.command_line import LARGEST

if TYPE_CHECKING:
    from transformers import TrainingArguments


class Range(NamedTuple):
    """Numbers from ``lowest`` to ``highest``, both allowed unless ``open_ends`` says "(" or ")" or both.

    Without a ``highest`` of its own a number may be as large as ``LARGEST``.
    """

    lowest: float
    highest: float = math.inf
    whole: bool = True
    open_ends: str = ""

    def __contains__(self, value: Any) -> bool:
        low = value > self.lowest if "(" in self.open_ends else value >= self.lowest
        high = value < self.highest if ")" in self.open_ends else value <= self.highest
        return low and high and abs(value) <= self.most and not (self.whole and value != int(value))

    @property
    def most(self) -> float:
        return LARGEST[int if self.whole else float] if self.highest == math.inf else self.highest

    def __str__(self) -> str:
        words = "a whole number" if self.whole else "a number"
        words += f" > {self.lowest}" if "(" in self.open_ends else f" >= {self.lowest}"
        if self.highest != math.inf:
            words += f" and < {self.highest}" if ")" in self.open_ends else f" and <= {self.highest}"
        return words


COUNT, COUNT_OR_0 = Range(1), Range(0)
PROCESSES = 1024  # of one machine; more would only bring it down
POSITIVE, POSITIVE_OR_0 = Range(0, whole=False, open_ends="("), Range(0, whole=False)
SHARE = Range(0, 1, whole=False, open_ends=")")
SEED = Range(0, 2**32 - 1)  # NumPy's
RANGES = {  # every number of TrainingArguments; a test compares the names
    "per_device_train_batch_size": COUNT,
    "num_train_epochs": POSITIVE,
    "learning_rate": POSITIVE_OR_0,
    "warmup_steps": POSITIVE_OR_0,
    "weight_decay": POSITIVE_OR_0,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": POSITIVE_OR_0,
    "gradient_accumulation_steps": COUNT,
    "max_grad_norm": POSITIVE_OR_0,
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": POSITIVE_OR_0,
    "torch_empty_cache_steps": COUNT,
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": POSITIVE_OR_0,
    "per_device_eval_batch_size": COUNT,
    "eval_accumulation_steps": COUNT,
    "save_steps": POSITIVE,
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": Range(0, PROCESSES),
    "dataloader_prefetch_factor": Range(1, PROCESSES),
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "local_rank": Range(-1),
    "max_steps": COUNT,
    # The oldest go before the newest is marked: with one, a kill in between would leave nothing to go on from.
    "save_total_limit": Range(2),
}
OWN_RANGES = {"max_length": Range(2), "lora_r": Range(1, 2**16), "lora_alpha": COUNT, "lora_dropout": SHARE}
SAYS_OTHERWISE = {"max_steps": ", or -1 for num_train_epochs"}


def check_ranges(settings: Any, ranges: dict[str, Range]) -> None:
    """Raise ``ValueError``, one sentence, at the first field of ``settings`` that is out of its range; None passes."""
    for name, allowed in ranges.items():
        value = getattr(settings, name, None)
        if value is None or (name == "max_steps" and value == -1):
            continue
        if isinstance(value, (str, bool)) or value not in allowed:
            huge = allowed.highest == math.inf and isinstance(value, (int, float)) and value > allowed.most
            beyond = f" and <= {allowed.most}" if huge else ""
            more = SAYS_OTHERWISE.get(name, "")
            raise ValueError(f"{name}={value} is out of range; allowed: {allowed}{beyond}{more}")


def check_ignored(config: Any, course_models: dict[str, str]) -> None:
    """Raise ``ValueError`` where a field of ``config`` (``finetune.Config``) is set and nothing would read it."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    defaults["lora_target_modules"] = ["all-linear"]
    own_data = config.train_file or config.dataset_name
    needs = {  # flags -> what they need, and whether that is given
        ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"): ("--use_peft", config.use_peft),
        ("dataset_config", "dataset_train_split", "dataset_test_split"): ("--dataset_name", config.dataset_name),
        ("source",): ("neither --train_file nor --dataset_name", not own_data),
        ("attn_implementation",): ("another model", config.model_name_or_path not in course_models),
    }
    for names, (what, given) in needs.items():
        for name in names:
            if not given and getattr(config, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(config, name)!r} is read by nothing here; allowed: with {what}")


def check_together(config: Any, args: TrainingArguments) -> None:
    """Raise ``ValueError`` where TrainingArguments' flags contradict the task, the device or each other in silence."""
    evaluates = args.eval_strategy != "no"
    contradictions = {
        "fp16=True is read by nothing on a CPU; allowed: --fp16 false, or --bf16": args.fp16
        and args.device.type == "cpu",
        f"label_smoothing_factor={args.label_smoothing_factor} is read by nothing in task='classification', whose loss "
        "is this program's; allowed: 0": args.label_smoothing_factor and config.task == "classification",
        "do_predict=True is read by nothing here; allowed: false": args.do_predict,
        "do_eval=True is read by nothing here; allowed: --eval_strategy steps or epoch": args.do_eval and not evaluates,
        f"eval_file={config.eval_file!r} is read by nothing; allowed: with --eval_strategy steps or "
        "epoch": config.eval_file and not (evaluates or args.eval_on_start),
        "eval_on_start=True has nothing to evaluate; allowed: with --eval_file": args.eval_on_start
        and config.train_file
        and not config.eval_file,
        f"fsdp_config={args.fsdp_config!r} is read by nothing; allowed: with --fsdp": args.fsdp_config
        and not args.fsdp,
    }
    for sentence, is_so in contradictions.items():
        if is_so:
            raise ValueError(sentence)
    _check_metric(config, args)
    _check_reports(args)


def _check_metric(config: Any, args: TrainingArguments) -> None:
    names = ["loss"] + (["accuracy", "macro_f1"] if config.task == "classification" else [])
    metric = args.metric_for_best_model
    if metric and metric.removeprefix("eval_") not in names:
        raise ValueError(
            f"metric_for_best_model={metric!r} is not known; allowed for {config.task}: {', '.join(names)}"
        )


def _check_reports(args: TrainingArguments) -> None:
    """Trackers that are not installed, or that would ask for a key in the middle of the start."""
    from transformers.integrations import get_available_reporting_integrations

    there = get_available_reporting_integrations()
    for name in args.report_to:
        if name not in there and name != "none":
            allowed = ", ".join(["none", *sorted(there)])
            raise ValueError(f"report_to={name!r} is not installed here, or not known; allowed: {allowed}")
    if "wandb" in args.report_to and not _wandb_may_start():
        raise ValueError("report_to='wandb' finds no key; allowed: WANDB_API_KEY, `wandb login`, or WANDB_MODE=offline")


def _wandb_may_start() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE", "online").lower() != "online":
        return True
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true"):
        return True
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
