"""DeepSpeed through transformers' Trainer and through Accelerate, on the ranks of this machine (lesson 13).

Both fill in the JSON's ``"auto"`` values, each from what it knows, and hand the result to ``deepspeed.initialize``. The
functions here repeat ``reference.train_alone`` and return what ``deepspeed_runs.train_engine`` returns, with the JSON
``before`` and ``resolved``.

Source: transformers 5.23 (``integrations/deepspeed.py: HfTrainerDeepSpeedConfig``), accelerate 1.15
(``Accelerator._prepare_deepspeed``), https://huggingface.co/docs/transformers/deepspeed.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from course_utils.data.batches import Batch
from course_utils.parallel import reference
from course_utils.parallel.data_parallel_runs import dealt_in_turn, stacked
from course_utils.parallel.deepspeed_runs import BATCH, begin, bytes_held, facts, on_gpus, run_batches

OPTIMIZERS = ("reference", "trainer", "block")
# torch_adam: torch's own, which needs no C++ build.
ADAMW = {"type": "AdamW", "params": {"lr": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True}}


@contextmanager
def deepspeed_considered(keep_cpu_flag: bool = False) -> Iterator[None]:
    """For Trainer and Accelerator on CPU ranks: without ``ACCELERATE_USE_CPU``, which turns DeepSpeed into DDP.

    Afterwards the variable is back, and what accelerate left in the environment and in its shared state is gone.

    Args:
        keep_cpu_flag: leave the variable where it is.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = PartialState(cpu=not on_gpus())._shared_state  # gloo ranks; what follows finds them
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    state, before = dict(shared), dict(os.environ)
    if not keep_cpu_flag:
        os.environ.pop("ACCELERATE_USE_CPU", None)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "DEEPSPEED_"))]:
            if name not in before:
                del os.environ[name]
        os.environ |= {name: value for name, value in before.items() if name.startswith("ACCELERATE_")}
        shared.clear()
        shared.update(state)
        AcceleratorState._reset_state(False)


def auto_config(stage: int) -> dict[str, Any]:
    """A JSON that says what it must and leaves the rest to ``"auto"``."""
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": "auto"}
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
    }


def training_arguments(folder: str, steps: int, accumulation: int, config: dict[str, Any], **arguments: Any) -> Any:
    """TrainingArguments of the reference with a DeepSpeed JSON: constant rate, no clipping, a log line a step."""
    from transformers import TrainingArguments

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    own: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": not on_gpus(),
        "max_steps": steps,
        "per_device_train_batch_size": BATCH // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": reference.LEARNING_RATE,
        "weight_decay": reference.WEIGHT_DECAY,
        "adam_epsilon": reference.EPS,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": on_gpus(),
        "report_to": [],
        "disable_tqdm": True,
        "deepspeed": copy.deepcopy(config),
    }
    return TrainingArguments(**own | arguments)


def train_trainer(
    stage: int = 2,
    steps: int = 4,
    accumulation: int = 1,
    config: dict[str, Any] | None = None,
    optimizer: str = "reference",
    seed: int = 0,
    source: str = "local",
    **arguments: Any,
) -> dict[str, Any]:
    """The reference through ``TrainingArguments(deepspeed=...)`` and Trainer.

    Args:
        config: the JSON; None: ``auto_config(stage)``.
        optimizer: one of ``OPTIMIZERS``: the reference's AdamW (one group), the Trainer's own (norms and biases without
            decay), or an ``optimizer`` block in the JSON, from which DeepSpeed makes it.
        **arguments: more for TrainingArguments.

    Raises:
        ValueError: an unknown ``optimizer``.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r} is not known; allowed: {', '.join(OPTIMIZERS)}")
    begin()
    before = copy.deepcopy(config or auto_config(stage)) | ({"optimizer": ADAMW} if optimizer == "block" else {})
    with deepspeed_considered(), tempfile.TemporaryDirectory() as folder:
        from transformers import Trainer
        from transformers.trainer_callback import PrinterCallback

        class OneGroup(Trainer):
            """A Trainer with the reference's optimizer."""

            def create_optimizer(self, model: Any = None) -> Any:
                self.optimizer = reference.new_optimizer(self.model)
                return self.optimizer

        args = training_arguments(folder, steps, accumulation, before, **arguments)
        model = reference.new_model(seed)
        rows = _rows(steps, accumulation, seed, source)
        kind = OneGroup if optimizer == "reference" else Trainer
        trainer = kind(model, args, train_dataset=rows, data_collator=stacked)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        engine = trainer.model_wrapped
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {
            "before": before,
            "resolved": _plain(trainer.accelerator.state.deepspeed_plugin.deepspeed_config),
            "distributed_type": trainer.accelerator.distributed_type.name,
            "groups": len(engine.optimizer.param_groups),
            "bytes": bytes_held(engine),
            "norm": float(model.model.norm.weight.detach().mean()) if stage < 3 else None,
            **facts(engine, model, losses, accumulation, seed, source),
        }


def train_accelerate(
    stage: int = 2,
    steps: int = 4,
    accumulation: int = 1,
    config: dict[str, Any] | None = None,
    cpu_flag: bool = False,
    seed: int = 0,
    source: str = "local",
) -> dict[str, Any]:
    """The reference through ``Accelerator(deepspeed_plugin=...)`` and ``prepare``.

    Args:
        config: the JSON; None: ``auto_config(stage)`` without clipping.
        cpu_flag: keep ``ACCELERATE_USE_CPU``, which CPU ranks have for every other strategy: DeepSpeed is ignored.
    """
    begin()
    before = copy.deepcopy(config or auto_config(stage) | {"gradient_clipping": 0.0})
    with deepspeed_considered(keep_cpu_flag=cpu_flag):
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin

        plugin = DeepSpeedPlugin(hf_ds_config=copy.deepcopy(before))
        accelerator = Accelerator(deepspeed_plugin=plugin, gradient_accumulation_steps=accumulation)
        model = reference.new_model(seed)
        ranks = dist.get_world_size()
        rows = _rows(steps, accumulation, seed, source)
        loader = DataLoader(rows, BATCH // ranks // accumulation, collate_fn=stacked)
        model, optimizer, _ = accelerator.prepare(model, reference.new_optimizer(model), loader)
        kind = accelerator.distributed_type.name
        if kind != "DEEPSPEED":
            return {"distributed_type": kind, "wrapper": type(model).__name__, "world_size": accelerator.num_processes}

        def step(shares: list[Batch], targets: int, is_last: bool) -> Tensor:
            total = torch.zeros((), device=model.device)
            for batch in shares:
                with accelerator.accumulate(model):
                    loss = reference.summed_loss(model, batch) / targets * ranks * accumulation
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                total += loss.detach() / (ranks * accumulation)
            return total

        found: dict[str, Any] = {"before": before, "distributed_type": kind}
        losses = run_batches(step, steps, accumulation, model.device, found, seed, source)
        found["resolved"] = _plain(accelerator.state.deepspeed_plugin.deepspeed_config)
        return found | facts(model, model.module, losses, accumulation, seed, source)


def load_for_zero3(folder: str, model_first: bool) -> dict[str, int]:
    """Load a saved model before or after TrainingArguments with a ZeRO-3 JSON: what this rank then has.

    transformers keeps a weak reference to the JSON that TrainingArguments has read (``HfTrainerDeepSpeedConfig``, a
    ``HfDeepSpeedConfig``); ``from_pretrained`` looks for it and builds the model in pieces. A model that is built
    earlier is whole on every rank.

    Returns:
        ``whole``: elements of whole parameters; ``slices``: elements of this rank's slices.
    """
    begin()
    with deepspeed_considered(), tempfile.TemporaryDirectory() as place:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder) if model_first else None
        config = auto_config(3)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        args = training_arguments(place, 1, 1, config)
        model = AutoModelForCausalLM.from_pretrained(folder) if model is None else model
        del args  # until here: the reference to it is weak
        parameters = list(model.parameters())
        return {
            "whole": sum(p.numel() for p in parameters),
            "slices": sum(p.ds_tensor.numel() for p in parameters if hasattr(p, "ds_tensor")),
        }


def _rows(steps: int, accumulation: int, seed: int, source: str) -> list[dict[str, Tensor]]:
    """The reference's rows in the order in which loaders deal out batches."""
    batches = reference.global_batches(steps, BATCH, seed, source)
    return dealt_in_turn(batches, dist.get_world_size(), accumulation)


def _plain(value: Any) -> Any:
    """As JSON can say it; infinity, which accelerate puts in for "never", as text."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    is_plain = isinstance(value, bool | int | str | list | None) or isinstance(value, float) and value < float("inf")
    return value if is_plain else str(value)
