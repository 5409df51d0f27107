"""The one table: every way of training on several processes against one process on the same rows (lessons 11 to 13).

    rows = table(shared_ranks(2), steps=6)   # -> [{"name", "weights", "losses", "bound", "reason", ...}, ...]

All train ``reference.py``'s model on the same global batches, whose ranks hold different numbers of targets. Each row
says how far it may be from one process, and why it is not zero.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from course_utils.parallel import reference

FACTS = ("world_size", "backend", "distributed_type", "wrapper", "from_micro_batches")
SUM = "the ranks' sums are added, one process adds all rows at once"
MICRO = "micro-batches and ranks: another order of the same sums"
SLICES = "sums as above; slices may cut a tensor, AdamW works on each number alone"
STAGE_3 = "DeepSpeed's stage 3 adds up in an order of its own"
WRONG = "each rank divides by its own targets: another loss"


class Row(NamedTuple):
    """One way of training: where its function is, what it is asked, how far it may be from one process, and why.

    ``bound`` is for the largest difference of a final weight; losses may differ by as much.
    """

    name: str
    module: str
    function: str
    arguments: dict[str, Any]
    bound: float
    reason: str
    differs: bool = False  # a counterexample: must be farther away than its bound


def _row(name: str, function: str, bound: float, reason: str, differs: bool = False, **arguments: Any) -> Row:
    modules = {
        "train_data_parallel": "data_parallel_runs",
        "train_sharded": "fsdp_runs",
        "train_engine": "deepspeed_runs",
    }
    module = f"course_utils.parallel.{modules.get(function, 'deepspeed_hf')}"
    return Row(name, module, function, arguments, bound, reason, differs)


CLOSE = 2e-5  # float32 sums in another order, enlarged by AdamW where a gradient is nearly zero
ROWS = (
    _row("by hand: average at the end", "train_data_parallel", CLOSE, SUM, kind="naive"),
    _row("by hand: in buckets", "train_data_parallel", CLOSE, SUM, kind="bucketed"),
    _row("by hand: in buckets, 2 micro-batches", "train_data_parallel", CLOSE, MICRO, kind="bucketed", accumulation=2),
    _row("DDP", "train_data_parallel", CLOSE, SUM, kind="ddp"),
    _row("DDP, 2 micro-batches", "train_data_parallel", CLOSE, MICRO, kind="ddp", accumulation=2),
    _row("Accelerate, DDP", "train_data_parallel", CLOSE, SUM, kind="accelerate"),
    _row("Trainer, DDP", "train_data_parallel", CLOSE, SUM, kind="trainer"),
    _row("ZeRO-1 by hand", "train_sharded", CLOSE, SLICES, kind="zero1"),
    _row("ZeRO-2 by hand", "train_sharded", CLOSE, SLICES, kind="zero2"),
    _row("ZeRO-2 by hand, 2 micro-batches", "train_sharded", CLOSE, MICRO, kind="zero2", accumulation=2),
    _row("ZeRO-3 by hand", "train_sharded", CLOSE, SLICES, kind="zero3"),
    _row("ZeRO-3 by hand, 2 micro-batches", "train_sharded", CLOSE, MICRO, kind="zero3", accumulation=2),
    _row("FSDP1", "train_sharded", CLOSE, SLICES, kind="fsdp1"),
    _row("FSDP2, fully_shard", "train_sharded", CLOSE, SLICES, kind="fully_shard"),
    _row("FSDP2, 2 micro-batches", "train_sharded", CLOSE, MICRO, kind="fully_shard", accumulation=2),
    _row("Accelerate, FSDP2", "train_sharded", CLOSE, SLICES, kind="fsdp2"),
    _row("Trainer, FSDP2", "train_sharded", CLOSE, SLICES, kind="fsdp2_trainer"),
    _row("Trainer, FSDP2, 2 micro-batches", "train_sharded", CLOSE, MICRO, kind="fsdp2_trainer", accumulation=2),
    _row("DeepSpeed ZeRO-1", "train_engine", CLOSE, SLICES, stage=1),
    _row("DeepSpeed ZeRO-2", "train_engine", CLOSE, SLICES, stage=2),
    _row("DeepSpeed ZeRO-2, 2 micro-batches", "train_engine", CLOSE, MICRO, stage=2, accumulation=2),
    _row("DeepSpeed ZeRO-2, optimizer offload", "train_engine", CLOSE, SLICES, stage=2, offload="optimizer"),
    _row("DeepSpeed ZeRO-3", "train_engine", CLOSE, STAGE_3, stage=3),
    _row("DeepSpeed ZeRO-3, all offloaded", "train_engine", CLOSE, STAGE_3, stage=3, offload="all"),
    _row("DeepSpeed ZeRO-3, 2 micro-batches", "train_engine", CLOSE, STAGE_3, stage=3, accumulation=2),
    _row("Trainer, ZeRO-2", "train_trainer", CLOSE, SLICES, stage=2),
    _row("Accelerate, ZeRO-3", "train_accelerate", CLOSE, STAGE_3, stage=3),
    _row(
        "Trainer, DDP, targets not shared",
        "train_data_parallel",
        1e-3,
        WRONG,
        differs=True,
        kind="trainer",
        average_tokens=False,
    ),
)


def run_row(module: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Carry out one row on this rank, with the environment that accelerate expects of CPU ranks."""
    import torch

    if torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    for strategy in ("FSDP", "DEEPSPEED"):  # left by an Accelerator of the row before
        os.environ.pop(f"ACCELERATE_USE_{strategy}", None)
    torch.set_num_threads(1)
    found = getattr(importlib.import_module(module), name)(**arguments)
    shards = dict(islice(found["shards"].items(), 3))  # the embedding first; of ZeRO by hand all units
    return {key: found.get(key) for key in ("losses", "from_alone", *FACTS)} | {"shards": shards}


def table(
    ranks: Callable[..., list[Any]],
    steps: int = 6,
    seed: int = 0,
    source: str = "local",
    rows: Sequence[Row] = ROWS,
) -> list[dict[str, Any]]:
    """Every row executed on ``ranks``: ``name``, ``weights`` and ``losses`` (largest difference to one process, over
    weights and steps, on the rank that is farther away), ``world_size``, ``backend``, ``distributed_type``
    (accelerate's; None: without it), ``wrapper``, ``shards`` (a rank's first local shapes, by name, rank 0 first),
    ``from_micro_batches`` (distance of the weights from one process with the ranks' micro-batches), ``bound``,
    ``reason``, ``differs``, and ``holds``: both differences are within the bound (or beyond, where due).

    Args:
        ranks: ``Ranks`` or what behaves like it.
    """
    alone = reference.train_alone(steps, seed=seed, source=source)["losses"]
    found = []
    for row in rows:
        asked = row.arguments | {"steps": steps, "seed": seed, "source": source}
        results = ranks(run_row, module=row.module, name=row.function, arguments=asked)
        weights = max(result["from_alone"] for result in results)
        losses = max(abs(a - b) for result in results for a, b in zip(result["losses"], alone, strict=True))
        near = max(weights, losses) <= row.bound
        found.append(
            {"name": row.name, "weights": weights, "losses": losses, "bound": row.bound, "reason": row.reason}
            | {"differs": row.differs, "holds": weights > row.bound if row.differs else near}
            | {"shards": [result["shards"] for result in results]}
            | {key: results[0][key] for key in FACTS}
        )
    return found


@functools.cache
def names() -> tuple[str, ...]:
    """The rows' names, in order."""
    return tuple(row.name for row in ROWS)
