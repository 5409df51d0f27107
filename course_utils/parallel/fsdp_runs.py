"""The reference run (``reference.py``), sharded in every way of lesson 12, on the ranks that call it.

    ranks = shared_ranks(2)
    ranks(train_sharded, kind="fully_shard", steps=8)   # -> one dict a rank

Each result says what really ran (world size, backend, distributed type, wrapper, local shard shapes), what the rank
held, the losses, and how far the final weights are from one process on the same global batches.
"""

from __future__ import annotations

import functools
import tempfile
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from course_utils.parallel import reference
from course_utils.parallel.data_parallel_runs import dealt_in_turn, stacked
from course_utils.parallel.held import held, local
from course_utils.parallel.sharded import join, my_rows, rehearsal, set_up, shard_shapes, whole_weights
from course_utils.parallel.zero import STAGES

KINDS = ("ddp", *STAGES, "fully_shard", "fsdp1", "fsdp2", "fsdp2_trainer")


@functools.cache
def _alone(steps: int, seed: int, source: str, parts: int = 1) -> dict[str, Any]:
    return reference.train_alone(steps, seed=seed, source=source, accumulation=parts)


@functools.cache
def _alone_gradient(seed: int, source: str) -> float:
    """Length of the first step's gradient in one process."""
    model, (batch,) = reference.new_model(seed), reference.global_batches(1, seed=seed, source=source)
    (reference.summed_loss(model, batch) / reference.count_targets(batch)).backward()
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()


def gradient_length(model: nn.Module, optimizer: Any) -> float:
    """Length of the gradient of all ranks, read from AdamW's first moment after its first step (every rank calls it).

    AdamW's steps hardly depend on the gradient's length, so a lost factor hardly shows in the weights.
    """
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
        optimizer = optimizer.optimizer
    sums = torch.zeros(2, dtype=torch.float64)  # squares, elements
    for group in optimizer.param_groups:
        for entry in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
            moment = local(entry["exp_avg"]).detach().double() / (1 - group["betas"][0])
            sums += torch.stack([moment.square().sum().cpu(), torch.tensor(float(moment.numel()))])
    sums = sums.to(next(model.parameters()).device)
    dist.all_reduce(sums)
    squares, elements = sums.tolist()
    whole = sum(p.numel() for p in reference.new_model().parameters())
    return (squares / round(elements / whole)) ** 0.5  # under DDP every rank has a copy


def train_sharded(
    kind: str,
    steps: int = 8,
    seed: int = 0,
    source: str = "local",
    rehearse: bool = True,
    accumulation: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Train the reference run in the way ``kind`` on the ranks that call it.

    Args:
        kind: one of ``KINDS``: "zero1", "zero2", "zero3" by hand; "fully_shard" (torch's FSDP2); "fsdp1" (torch's
            ``FullyShardedDataParallel``); "fsdp2" (FSDP2 through ``Accelerator``); "fsdp2_trainer" (through
            ``TrainingArguments``); "ddp" for comparison.
        steps: optimizer steps, >= 2.
        rehearse: False: accelerate is not told to shard on CPU ranks (see ``rehearsal``), and does not.
        accumulation: micro-batches a step and rank; ranks x ``accumulation`` must divide 8.
        **options: for zero3 and fully_shard ``reshard_after_forward``; for fully_shard what ``shard`` takes; for fsdp2
            fields of accelerate's plugin, or ``environment``: the variables that ``accelerate launch`` makes of a YAML
            file; for fsdp2_trainer keys of ``fsdp_config``.

    Returns:
        ``losses`` (a float a step), ``from_alone`` and ``losses_from_alone`` (largest difference to one process),
        ``gradient_from_alone`` (relative difference of the first gradient's length), ``world_size``, ``backend``,
        ``distributed_type``, ``wrapper``, ``shards`` (name -> local shape), ``held`` (bytes before the last step),
        ``from_micro_batches`` (as ``from_alone``, to one process that takes the ranks' micro-batches in turn); without
        the Trainer also ``gathered``: bytes of whole parameters beside the shards after the last forward pass.

    Raises:
        ValueError: an unknown ``kind``.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; allowed: {', '.join(KINDS)}")
    device = join()
    run = {"steps": steps, "seed": seed, "source": source, "accumulation": accumulation}
    if kind == "fsdp2_trainer":
        found = _with_trainer(rehearse=rehearse, **run, **options)
    elif kind == "fsdp2":
        with rehearsal(rehearse):
            found = _train(kind, device, **run, **options)
    else:
        found = _train(kind, device, **run, **options)
    alone, parts = (_alone(steps, seed, source, n) for n in (1, accumulation * dist.get_world_size()))
    apart = [abs(a - b) for a, b in zip(found["losses"], alone["losses"], strict=True)]
    found["gradient_from_alone"] = abs(found.pop("gradient") / _alone_gradient(seed, source) - 1)
    weights = found.pop("weights")
    return {
        **found,
        "from_alone": (weights - alone["weights"]).abs().max().item(),
        "from_micro_batches": (weights - parts["weights"]).abs().max().item(),
        "losses_from_alone": max(apart),
        "world_size": dist.get_world_size(),
        "backend": dist.get_backend(),
    }


def _train(
    kind: str, device: torch.device, steps: int, seed: int, source: str, accumulation: int, **options: Any
) -> dict[str, Any]:
    """The loop of ``reference.train_alone``, with this rank's rows."""
    model, optimizer, step, facts = set_up(kind, reference.new_model(seed).to(device), **options)
    scale = 1 if kind in STAGES else dist.get_world_size()  # by hand gradients are summed; DDP and FSDP average them
    losses, gathered = [], facts.pop("gathered")
    for number, batch in enumerate(reference.global_batches(steps, seed=seed, source=source)):
        mine, total = my_rows(batch, device), torch.zeros((), device=device)
        for part in range(accumulation):
            waits = kind == "ddp" and part < accumulation - 1  # the others reduce after every micro-batch
            with model.no_sync() if waits else nullcontext():
                rows = reference.share(mine, part, accumulation)
                loss = reference.summed_loss(model, rows) / reference.count_targets(batch)
                facts["gathered"] = gathered()
                (loss * scale).backward()
            total += loss.detach()
        if number == steps - 1:
            facts["held"] = held(model, optimizer)
        step()
        if number == 0:
            facts["gradient"] = gradient_length(model, optimizer)
        dist.all_reduce(total)
        losses.append(total.item())
    return {"losses": losses, "weights": facts.pop("gather")(), **facts}


def _with_trainer(
    steps: int, seed: int, source: str, accumulation: int, rehearse: bool, **config: Any
) -> dict[str, Any]:
    """FSDP2 through ``TrainingArguments``: the same rows in the same order, AdamW with one group, no clipping."""
    from transformers import TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    ranks = dist.get_world_size()
    rows = dealt_in_turn(reference.global_batches(steps, seed=seed, source=source), ranks, accumulation)
    found: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == steps - 1:
                found["held"] = held(trainer.model_wrapped, optimizer)

        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 1:
                found["gradient"] = gradient_length(trainer.model_wrapped, optimizer)

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            use_cpu=not torch.cuda.is_available(),
            fsdp=True,
            fsdp_config={"transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"]} | config,
            per_device_train_batch_size=8 // ranks // accumulation,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_steps=steps,
            max_grad_norm=0,
            lr_scheduler_type="constant",
            logging_steps=1,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        )
        with rehearsal(rehearse):  # TrainingArguments has let the ranks meet; the Trainer makes its Accelerator
            trainer = _one_group()(
                reference.new_model(seed),
                args,
                train_dataset=rows,
                data_collator=stacked,
                callbacks=[Look()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return found | {
                "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
                "weights": whole_weights(trainer.model_wrapped),
                "distributed_type": trainer.accelerator.distributed_type.name,
                "wrapper": type(trainer.model_wrapped).__name__,
                "shards": shard_shapes(trainer.model_wrapped),
            }


def _one_group() -> type:
    """A Trainer whose AdamW is the reference's: decay on all parameters, norms included."""
    from transformers import Trainer

    class OneGroup(Trainer):
        def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
            self.optimizer = reference.new_optimizer(self.model if model is None else model)
            return self.optimizer

    return OneGroup
