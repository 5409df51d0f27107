"""For whom a mapping or a command line is: TrainingArguments, one of TRL's configurations, or somebody else's tool."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any

from course_utils.launch.explain.reading import Open
from course_utils.launch.spec import silent

OF_TRL = ("SFTConfig", "DPOConfig", "GRPOConfig", "RewardConfig", "KTOConfig", "RLOOConfig")
BESIDE_TRL = ("ModelConfig", "ScriptArguments")  # TrlParser fills them from the same file
AXOLOTL = {"sequence_len", "micro_batch_size", "adapter", "datasets", "val_set_size", "sample_packing"}
ENOUGH = 0.25  # of a file's names must be known: others have an output_dir and a seed, too


def class_of(name: str) -> type | None:
    """The installed configuration class of that name; None: none of transformers' or TRL's."""
    import transformers

    if name in ("TrainingArguments", "Seq2SeqTrainingArguments"):
        return getattr(transformers, name)
    import trl

    found = getattr(trl, name, None) if name.endswith("Config") else None
    return found if inspect.isclass(found) and issubclass(found, transformers.TrainingArguments) else None


@cache
def _names(name: str) -> frozenset[str]:
    """The fields of a configuration class, and those that it had."""
    import trl

    kind = class_of(name) or getattr(trl, name)
    gone = {*silent.RENAMED, *silent.REMOVED, *silent.DEPRECATED}
    if name != "TrainingArguments":
        gone |= {*silent.RENAMED_TRL, *silent.REMOVED_TRL}
    return frozenset({field.name for field in dataclasses.fields(kind)} | gone)


def foreign(content: dict[str, Any]) -> str | None:
    """The tool that alone reads this file, whose names look like TrainingArguments'; None: none that is known."""
    if "base_model" in content and AXOLOTL & set(content):
        return "axolotl"
    parts = [value for value in content.values() if isinstance(value, dict)]
    return "torchtune" if any("_component_" in part for part in parts) else None


def config_class(content: dict[str, Any]) -> str | None:
    """The class that has most of these fields, the first of several; None: none has two and a quarter of them."""
    content = {name: value for name, value in content.items() if name != "trust_remote_code"}  # everybody's
    found = {name: len(_names(name) & set(content)) for name in ("TrainingArguments", *OF_TRL)}
    best = max(found, key=lambda name: found[name])
    others = len(set().union(*map(_names, BESIDE_TRL)) & set(content)) if best != "TrainingArguments" else 0
    return best if found[best] >= 2 and found[best] + others >= ENOUGH * len(content) else None


def words(arguments: Iterable[Any]) -> dict[str, Any]:
    """``--name value``, ``--name=value`` and ``--flag`` of a command line; of two equal flags the last one counts."""
    found: dict[str, Any] = {}
    name = None
    for word in arguments:
        if str(word).startswith("--") and len(word) > 2:
            head, equals, value = str(word)[2:].partition("=")
            name = head.replace("-", "_")
            found[name] = Open(value, word.names) if isinstance(word, Open) and equals else value if equals else True
            name = None if equals else name
        elif name:
            found[name] = word
            name = None
    return found


def is_trainer(values: dict[str, Any]) -> bool:
    """Whether a command line is for TrainingArguments: it has some of their own names."""
    typical = {"output_dir", "per_device_train_batch_size", "num_train_epochs", "gradient_accumulation_steps"}
    typical |= {"save_steps", "logging_steps", "bf16", "fp16", "deepspeed", "fsdp", "fsdp_config", "save_strategy"}
    typical |= {
        "evaluation_strategy",
        "eval_strategy",
        "warmup_ratio",
        "report_to",
        "lr_scheduler_type",
        "overwrite_output_dir",
    }
    return len(typical & set(values)) >= 2


def is_fsdp_config(content: dict[str, Any]) -> bool:
    """Whether a mapping is what ``--fsdp_config`` names."""
    keys = {key.removeprefix("fsdp_") for key in content}
    typical = {
        "version",
        "transformer_layer_cls_to_wrap",
        "reshard_after_forward",
        "auto_wrap_policy",
        "min_num_params",
    }
    return bool(typical & keys) and not {"output_dir", "learning_rate"} & keys
