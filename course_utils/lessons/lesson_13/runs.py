"""Lesson 13's runs: on two ranks where DeepSpeed is installed, else as they were recorded when the lesson was built.

DeepSpeed is installed on Linux only. Elsewhere the cells run all the same, on the results in ``recorded.json``, and one
sentence says so. ``COURSE_RECORD=1`` writes that file while the lesson is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from course_utils.parallel import deepspeed_runs, reference, shared_ranks

if TYPE_CHECKING:
    from course_utils.launch.planner.plan import Plan

NAMES = {0: "stage 0 (DDP)", 1: "ZeRO-1", 2: "ZeRO-2", 3: "ZeRO-3"}
RECORDED = Path(__file__).with_name("recorded.json")
FREE = ("source", "seed", "folder", "steps")  # a recorded result stands for all of these

LARGER = {  # on 8 GPUs
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": 200_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
}


class LessonRanks:
    """``shared_ranks(2)``, or the recorded answers to the same calls.

    Raises:
        LookupError: DeepSpeed is missing, and this call was not recorded.
    """

    def __init__(self) -> None:
        self.runs = deepspeed_runs.is_available()
        self.recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        if not self.runs:
            print(
                "DeepSpeed is not installed here (it needs Linux): the cells below show results that were recorded on "
                "two CPU processes with the default parameters."
            )

    def __call__(self, function: Callable, **arguments: Any) -> list[Any]:
        key = f"{function.__name__} {json.dumps(_asked(arguments), sort_keys=True)}"
        if not self.runs:
            if key not in self.recorded:
                raise LookupError(
                    f"{key} was not recorded, and DeepSpeed is not installed; allowed: the lesson's calls"
                )
            return self.recorded[key]
        found = shared_ranks(2)(function, **arguments)
        if os.environ.get("COURSE_RECORD") == "1":
            self.recorded[key] = found
            RECORDED.write_text(json.dumps(self.recorded, indent=1, sort_keys=True) + "\n")
        return found

    def close(self) -> None:
        """End the ranks."""
        if self.runs:
            shared_ranks(2).close()


def _asked(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _asked(value) if isinstance(value, dict) else value
        for name, value in arguments.items()
        if name not in FREE
    }


def fsdp_step(reshard: bool, source: str = "local", seed: int = 0) -> dict[str, Any]:
    """Two steps of the reference with ``fully_shard``: collectives of the second, name -> [calls, elements]."""
    from course_utils.data.batches import to_device
    from course_utils.parallel.held import Exchanged
    from course_utils.parallel.sharded import join, shard

    device = join()
    import torch.distributed as dist

    ranks = dist.get_world_size()
    model = shard(reference.new_model(seed).to(device), reshard_after_forward=reshard)
    optimizer = reference.new_optimizer(model)
    for batch in reference.global_batches(2, seed=seed, source=source):
        own = to_device(reference.share(batch, dist.get_rank(), ranks), device)
        with Exchanged() as log:
            loss = reference.summed_loss(model, own) / reference.count_targets(batch) * ranks
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    counted = {
        name: [log.count(name), sum(n for called, n in log.calls if called == name)]
        for name, _ in dict(log.calls).items()
    }
    return {"exchanged": counted, "wrapper": " ".join(type(model).__name__.split())}


def fsdp_files(folder: str, seed: int = 0) -> dict[str, int]:
    """What ``torch.distributed.checkpoint`` writes for the same model and optimizer: file -> bytes."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict

    from course_utils.parallel.deepspeed_saved import sizes
    from course_utils.parallel.sharded import join, shard

    device = join()
    model = shard(reference.new_model(seed).to(device))
    optimizer = reference.new_optimizer(model)
    batch = reference.share(reference.global_batches(1)[0], dist.get_rank(), dist.get_world_size())
    reference.summed_loss(model, {name: value.to(device) for name, value in batch.items()}).backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    dist.barrier()
    return sizes(Path(folder))


def example(source: str) -> dict[str, Any]:
    """The first global ``batch``, and the numbers of ``targets`` of its two shares."""
    batch = reference.global_batches(1, source=source)[0]
    parts = [reference.share(batch, rank, 2) for rank in range(2)]
    return {"batch": batch, "targets": [reference.count_targets(part) for part in parts]}


def first_norm(seed: int = 0, source: str = "local") -> float:
    """Euclidean norm of the reference's gradient in its first step, in one process."""
    model, batch = reference.new_model(seed), reference.global_batches(1, seed=seed, source=source)[0]
    (reference.summed_loss(model, batch) / reference.count_targets(batch)).backward()
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()


def fill_in(hidden_size: int) -> dict[str, Any]:
    """``deepspeed_hf.auto_config(3)`` as the Trainer's code resolves it for a model of this width; nothing is trained.

    Source: transformers 5.23, ``HfTrainerDeepSpeedConfig``: ``TrainingArguments`` calls its ``trainer_config_process``,
    ``Trainer.train`` its ``trainer_config_finalize``.
    """
    from course_utils.parallel import deepspeed_hf

    deepspeed_runs.begin()
    with deepspeed_hf.deepspeed_considered(), TemporaryDirectory() as folder:
        args = deepspeed_hf.training_arguments(folder, 1, 1, deepspeed_hf.auto_config(3))
        model = reference.new_model(hidden_size=hidden_size)
        args.hf_deepspeed_config.trainer_config_finalize(args, model, 1)
        return args.hf_deepspeed_config.config


def loss_of_own(folder: str, source: str = "local", seed: int = 0, count: int = 3) -> list[tuple[str, float, float]]:
    """Sentences of this project, and the loss per token (nats) that a new model and the one in ``folder`` give them."""
    from transformers import AutoModelForCausalLM

    from course_utils.data.own_text import own_sentences

    texts, found = own_sentences()[:count], []
    models = reference.new_model(seed).eval(), AutoModelForCausalLM.from_pretrained(folder).eval()
    for text, ids in zip(texts, reference.encode(texts, source), strict=True):
        row = torch.tensor([ids])
        with torch.no_grad():
            before, after = (model(input_ids=row, labels=row).loss.item() for model in models)
        found.append((text, before, after))
    return found


def farthest(first: list[float], second: list[float]) -> float:
    """The largest difference of two lists of numbers, place by place."""
    return (torch.tensor(first) - torch.tensor(second)).abs().max().item()


def predicted(parameters: int, ranks: int, stage: int) -> dict[str, float]:
    """Bytes on a rank by section 4's table: fp32, AdamW, between two micro-batches."""
    parts = {
        "parameters": ranks if stage == 3 else 1,
        "gradients": ranks if stage >= 2 else 1,
        "master copies": ranks if stage >= 1 else float("inf"),
        "optimizer": ranks if stage >= 1 else 1,
    }
    return {kind: (8 if kind == "optimizer" else 4) * parameters / part for kind, part in parts.items()}


def planned(stage: int, ranks: int = 2) -> dict[str, int]:
    """The same from lesson 15's planner, for the reference's model."""
    from course_utils.launch.planner import memory
    from course_utils.launch.spec import Spec
    from course_utils.models.configs import shape_of_config

    shape = shape_of_config(reference.new_model().config)
    strategy = f"zero{stage}" if stage else "ddp"
    spec = Spec(model=shape, strategy=strategy, gpus_per_node=ranks, precision="fp32", accumulation=2)
    count = memory.parameters(spec, shape)
    return {
        "parameters": memory.weights(spec, count),
        "gradients": memory.gradients(spec, count),
        "master copies": memory.master_copies(spec, count),
        "optimizer": memory.optimizer(spec, count),
    }


def on_eight(model: str) -> dict[str, Plan]:
    """Every strategy of the planner for ``model`` on 8 GPUs sold as 80 GB: name -> plan."""
    from course_utils.launch.planner.plan import strategies
    from course_utils.launch.spec import Spec

    spec = Spec(model=model, gpus_per_node=8, micro_batch=1, sequence_length=2048, checkpointing=True, host_memory=2048)
    return {plan.name: plan for plan in strategies(spec)}


def offload_plans(model: str) -> dict[str, Plan]:
    """ZeRO-3 as it is, with the optimizer in host memory, and with the parameters there too."""
    found = on_eight(model)
    names = {
        "ZeRO-3": "ZeRO-3",
        "ZeRO-3, optimizer offloaded": "ZeRO-3 + optimizer offload",
        "ZeRO-3, all offloaded": "ZeRO-3 + offload",
    }
    return {name: found[own] for name, own in names.items()}


WAYS = {
    "DDP": "DDP",
    "ZeRO-1": "ZeRO-1",
    "ZeRO-2": "ZeRO-2",
    "ZeRO-3": "ZeRO-3",
    "FSDP2": "FSDP2",
    "ZeRO-3\noptimizer\noffloaded": "ZeRO-3 + optimizer offload",
    "ZeRO-3\nall\noffloaded": "ZeRO-3 + offload",
    "FSDP2\nall\noffloaded": "FSDP2 + offload",
}
MODELS = (
    "Qwen/Qwen3-0.6B",
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-70B",
)


def plans_by_size() -> dict[str, dict[str, Plan]]:
    """Model -> way (``WAYS``) -> plan (``on_eight``)."""
    found = {}
    for model in MODELS:
        plans = on_eight(model)
        found[model.rpartition("/")[2]] = {way: plans[name] for way, name in WAYS.items()}
    return found


def quickest(plans: Mapping[str, Plan]) -> list[str]:
    """The ways that fit and whose planned speed is within 1 % of the best."""
    speeds = {way: plan.speed.tokens_per_second for way, plan in plans.items() if plan.fits}
    return [way for way, speed in speeds.items() if speed >= 0.99 * max(speeds.values())]


def in_models(exchanged: Mapping[str, list[int]], parameters: int) -> dict[str, float]:
    """Collective -> model sizes moved in a step; an all-reduce counts twice (ZeRO paper, section 7)."""
    return {
        name: (2 if name == "all-reduce" else 1) * elements / parameters for name, (_, elements) in exchanged.items()
    }


def reductions(second: Mapping[str, list[int]], third: Mapping[str, list[int]]) -> dict[str, int]:
    """Calls that reduce gradients in a step of ZeRO-2 and 3; one all-reduce of stage 2 is the gradient norm's."""
    return {"ZeRO-2": second["all-reduce"][0] - 1, "ZeRO-3": third["reduce-scatter"][0]}
