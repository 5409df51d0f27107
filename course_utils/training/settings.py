"""The settings of a Trainer run: a table of those used most, checked against the installed transformers (lesson 03).

Reference: transformers' documentation page "Trainer", section "TrainingArguments". Names and defaults are not copied
from it: they are read from the installed dataclass, so that a renamed argument is an error here and not a stale line.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import progress

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class Setting:
    """One TrainingArguments field: what group it belongs to, a typical value and what it is for."""

    group: str
    name: str
    typical: Any
    purpose: str


# The typical values are valid together: `TrainingArguments(**typical_values())` is a complete configuration where there
# is a GPU; without one, bf16 asks for `use_cpu=True` as well (tested).
MOST_USED = (
    Setting("optimisation", "learning_rate", 5e-5, "peak rate; 1e-5 to 5e-5 fine-tuning, 1e-4 to 1e-3 from scratch"),
    Setting("optimisation", "lr_scheduler_type", "cosine", "shape of the rate after the warm-up"),
    Setting("optimisation", "warmup_steps", 0.1, "below 1: share of all steps; from 1 on: a number of steps"),
    Setting("optimisation", "weight_decay", 0.01, "decoupled decay; biases and norms are left out"),
    Setting("optimisation", "max_grad_norm", 1.0, "clip the global gradient norm; 0 does not clip"),
    Setting("optimisation", "optim", "adamw_torch_fused", "which optimizer"),
    Setting("optimisation", "num_train_epochs", 3.0, "passes over the data; ignored when max_steps is set"),
    Setting("optimisation", "max_steps", -1, "optimizer steps; -1: as many as the epochs need"),
    Setting("batch", "per_device_train_batch_size", 16, "rows per forward pass on one device"),
    Setting("batch", "gradient_accumulation_steps", 2, "forward passes per optimizer step"),
    Setting("batch", "train_sampling_strategy", "random", "rows: 'random', 'sequential', 'group_by_length'"),
    Setting("batch", "dataloader_num_workers", 2, "processes that collate batches ahead of time"),
    Setting("batch", "remove_unused_columns", True, "drop columns that the model's forward does not name"),
    Setting("batch", "label_names", None, "keys of the batch that are labels; None: from the model's signature"),
    Setting("precision", "bf16", True, "bfloat16 autocast: Ampere GPUs and newer, recent CPUs"),
    Setting("precision", "fp16", False, "float16 autocast with loss scaling: older GPUs"),
    Setting("precision", "activation_checkpointing", False, "recompute activations: less memory, more time"),
    Setting("precision", "torch_compile", False, "compile the model"),
    Setting("logging", "logging_strategy", "steps", "when to log: 'no', 'steps' or 'epoch'"),
    Setting("logging", "logging_steps", 10, "average the loss over this many steps"),
    Setting("logging", "logging_nan_inf_filter", False, "True puts a number in the place of a loss that is NaN"),
    Setting("logging", "report_to", "tensorboard", "trackers: 'tensorboard', 'wandb', 'trackio', a list, 'none'"),
    Setting("logging", "run_name", "baseline", "the run's name in the tracker"),
    Setting("evaluation", "eval_strategy", "steps", "when to evaluate: 'no', 'steps' or 'epoch'"),
    Setting("evaluation", "eval_steps", 500, "every so many optimizer steps; None: logging_steps"),
    Setting("evaluation", "per_device_eval_batch_size", 64, "no gradients are kept: larger than for training"),
    Setting("evaluation", "eval_accumulation_steps", 16, "move predictions to the CPU every so many batches"),
    Setting("checkpoints", "save_strategy", "steps", "when to save: 'no', 'steps', 'epoch' or 'best'"),
    Setting("checkpoints", "save_steps", 500, "every so many optimizer steps"),
    Setting("checkpoints", "save_total_limit", 2, "delete older checkpoints, never the best one"),
    Setting("checkpoints", "save_only_model", False, "True: weights only; no exact resume"),
    Setting("checkpoints", "load_best_model_at_end", True, "reload the best step's weights, if that step was saved"),
    Setting("checkpoints", "metric_for_best_model", "eval_macro_f1", "what 'best' means; a key of the evaluation"),
    Setting("checkpoints", "greater_is_better", True, "None: True unless the metric's name ends in 'loss'"),
    Setting("checkpoints", "push_to_hub", False, "upload weights and configuration at every save"),
    Setting("reproducibility", "seed", 0, "Python, NumPy, torch: weights made by model_init, order, dropout"),
    Setting("reproducibility", "data_seed", None, "order of the rows with 'random' sampling; None: seed"),
    Setting("reproducibility", "full_determinism", False, "deterministic kernels: slower, for debugging"),
    Setting("reproducibility", "use_cpu", False, "ignore a GPU that is there"),
)
# Fields that name, place or report a run and cannot change a single weight. save_strategy and save_steps are not among
# them: they decide which checkpoint load_best_model_at_end finds.
_BOOKKEEPING = """
output_dir run_name project report_to disable_tqdm log_level log_level_replica log_on_each_node logging_strategy
logging_steps logging_first_step logging_nan_inf_filter include_num_input_tokens_seen
save_total_limit save_on_each_node save_only_model push_to_hub hub_model_id hub_token hub_strategy
hub_private_repo hub_always_push hub_revision trackio_space_id trackio_bucket_id trackio_static_space_id
dataloader_pin_memory skip_memory_metrics debug do_train do_eval do_predict
"""
BOOKKEEPING = frozenset(_BOOKKEEPING.split())
GROUPS = tuple(dict.fromkeys(setting.group for setting in MOST_USED))


def is_argument(name: str, of: Callable | None = None) -> bool:
    """Whether ``of`` (default: the installed ``TrainingArguments``) takes an argument called ``name``."""
    from transformers import TrainingArguments

    return name in inspect.signature(of or TrainingArguments).parameters


def default_of(name: str) -> Any:
    """The installed default of TrainingArguments' field ``name``.

    Raises:
        ValueError: there is no such field in the installed transformers.
    """
    import transformers

    fields = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}
    if name not in fields:
        raise ValueError(f"{name!r} is no argument of TrainingArguments in transformers {transformers.__version__}")
    field = fields[name]
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


def typical_values(group: str | None = None) -> dict[str, Any]:
    """Typical value of each setting of ``group`` (None: of all groups), as keyword arguments."""
    return {setting.name: setting.typical for setting in _of_group(group)}


def settings_table(group: str | None = None) -> str:
    """The most used settings of ``group`` (None: all) as a Markdown table; defaults come from the installed class.

    Raises:
        ValueError: an unknown group, or a setting that the installed class does not have.
    """
    lines = ["| group | argument | default | typical | what it does |", "|---|---|---|---|---|"]
    for s in _of_group(group):
        lines.append(f"| {s.group} | `{s.name}` | `{default_of(s.name)!r}` | `{s.typical!r}` | {s.purpose} |")
    return "\n".join(lines)


def _of_group(group: str | None) -> list[Setting]:
    if group is not None and group not in GROUPS:
        raise ValueError(f"group={group!r} is not known; allowed: {', '.join(map(repr, GROUPS))}")
    return [setting for setting in MOST_USED if group in (None, setting.group)]


def quiet_trainer(
    model: Any,
    output_dir: str | Path,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    *,
    data_collator: Callable | None = None,
    compute_metrics: Callable | None = None,
    compute_loss_func: Callable | None = None,
    callbacks: Sequence = (),
    trainer_class: type[Trainer] | None = None,
    **settings: Any,
) -> Trainer:
    """A Trainer that prints nothing, reports nowhere and saves nothing unless ``settings`` say so.

    Its results are read from ``trainer.state.log_history``. Every keyword not named here goes to TrainingArguments.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "dataloader_pin_memory": False}
    trainer = (trainer_class or Trainer)(
        model,
        TrainingArguments(output_dir=str(output_dir), **(quiet | settings)),
        data_collator=data_collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
        compute_loss_func=compute_loss_func,
        callbacks=[*callbacks, *progress.trainer_callbacks()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(trainer: Trainer, key: str) -> list[tuple[int, float]]:
    """``(step, value)`` of every entry of ``trainer.state.log_history`` that has ``key``."""
    return [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]
