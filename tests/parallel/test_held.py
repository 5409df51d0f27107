"""What a rank holds and exchanges is counted by the memory behind tensors and by the collectives called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.lessons.lesson_12 import task
from course_utils.parallel import held, shared_ranks


def test_views_count_once_and_freed_memory_not_at_all():
    base = torch.zeros(10)
    assert held.bytes_behind([base, base[:3], base.view(2, 5)]) == 40
    gone = torch.zeros(5)
    gone.untyped_storage().resize_(0)
    assert held.bytes_behind([base, gone]) == 40 and held.bytes_behind([]) == 0


def test_one_process_holds_sixteen_bytes_a_parameter():
    model = nn.Linear(7, 3)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for _ in range(2):
        model(torch.ones(1, 7)).sum().backward()
        now = held.held(model, optimizer)
        optimizer.step()
    assert now == {"parameters": 96, "gradients": 96, "optimizer": 192} == held.expected(24, 1, "ddp")


def test_the_formula_knows_its_stages():
    sums = {kind: sum(held.expected(100, 4, kind).values()) for kind in held.DIVIDED}
    assert sums == {"ddp": 1600, "zero1": 1000, "zero2": 700, "zero3": 400, "fully_shard": 400}
    with pytest.raises(ValueError, match="kind='zero4' is not known; allowed: ddp, zero1"):
        held.expected(100, 4, "zero4")


def test_the_peak_is_the_largest_value_seen():
    values = iter([1, 5, 2, 0, 0, 0])
    with held.Peak(lambda: next(values)) as peak:
        torch.ones(1) + torch.ones(1)
    assert peak.highest == 5


@pytest.fixture(scope="module")
def ranks():
    return shared_ranks(2)


@pytest.mark.parametrize(
    ("kind", "options", "volume", "calls"),
    [
        ("ddp", {}, 2, {"all-reduce"}),
        ("zero1", {}, 2, {"all-gather", "reduce-scatter"}),
        ("zero2", {}, 2, {"all-gather", "reduce-scatter"}),
        ("fully_shard", {"reshard_after_forward": False}, 2, {"all-gather", "reduce-scatter"}),
    ],
)
def test_two_numbers_per_parameter(kind, options, volume, calls, ranks):
    for rank in ranks(task.exchanged_in_a_step, kind=kind, **options):
        assert rank["volume"] == volume * rank["parameters"] and {name for name, _ in rank["calls"]} == calls


@pytest.mark.parametrize(("kind", "volume"), [("ddp", 2), ("zero1", 2), ("zero2", 3)])
def test_two_micro_batches(kind, volume, ranks):
    for rank in ranks(task.exchanged_in_a_step, kind=kind, micro_batches=2):
        assert rank["volume"] == volume * rank["parameters"]


def test_stage_3_gathers_twice_what_is_in_the_layers(ranks):
    volumes = [ranks(task.exchanged_in_a_step, kind=kind)[0] for kind in ("zero3", "fully_shard", "fsdp1")]
    outer = 512 * 64 + 64
    assert {step["volume"] for step in volumes} == {3 * volumes[0]["parameters"] - outer}


def test_gathered_memory_is_a_layer_and_the_rest_or_everything(ranks):
    runs = {
        name: ranks(task.gathered_over_a_step, layers=3, **options)[0]
        for name, options in (("layer", {}), ("whole", {"per_layer": False}))
    }
    peaks = {name: max(run["forward"] + run["backward"]) for name, run in runs.items()}
    assert peaks == {"layer": 4 * (43_200 + 512 * 64 + 64), "whole": runs["whole"]["whole"]}
    assert runs["layer"]["backward"][-1] == 0
