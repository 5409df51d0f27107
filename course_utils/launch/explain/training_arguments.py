"""TrainingArguments (and TRL's configurations) from a YAML, a JSON, a command line or a call: built, and judged.

Values that are known are given to the class itself, on pretended ranks; what it makes of them is the resolved value.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from course_utils.launch.check.program import Program, as_a_rank
from course_utils.launch.explain import deepspeed_json
from course_utils.launch.explain.reading import Open, Reading, number, state_dict_kind, truth
from course_utils.launch.explain.recognized import class_of
from course_utils.launch.spec import silent

FSDP_KEYS = {  # what _process_fsdp_args of transformers 5.23 reads, without "fsdp_"
    *("version", "reshard_after_forward", "cpu_offload", "auto_wrap_policy", "transformer_layer_cls_to_wrap"),
    *("min_num_params", "state_dict_type", "cpu_ram_efficient_loading", "activation_checkpointing"),
    *("xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt", "xla_fsdp_settings"),
}
FSDP1_KEYS = {"forward_prefetch", "backward_prefetch", "use_orig_params", "sync_module_states", "limit_all_gathers"}
FSDP_CURES = {
    "offload_params": "write `cpu_offload`",
    "sharding_strategy": "write `reshard_after_forward` (false: SHARD_GRAD_OP)",
}
NOT_BUILT = ("deepspeed", "tf32", "accelerator_config", "fsdp_config", "parallelism_config", "hub_token")
NOT_BUILT += ("fsdp", "gradient_checkpointing", "gradient_checkpointing_kwargs")  # judged by themselves, below
STRATEGIES = ("save", "eval", "logging")
WORLDS = (1, 8, 64, 24, 7 * 64)  # ranks to try
DAY = 86_400  # seconds
FACTS = {  # TrainingArguments' name -> the name that all files share
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
    **{
        name: name for name in ("max_steps", "output_dir", "max_grad_norm", "learning_rate", "save_steps", "max_length")
    },
}
DEEPSPEED_FIELDS = ("weight_decay", "adam_epsilon", "warmup_steps", "adam_beta1", "adam_beta2")


def judge(
    reading: Reading, values: dict[str, Any], name: str = "TrainingArguments", may_be_others: bool = False
) -> None:
    """Add settings, facts and findings of ``values`` (argument -> value, or ``Open``) to ``reading``.

    Args:
        may_be_others: a command line, on which a program has arguments of its own.
    """
    kind = class_of(name)
    known = {field.name for field in dataclasses.fields(kind)} if kind else set()
    built, refused = _build(kind, values, known)
    for key, value in values.items():
        if _gone(reading, key, value, name, known, may_be_others):
            continue
        reading.set(key, value, _resolved(built, key, value), name)
    for error in refused:
        reading.find("tool-refuses", tool=name, name="these values", error=error, cure="write what it names")
    given = {key: _resolved(built, key, value) for key, value in values.items() if not isinstance(value, Open)}
    for key, fact in FACTS.items():
        if key in given:
            reading.know(fact, given[key], key)
    _precision(reading, {key: value for key, value in values.items() if not isinstance(value, Open)}, name)
    if not refused:
        _steps(reading, given)
    _limits(reading, given)
    _fsdp(reading, values)
    if isinstance(config := values.get("deepspeed"), dict) and config:
        deepspeed_json.explain(reading, config)


def _resolved(built: Any, key: str, value: Any) -> Any:
    """What the built object holds; for what it was not given, the value as it is, or that it is open."""
    if isinstance(value, Open):
        return Open(f"open: {value}", value.names)
    if key in NOT_BUILT or built is None:
        return value
    found = getattr(built, key, value)
    return getattr(found, "value", found)


def _build(kind: type | None, values: dict[str, Any], known: set[str]) -> tuple[Any, list[str]]:
    """The object, and what the class said where it refused; files are never opened, and no device is looked for."""
    if kind is None:
        return None, []
    given = {key: value for key, value in values.items() if key in known and not isinstance(value, Open)}
    given = {key: value for key, value in given.items() if key not in NOT_BUILT}
    if truth(given.get("bf16")) and truth(given.get("fp16")):
        given.pop("fp16")
    for key in ("load_best_model_at_end",):  # needs steps that may be open
        if any(isinstance(values.get(name), Open) for name in ("save_steps", "eval_steps", "save_strategy")):
            given.pop(key, None)
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    given = {key: _typed(value, str(types[key])) for key, value in given.items()}
    said = []
    for ranks in WORLDS:  # not known here, and GRPO wants groups that divide what all ranks generate
        with as_a_rank(Program("", "", False, [], {}, ranks)):
            try:
                return kind(**given), []
            except Exception as error:  # whatever a stranger's values make of the class is its own word
                said.append(" ".join(str(error).split())[:160] or type(error).__name__)
    return None, said[:1]


def _typed(value: Any, kind: str) -> Any:
    """Text of a command line or YAML's ``5e-5`` (text in YAML 1.1) as the field's type, as HfArgumentParser does."""
    if not isinstance(value, str):
        return value
    if "bool" in kind and truth(value) is not None:
        return truth(value)
    for word, make in (("int", int), ("float", float)):
        if word in kind and (found := number(value, make)) is not None:
            return found
    return value


def _gone(reading: Reading, key: str, value: Any, name: str, known: set[str], may_be_others: bool) -> bool:
    """Whether ``key`` is no longer, or never was, an argument of the class; notes the finding."""
    is_trl = name not in ("TrainingArguments", "Seq2SeqTrainingArguments")
    renamed = silent.RENAMED | (silent.RENAMED_TRL if is_trl else {})
    removed = silent.REMOVED | (silent.REMOVED_TRL if is_trl else {})
    if key in known and key not in silent.DEPRECATED:
        return False
    if key in known:
        reading.find("deprecated-argument", name=key, cure=silent.DEPRECATED[key])
        return False
    if key in renamed:
        reading.find("renamed-argument", name=key, tool=name, cure=renamed[key])
    elif key in removed:
        reading.find("removed-argument", name=key, tool=name, cure=removed[key])
    elif may_be_others or not known:
        return False
    else:
        near = difflib.get_close_matches(key, known, 1, 0.75)
        reading.find("unknown-argument", name=key, tool=name, cure=f"write `{near[0]}`" if near else "delete it")
    reading.set(key, value, "not taken", name)
    return True


def _precision(reading: Reading, given: dict[str, Any], name: str) -> None:
    bf16, fp16 = (truth(given[name]) if name in given else None for name in ("bf16", "fp16"))
    if bf16 and fp16:
        reading.find("both-precisions")
    elif bf16 or fp16:
        reading.know("precision", "bf16" if bf16 else "fp16", "bf16" if bf16 else "fp16")
    elif bf16 is False and not fp16:
        reading.know("precision", "no", "bf16")
    if "optim" in given and str(given["optim"]).startswith("adamw_hf"):
        reading.find("renamed-argument", name="optim=adamw_hf", tool=name, cure='optim="adamw_torch"')


def _steps(reading: Reading, given: dict[str, Any]) -> None:
    """Numbers of steps that contradict each other or a strategy."""
    steps, epochs = number(given.get("max_steps")), given.get("num_train_epochs")
    if steps and steps > 0 and epochs is not None:
        reading.find("epochs-ignored", steps=steps, epochs=epochs)
    for name in STRATEGIES:
        strategy, value = given.get(f"{name}_strategy"), given.get(f"{name}_steps")
        strategy = "no" if strategy is False else strategy  # YAML 1.1 reads a bare no as false
        if name == "eval" and strategy is None and value is not None:
            strategy = "no"
        if value is not None and strategy is not None and str(strategy) != "steps":
            details = {"name": f"{name}_steps", "value": value, "strategy_name": f"{name}_strategy"}
            reading.find("interval-ignored", strategy=str(strategy), **details)
    if str(given.get("save_strategy")) in ("no", "False"):
        reading.find("nothing-saved")
        if given.get("save_total_limit") is not None:
            reading.find("no-effect", name="save_total_limit", needs="save_strategy")
    save = number(given.get("save_steps"))
    if steps and save and 0 < steps < save and str(given.get("save_strategy", "steps")) == "steps":
        reading.find("saved-too-rarely", save=save, steps=steps)
    if number(given.get("save_total_limit")) == 1 and truth(given.get("load_best_model_at_end")):
        reading.set("save_total_limit", 1, 2, "TrainingArguments")  # the best and the last one


def _limits(reading: Reading, given: dict[str, Any]) -> None:
    """A time-out that is none, and a number of checkpoints that is none."""
    waits, kept = number(given.get("ddp_timeout"), float), number(given.get("save_total_limit"))
    if waits and waits > DAY:
        reading.find("timeout-too-long", value=given["ddp_timeout"], days=int(waits // DAY))
    if kept is not None and kept <= 0:
        reading.find("no-limit", value=kept)


def _fsdp(reading: Reading, values: dict[str, Any]) -> None:
    """``fsdp`` and ``fsdp_config`` as ``_process_fsdp_args`` reads them."""
    fsdp, config = values.get("fsdp"), values.get("fsdp_config")
    switched = truth(fsdp) if isinstance(fsdp, bool | str) and not isinstance(fsdp, Open) else None
    if isinstance(fsdp, str | list) and fsdp and switched is None and not isinstance(fsdp, Open):
        reading.find("fsdp-string", value=fsdp)
    if config is not None and (fsdp is None or switched is False):
        reading.find("fsdp-config-alone")
    if isinstance(config, dict):
        fsdp_config(reading, config)
    recompute = any(truth(values.get(name)) for name in ("activation_checkpointing", "gradient_checkpointing"))
    inner = isinstance(config, dict) and any(
        truth(config.get(f"{prefix}activation_checkpointing")) for prefix in ("", "fsdp_")
    )
    if recompute and inner:
        reading.find("both-recompute")
    if (
        values.get("deepspeed") is None
        and fsdp
        and switched is not False
        and (config is None or isinstance(config, dict))
    ):
        version = config_value(config or {}, "version")
        reading.know("strategy", "fsdp1" if number(version) == 1 else "fsdp2", "fsdp")


def config_value(config: dict[str, Any], key: str) -> Any:
    return config.get(key, config.get(f"fsdp_{key}"))


def fsdp_config(reading: Reading, config: dict[str, Any]) -> None:
    """Every key of an ``fsdp_config``, resolved."""
    version = number(config_value(config, "version")) or 2
    for written, value in config.items():
        key = str(written).removeprefix("fsdp_")
        takes = FSDP_KEYS | (FSDP1_KEYS if version == 1 else set())
        if key in takes:
            reading.set(f"fsdp_config.{written}", value, value, "TrainingArguments")
            continue
        reading.set(f"fsdp_config.{written}", value, "not read", "TrainingArguments")
        if version == 2 and key in FSDP1_KEYS:
            reading.find("fsdp2-ignores-key", name=written, value=value, cure="delete it")
            continue
        near = difflib.get_close_matches(key, takes, 1, 0.75)
        cure = FSDP_CURES.get(key) or (f"write `{near[0]}`" if near else "delete it")
        reading.find("fsdp-config-unread", name=written, cure=cure)
    reading.know("strategy", f"fsdp{version}", "version")
    if version == 1:
        reading.find("fsdp1-deprecated")
    if version == 2 and config_value(config, "state_dict_type") == "LOCAL_STATE_DICT":
        reading.find("local-state-dict")
    reading.know("state_dict", state_dict_kind(config_value(config, "state_dict_type")), "fsdp_config")
    reshard = truth(config_value(config, "reshard_after_forward"))
    reading.know("reshard_after_forward", reshard, "fsdp_config")
    reading.know("checkpointing", truth(config_value(config, "activation_checkpointing")), "fsdp_config")
