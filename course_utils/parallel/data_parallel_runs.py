"""The reference run, data parallel in five ways; each function runs on a rank (lessons 11 and 13).

    ranks(train_data_parallel, kind="ddp", steps=10)
    # -> per rank {"losses", "from_alone", "from_micro_batches", "world_size", "backend", "wrapper", "hash", ...}

All of them take the same rows in the same order as ``reference.train_alone``, and divide by the targets of all ranks.
"""

from __future__ import annotations

import functools
import tempfile
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.data.batches import IGNORED, Batch, to_device
from course_utils.parallel import reference
from course_utils.parallel.data_parallel import AverageAfter, AverageInBuckets
from course_utils.parallel.links import GroupLink, join_group
from course_utils.parallel.sharded import shard_shapes

KINDS = ("naive", "bucketed", "ddp", "accelerate", "trainer")
Trained = tuple[list[float], Any, str | None]  # losses, the wrapped model, accelerate's distributed type
EVERY = 101  # each 101st weight is sent home for comparisons


def train_data_parallel(
    kind: str,
    steps: int = 10,
    accumulation: int = 1,
    seed: int = 0,
    source: str = "local",
    average_tokens: bool = True,
    size: int = 8,
) -> dict[str, Any]:
    """``steps`` optimizer steps of the reference run on the ranks that call this.

    Args:
        kind: one of ``KINDS``.
        accumulation: micro-batches a step and rank; ``size`` must be divisible by ranks x ``accumulation``.
        average_tokens: of the Trainer (``average_tokens_across_devices``); False: each rank divides by its own targets.
        size: rows of the global batch.

    Returns:
        ``losses`` per step, over the targets of all ranks; ``from_alone``: the largest difference of a final weight
        from ``reference.train_alone``; ``from_micro_batches``: from one process that adds up as many micro-batches as
        the ranks have together; ``world_size``, ``backend``, ``distributed_type`` (accelerate's; None: without it),
        ``wrapper``, ``shards`` (name -> shape of what this rank has of each parameter): what really ran; ``sample``:
        some weights; ``hash``: of all of them.

    Raises:
        ValueError: an unknown ``kind``.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; allowed: {', '.join(KINDS)}")
    link = join_group()
    model = reference.new_model(seed).to(link.device)
    batches = reference.global_batches(steps, size, seed, source)
    mine = [_micro_batches(batch, link, accumulation) for batch in batches]
    if kind == "trainer":
        rows = dealt_in_turn(batches, link.size, accumulation)
        losses, wrapped, label = _with_trainer(model, rows, link, steps, accumulation, average_tokens)
    elif kind == "accelerate":
        losses, wrapped, label = _with_accelerate(model, mine, link)
    else:
        losses, wrapped, label = _with_loop(model, mine, link, kind)
    weights = reference.flat_weights(model)
    alone, parts = (_alone(steps, size, seed, source, number) for number in (1, link.size * accumulation))
    return {
        "losses": losses,
        "from_alone": (weights - alone).abs().max().item(),
        "from_micro_batches": (weights - parts).abs().max().item(),
        "world_size": link.size,
        "backend": link.backend,
        "distributed_type": label,
        "wrapper": type(wrapped).__name__,
        "shards": shard_shapes(model),
        "sample": weights[::EVERY].tolist(),
        "hash": reference.hash_of(weights),
    }


@functools.cache
def _alone(steps: int, size: int, seed: int, source: str, accumulation: int) -> Tensor:
    return reference.train_alone(steps, size, seed, source, accumulation)["weights"]


def _micro_batches(batch: Batch, link: GroupLink, accumulation: int) -> list[Batch]:
    own = reference.share(batch, link.rank, link.size)
    return [to_device(reference.share(own, i, accumulation), link.device) for i in range(accumulation)]


def _targets(window: list[Batch], link: GroupLink) -> int:
    """Targets of a window on all ranks."""
    own = torch.tensor(sum(map(reference.count_targets, window)), device=link.device)
    return int(link.all_reduce(own))


def _with_loop(model: nn.Module, mine: list[list[Batch]], link: GroupLink, kind: str) -> Trained:
    """A plain loop around one of the wrappers, which all have ``no_sync``; DDP has nothing to finish."""
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        wrapped = {"naive": AverageAfter, "bucketed": AverageInBuckets}[kind](model, link)
    optimizer, losses = reference.new_optimizer(model), []
    for window in mine:
        targets, total = _targets(window, link), torch.zeros((), device=link.device)
        for number, batch in enumerate(window, start=1):
            with nullcontext() if number == len(window) else wrapped.no_sync():
                loss = reference.summed_loss(wrapped, batch) / targets
                (loss * link.size).backward()
            total += loss.detach()
        if kind != "ddp":
            wrapped.finish()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(link.all_reduce(total).item())
    return losses, wrapped, None


def _with_accelerate(model: nn.Module, mine: list[list[Batch]], link: GroupLink) -> Trained:
    """Accelerate's calls in the same loop; the rows are dealt out already, so there is no loader to prepare."""
    from accelerate import Accelerator

    from course_utils.parallel.accelerated import expect_ranks

    accelerator = Accelerator()
    wrapped, optimizer = accelerator.prepare(model, reference.new_optimizer(model))
    losses = []
    expect_ranks(accelerator, link.size, wrapped)
    for window in mine:
        targets, total = _targets(window, link), torch.zeros((), device=link.device)
        for number, batch in enumerate(window, start=1):
            with nullcontext() if number == len(window) else accelerator.no_sync(wrapped):
                loss = reference.summed_loss(wrapped, batch) / targets
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(total, "sum").item())
    return losses, wrapped, accelerator.distributed_type.name


def _with_trainer(
    model: nn.Module, rows: list, link: GroupLink, steps: int, accumulation: int, average_tokens: bool
) -> Trained:
    """The Trainer, whose rows are arranged so that its own dealing gives each rank the share of the reference."""
    from course_utils.parallel.what_ran import check_ranks
    from course_utils.training.settings import logged, quiet_trainer

    def summed(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return loss / num_items_in_batch

    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            model,
            folder,
            rows,
            data_collator=stacked,
            compute_loss_func=summed,
            use_cpu=link.device.type == "cpu",
            max_steps=steps,
            per_device_train_batch_size=len(rows) // (steps * accumulation * link.size),
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            average_tokens_across_devices=average_tokens,
            max_grad_norm=0,
            lr_scheduler_type="constant",
            logging_steps=1,
        )
        trainer.optimizer = reference.new_optimizer(model)
        check_ranks(trainer)
        trainer.train()
        losses = [loss for _, loss in logged(trainer, "loss")]
        return losses, trainer.model_wrapped, trainer.accelerator.distributed_type.name


def dealt_in_turn(batches: list[Batch], ranks: int, accumulation: int) -> list[dict[str, Tensor]]:
    """All ranks' rows in the order in which the Trainer's loader deals out batches: rank 0, rank 1, ..., rank 0.

    The first label of a row is no target; it is marked so, because the Trainer counts every label that is not -100.
    """
    rows = []
    for batch in batches:
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORED
        shares = [reference.share(batch | {"labels": labels}, rank, ranks) for rank in range(ranks)]
        for number in range(accumulation):
            for own in shares:
                part = reference.share(own, number, accumulation)
                rows += [{name: part[name][i] for name in part} for i in range(len(labels) // ranks // accumulation)]
    return rows


def stacked(rows: list[dict[str, Tensor]]) -> Batch:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
