"""DeepSpeed on the ranks of this machine: ZeRO through its engine, the Trainer and Accelerate (lesson 13).

    ranks = shared_ranks(2)
    ranks(train_engine, stage=2)    # -> per rank {"losses", "from_alone", "wrapper", "bytes", ...}

Each function repeats ``reference.train_alone`` on the ranks and says what ran. Without a GPU for each rank they use
gloo and build none of DeepSpeed's C++ operators, which would take minutes; with GPUs NCCL, without edits.

Source: https://www.deepspeed.ai/docs/config-json and Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward
Training Trillion Parameter Models", section 5.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_utils.data.batches import Batch, to_device
from course_utils.parallel import reference
from course_utils.parallel.held import Exchanged, bytes_behind

BATCH = 8  # rows of a global batch
HELD = ("parameters", "gradients", "master copies", "optimizer")


def is_available() -> bool:
    """Whether DeepSpeed is installed; nothing is imported. It has no wheels for Windows and none of use on macOS."""
    return importlib.util.find_spec("deepspeed") is not None


def ds_config(
    stage: int,
    ranks: int = 2,
    accumulation: int = 1,
    offload: str = "none",
    batch: int = BATCH,
    **zero: Any,
) -> dict[str, Any]:
    """The JSON of a run that equals the reference: no clipping, every parameter divided.

    Args:
        offload: "none", "optimizer" or "all" (stage 3: parameters too).
        batch: rows of an optimizer step over all ranks.
        **zero: more of ``zero_optimization``, or others of its values.

    Raises:
        ValueError: ``stage`` or ``offload`` is unknown, or the batch cannot be shared out.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage={stage} is not known; allowed: 0, 1, 2, 3")
    if offload not in ("none", "optimizer", "all") or (offload == "all" and stage != 3):
        raise ValueError(f"offload={offload!r} does not go with stage {stage}; allowed: none, optimizer, all (stage 3)")
    if batch % (ranks * accumulation):
        raise ValueError(f"batch={batch} is no multiple of {ranks} ranks x {accumulation}; allowed: a multiple")
    own: dict[str, Any] = {"stage": stage}
    if stage == 3:
        own["stage3_param_persistence_threshold"] = 0  # or a model as small as this one is not divided at all
    place = {"device": "cpu", "pin_memory": on_gpus()}
    own |= {"offload_optimizer": place} if offload != "none" else {}
    own |= {"offload_param": place} if offload == "all" else {}
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,  # left out it would be 1.0
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # or offloading insists on DeepSpeed's, which is built with a compiler
        "zero_optimization": own | zero,
    }


def on_gpus() -> bool:
    """Whether torch sees a GPU for each rank of this machine."""
    return torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 0 and torch.cuda.is_available()


@functools.cache
def begin() -> None:
    """Make this process a rank that DeepSpeed knows: its process group, and no C++ build where there is no GPU."""
    torch.set_num_threads(1)
    if on_gpus():
        import deepspeed

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed(dist_backend="nccl")
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    from course_utils.parallel import cpu_repairs

    for name in ("deepspeed.ops", "deepspeed.runtime.zero.partition_parameters"):
        module = importlib.import_module(name)
        cpu_repairs.REPAIRS[name](module)
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")


def new_engine(config: dict[str, Any], model: nn.Module | None = None) -> Any:
    """``deepspeed.initialize`` on the reference's model and AdamW: the engine, which is model and optimizer in one."""
    import deepspeed

    model = model or reference.new_model()
    engine, *_ = deepspeed.initialize(model=model, optimizer=reference.new_optimizer(model), config=config)
    return engine


def train_engine(
    stage: int = 1,
    steps: int = 6,
    accumulation: int = 1,
    offload: str = "none",
    zero: dict[str, Any] | None = None,
    without: list[str] | None = None,
    seed: int = 0,
    source: str = "local",
) -> dict[str, Any]:
    """The reference through ``deepspeed.initialize``, ``engine.backward`` and ``engine.step``.

    ``bytes`` are held between the micro-batches of the last step (with accumulation; else before its ``step``);
    ``exchanged`` are the collectives of that step: name -> [calls, elements]; the rest is ``facts``.

    Args:
        zero: more of ``zero_optimization``.
        without: names to leave out of the JSON, so that DeepSpeed's own defaults hold.
    """
    begin()
    ranks = dist.get_world_size()
    config = ds_config(stage, ranks, accumulation, offload, **(zero or {}))
    for name in without or ():
        (config if name in config else config["zero_optimization"]).pop(name)
    engine = new_engine(config, reference.new_model(seed))
    found: dict[str, Any] = {}

    def step(shares: list[Batch], targets: int, is_last: bool) -> Tensor:
        total = torch.zeros((), device=engine.device)
        for number, batch in enumerate(shares):
            # The engine divides by the ranks and by the micro-batches of a step: undo both, divide by the targets.
            loss = reference.summed_loss(engine, batch) / targets * ranks * accumulation
            engine.backward(loss)
            if is_last and number == 0:
                found["bytes"] = bytes_held(engine)
            engine.step()
            total += loss.detach() / (ranks * accumulation)
        return total

    losses = run_batches(step, steps, accumulation, engine.device, found, seed, source)
    return found | facts(engine, engine.module, losses, accumulation, seed, source)


def run_batches(
    step: Callable[[list[Batch], int, bool], Tensor],
    steps: int,
    accumulation: int,
    device: torch.device,
    found: dict[str, Any],
    seed: int = 0,
    source: str = "local",
) -> list[float]:
    """Give ``step`` this rank's micro-batches of each global batch; the losses, summed over the ranks.

    ``found["exchanged"]`` gets the collectives of the last step.
    """
    rank, ranks, losses = dist.get_rank(), dist.get_world_size(), []
    for number, batch in enumerate(reference.global_batches(steps, BATCH, seed, source)):
        own = reference.share(batch, rank, ranks)
        shares = [to_device(reference.share(own, i, accumulation), device) for i in range(accumulation)]
        with Exchanged() as log:
            loss = step(shares, reference.count_targets(batch), number == steps - 1)
        found["exchanged"] = {
            name: [log.count(name), sum(n for called, n in log.calls if called == name)]
            for name in sorted({called for called, _ in log.calls})
        }
        dist.all_reduce(loss)
        losses.append(loss.item())
    return losses


def volume(exchanged: dict[str, list[int]]) -> int:
    """Elements moved by the collectives of a step as the ZeRO paper counts: an all-reduce of n elements moves 2 n."""
    return sum((2 if name == "all-reduce" else 1) * elements for name, (_, elements) in exchanged.items())


def facts(
    engine: Any, model: nn.Module, losses: list[float], accumulation: int = 1, seed: int = 0, source: str = "local"
) -> dict[str, Any]:
    """What ran, and how far losses and final weights are from one process on the same rows.

    ``from_alone`` is the distance from whole batches, ``from_micro_batches`` from one process that adds up as many
    micro-batches as the ranks have together.
    """
    weights = whole_weights(model)
    alone, parts = (_alone(len(losses), n, seed, source) for n in (1, accumulation * dist.get_world_size()))
    first = next(model.parameters())
    return {
        "losses": losses,
        "from_alone": (weights - alone["weights"]).abs().max().item(),
        "from_micro_batches": (weights - parts["weights"]).abs().max().item(),
        "losses_from_alone": max(abs(a - b) for a, b in zip(losses, alone["losses"], strict=True)),
        "world_size": dist.get_world_size(),
        "backend": dist.get_backend(),
        "wrapper": type(engine).__name__,
        "optimizer": type(engine.optimizer).__name__,
        "stage": engine.zero_optimization_stage(),
        "train_batch_size": engine.train_batch_size(),
        "shards": {
            "embedding": list(first.ds_tensor.shape if hasattr(first, "ds_tensor") else first.shape),
            "optimizer": [p.numel() for p in master_copies(engine)],
        },
    }


@functools.cache
def _alone(steps: int, parts: int, seed: int, source: str) -> dict[str, Any]:
    return reference.train_alone(steps, BATCH, seed, source, accumulation=parts)


@torch.no_grad()
def whole_weights(model: nn.Module) -> Tensor:
    """``reference.flat_weights``, gathered first where ZeRO-3 has taken the parameters apart; every rank calls it."""
    parameters = list(model.parameters())
    if not hasattr(parameters[0], "ds_tensor"):
        return reference.flat_weights(model)
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        return reference.flat_weights(model)


def master_copies(engine: Any) -> list[Tensor]:
    """DeepSpeed's own fp32 copy of this rank's slices, which the optimizer updates; stage 0 has none."""
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    return []


def bytes_held(engine: Any) -> dict[str, int]:
    """Bytes on this rank at this moment by kind of state: ``HELD`` -> bytes, the padding of slices included."""
    optimizer, parameters = engine.optimizer, list(engine.module.parameters())
    masters, base = master_copies(engine), optimizer
    while hasattr(base, "optimizer"):
        base = base.optimizer
    own = [p.ds_tensor if hasattr(p, "ds_tensor") else p for p in parameters]
    if hasattr(parameters[0], "ds_tensor"):  # ZeRO-3: slices, and what is gathered at this moment
        own += [p for p in parameters if p.ds_status.name == "AVAILABLE"]
    gradients = [p.grad for p in [*parameters, *masters] if p.grad is not None]
    for name in ("averaged_gradients", "all_grad_tensors", "grad_partitions_flat_buffer"):
        gradients += tensors_in(getattr(optimizer, name, None))
    state = [t for entry in base.state.values() for t in entry.values() if isinstance(t, Tensor) and t.dim()]
    kinds = (own, gradients, masters, state)
    return {name: bytes_behind(tensors) for name, tensors in zip(HELD, kinds, strict=True)}


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for inner in values for tensor in tensors_in(inner)]
