"""What the ranks of lesson 11 measure: gradients, timelines, times of an all-reduce, broken variants."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.data.batches import Batch, to_device
from course_utils.parallel import reference
from course_utils.parallel.collectives import all_reduce_ring
from course_utils.parallel.data_parallel import AverageAfter, AverageInBuckets
from course_utils.parallel.links import GroupLink, join_group

WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
SHOWN = "model.layers.0.self_attn.k_proj.weight"  # (32, 64): the gradient that is drawn


def one_gradient(source: str, seed: int, rows: str = "mine") -> dict[str, Any]:
    """Gradient of the mean loss per target in the first batch, for ``SHOWN``, on this rank's rows or on "all" rows."""
    link = join_group()
    batch = reference.global_batches(1, seed=seed, source=source)[0]
    if rows == "mine":
        batch = reference.share(batch, link.rank, link.size)
    model, targets = reference.new_model(seed), reference.count_targets(batch)
    (reference.summed_loss(model, batch) / targets).backward()
    return {"gradient": model.get_parameter(SHOWN).grad.tolist(), "targets": targets}


def timeline(kind: str, bucket_bytes: int = 2**20, steps: int = 6) -> dict[str, Any]:
    """When backward and each all-reduce began and ended in a step of a wider model, in ms.

    Of ``steps`` steps the first warms up; of the others the one is returned whose time is the median.

    Args:
        kind: "naive" or "bucketed".

    Returns:
        ``backward``: (0, end); ``exchanges``: (number, begin, end) each; ``whole``: until the average is there.
    """
    link = join_group()
    torch.set_num_threads(1)
    model = reference.new_model(**WIDE).to(link.device)
    wrapped = AverageAfter(model, link) if kind == "naive" else AverageInBuckets(model, link, True, bucket_bytes)
    batch = to_device(reference.share(reference.global_batches(1)[0], link.rank, link.size), link.device)
    found = []
    for _ in range(steps):
        model.zero_grad()
        loss = reference.summed_loss(wrapped, batch)
        link.all_reduce(torch.zeros(1, device=link.device))  # both begin together
        begun = time.perf_counter()
        loss.backward()
        ended = time.perf_counter()
        wrapped.finish()
        marks = {"backward": [0.0, ended - begun], "whole": time.perf_counter() - begun}
        found.append(marks | {"exchanges": [(n, a - begun, b - begun) for n, a, b in wrapped.spans]})
    typical = sorted(found[1:], key=lambda step: step["whole"])[(steps - 1) // 2]
    exchanges = [[int(n), 1000 * a, 1000 * b] for n, a, b in typical["exchanges"]]
    backward = [1000 * moment for moment in typical["backward"]]
    return {"backward": backward, "whole": 1000 * typical["whole"], "exchanges": exchanges}


def traced(kind: str, bucket_bytes: int = 2**20) -> dict[str, list]:
    """What ``torch.profiler`` recorded of the backward pass of ``timeline``'s model, until the average is there, in ms.

    Args:
        kind: "naive", "bucketed" or "ddp".

    Returns:
        ``backward``: [begin, end] of each operation that autograd ran; ``gradients``: when each parameter's was added
        up; ``calls``: when each all-reduce was asked for; ``exchanges``: [thread, begin, end] of each at work.
    """
    from torch.profiler import ProfilerActivity, profile

    link = join_group()
    torch.set_num_threads(1)
    model = reference.new_model(**WIDE).to(link.device)
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=bucket_bytes / 2**20)
    else:
        wrapped = AverageAfter(model, link) if kind == "naive" else AverageInBuckets(model, link, True, bucket_bytes)
    batch = to_device(reference.share(reference.global_batches(1)[0], link.rank, link.size), link.device)
    for recorded in (False, True):  # the first warms up; after it DDP orders its buckets as gradients arrive
        model.zero_grad()
        loss = reference.summed_loss(wrapped, batch)
        link.all_reduce(torch.zeros(1, device=link.device))  # both begin together
        with profile(activities=[ProfilerActivity.CPU]) if recorded else nullcontext() as profiler:
            loss.backward()
            if kind != "ddp":
                wrapped.finish()
    spans = [(e.name, e.thread, e.time_range.start / 1000, e.time_range.end / 1000) for e in profiler.events()]
    spans.sort(key=lambda span: span[2])
    zero = spans[0][2]

    def of(chosen: Callable[[str], bool]) -> list[list[float]]:
        return [[thread, begin - zero, end - zero] for name, thread, begin, end in spans if chosen(name)]

    return {
        "backward": [span[1:] for span in of(lambda name: name.startswith("autograd::engine::evaluate_function"))],
        "gradients": [begin for _, begin, _ in of(lambda name: name == "torch::autograd::AccumulateGrad")],
        "calls": [begin for _, begin, _ in of(lambda name: name == "c10d::allreduce_")],
        "exchanges": of(lambda name: name.endswith(":all_reduce")),  # gloo: or nccl:
    }


def all_reduce_times(sizes: list[int], repeats: int = 21) -> dict[str, list[float]]:
    """Median milliseconds of an all-reduce of so many float32 numbers: torch's, and the ring by hand."""
    link, found = join_group(), {"torch": [], "ring by hand": []}
    ways = {"torch": link.all_reduce, "ring by hand": lambda tensor: all_reduce_ring(link, tensor)}
    for size in sizes:
        for name, way in ways.items():
            tensor, seconds = torch.zeros(size, device=link.device), []
            for _ in range(repeats):
                link.all_reduce(torch.zeros(1, device=link.device))
                begun = time.perf_counter()
                way(tensor)
                seconds.append(time.perf_counter() - begun)
            found[name].append(1000 * median(seconds))
    return found


def ring_traffic(elements: int) -> dict[str, int]:
    """Messages and bytes that this rank sends in a ring all-reduce, and whether the sum is right."""
    link = join_group()
    numbers = torch.arange(elements, dtype=torch.float32, device=link.device) * (link.rank + 1)
    expected = torch.arange(elements, dtype=torch.float32) * sum(range(1, link.size + 1))
    right = torch.equal(all_reduce_ring(link, numbers).cpu(), expected)
    return {"messages": link.messages, "bytes": link.bytes, "right": right}


def window_of_four(quiet: bool, source: str, seed: int) -> dict[str, Any]:
    """Gradients of a window of four micro-batches, averaged once (``quiet``: the others under no_sync) or four times.

    Returns:
        ``messages`` and ``bytes`` that were sent, and some numbers of the resulting ``gradient``.
    """
    link = join_group()
    model = reference.new_model(seed).to(link.device)
    wrapped = AverageInBuckets(model, link, bucket_bytes=128 * 1024)
    own = reference.share(reference.global_batches(1, seed=seed, source=source)[0], link.rank, link.size)
    for number in range(4):
        part = to_device(reference.share(own, number, 4), link.device)
        last = number == 3
        with nullcontext() if last or not quiet else wrapped.no_sync():
            reference.summed_loss(wrapped, part).backward()
        if last or not quiet:
            wrapped.finish()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return {"messages": wrapped.messages, "bytes": wrapped.bytes, "gradient": gradient[::101].tolist()}


def train_from_seeds(same: bool, equal_start: bool, steps: int, seed: int, source: str) -> dict[str, Any]:
    """The reference run by hand; the ranks' models are drawn from the ``same`` seed or not, and made equal or not.

    Returns:
        ``apart``: largest difference of a weight between rank 0 and the others after each step; ``before`` and
        ``loss``: of this rank's model on batches that nobody trains on, at the start and at the end; ``sample``: some
        of its final weights; ``hash``: of all of them.
    """
    link = join_group()
    model = reference.new_model(seed if same else 100 * link.rank + seed).to(link.device)
    wrapped, apart = AverageInBuckets(model, link, equal_start), []
    optimizer = reference.new_optimizer(model)
    batches = reference.global_batches(steps + 4, seed=seed, source=source)
    unseen = [to_device(batch, link.device) for batch in batches[steps:]]
    before = _mean_loss(model, unseen)
    for batch in batches[:steps]:
        mine = to_device(reference.share(batch, link.rank, link.size), link.device)
        targets = link.all_reduce(torch.tensor(reference.count_targets(mine), device=link.device))
        (reference.summed_loss(wrapped, mine) * link.size / targets).backward()
        wrapped.finish()
        optimizer.step()
        optimizer.zero_grad()
        apart.append(_apart(reference.flat_weights(model), link))
    weights = reference.flat_weights(model)
    end = {"loss": _mean_loss(model, unseen), "sample": weights[::101].tolist(), "hash": reference.hash_of(weights)}
    return {"apart": apart, "before": before} | end


@torch.no_grad()
def _mean_loss(model: nn.Module, batches: list[Batch]) -> float:
    """The mean over the batches of their loss per target."""
    losses = [reference.summed_loss(model, batch).item() / reference.count_targets(batch) for batch in batches]
    return sum(losses) / len(losses)


def _apart(weights: Tensor, link: GroupLink) -> float:
    """How far this rank's weights are from rank 0's; the largest over the ranks, on every rank."""
    from torch import distributed as dist

    weights = weights.to(link.device)
    first = weights.clone()
    dist.broadcast(first, 0)
    distance = (weights - first).abs().max()
    dist.all_reduce(distance, op=dist.ReduceOp.MAX)
    return distance.item()


def toy_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
