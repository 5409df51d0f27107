"""The planner's speed: volumes as in the papers, times as by hand, links shared as on machines."""

import math
from types import SimpleNamespace

import pytest

from course_utils.launch.planner import speed
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.report import plan_table
from course_utils.launch.spec import Spec
from course_utils.models.shapes import builtin, parameter_count

PSI = parameter_count(builtin()["meta-llama/Llama-3.1-8B"])


def eight(**fields):
    return Spec(**{"model": "meta-llama/Llama-3.1-8B", "gpus_per_node": 8, "strategy": "fsdp2"} | fields)


@pytest.mark.parametrize(
    ("fields", "psi"),
    [
        ({"strategy": "ddp"}, 2 * 4),  # all-reduce of fp32 gradients
        ({"strategy": "zero1", "accumulation": 4}, 3 * 2),  # DeepSpeed all-reduces: tests/launch/test_plan_ranks.py
        ({"strategy": "zero2", "accumulation": 4}, (2 * 4 + 1) * 2),
        ({"strategy": "zero3", "accumulation": 4}, 3 * 4 * 2),
        ({"strategy": "fsdp2"}, 3 * 2),
        ({"strategy": "fsdp2", "reshard_after_forward": False}, 2 * 2),
        ({"strategy": "fsdp2", "accumulation": 4}, (2 * 4 + 1) * 2),
    ],
)
def test_communication_volume(fields, psi):
    """Bytes a GPU sends per parameter: the ring's share (n-1)/n of the volumes in ``speed._state``."""
    assert plan(eight(**fields)).speed.volume / PSI == pytest.approx(psi * 7 / 8, rel=1e-3)


def test_speed_is_the_formula_by_hand():
    spec = eight(strategy="ddp", micro_batch=2, sequence_length=4096, mfu=0.5, price=2.0, max_steps=900)
    matrices = PSI - 128256 * 4096 - (2 * 32 + 1) * 4096  # without embedding and norms
    flops = 6 * matrices + 12 * 32 * 32 * 128 * 4096 / 2
    found = plan(spec).speed
    assert found.compute == pytest.approx(2 * 4096 * flops / (989e12 * 0.5), rel=1e-6)
    ring = 2 * 7 * 5e-6 * math.ceil(4 * PSI / (25 * 2**20)) + 2 * 7 / 8 * 4 * PSI / 450e9
    assert found.communication == pytest.approx(ring, rel=1e-3)
    assert found.exposed == max(0.0, found.communication - found.compute * 2 / 3)
    assert found.tokens_per_second == pytest.approx(8 * 2 * 4096 / found.step)
    assert found.cost == pytest.approx(900 * found.step / 3600 * 8 * 2.0)


@pytest.mark.parametrize(("lora_rank", "factor"), [(0, 4 / 3), (16, 6 / 4)])
def test_mfu_does_not_count_recomputation(lora_rank, factor):
    """PaLM's MFU counts the model's FLOPs: those of a run that recomputes are the same, and its time is longer."""
    spec = eight(lora_rank=lora_rank, precision="bf16_weights", checkpointing=True, sequence_length=64)
    without = spec.but(checkpointing=False)
    shape = plan(spec).shape
    assert speed.flops_per_token(spec, shape) == speed.flops_per_token(without, shape)
    assert speed.recompute_factor(without, shape) == 1
    assert speed.recompute_factor(spec, shape) == pytest.approx(factor, rel=0.01)
    assert plan(spec).speed.compute / plan(without).speed.compute == pytest.approx(factor, rel=0.01)
    shown = 64 * speed.flops_per_token(spec, shape) / (989e12 * plan(spec).speed.compute)  # what its log would say
    assert shown == pytest.approx(spec.mfu / speed.recompute_factor(spec, shape))
    assert f"at MFU 0.4, of which recomputation leaves {shown:.2f}" in plan_table(plan(spec))


def test_a_slow_network_shows_where_weights_cross_it():
    fast, slow = (eight(nodes=4, network=network, micro_batch=1, sequence_length=512) for network in (400.0, 10.0))
    assert plan(slow).speed.step > 2 * plan(fast).speed.step
    assert plan(slow.but(replicas=4)).speed.step < plan(slow).speed.step, "HSDP keeps gathering inside a machine"
    assert plan(slow.but(nodes=1)).speed.step == plan(fast.but(nodes=1)).speed.step


def test_rings_share_the_network():
    """A ring over all ranks has a machine's network to itself; the eight rings of its GPUs' replicas share it."""
    spec = eight(nodes=2, network=80.0)
    assert speed.link(spec, ranks=16, gap=1) == (speed.NETWORK_LATENCY, 80e9)
    assert speed.link(spec, ranks=2, gap=8) == (speed.NETWORK_LATENCY, 10e9)
    assert speed.link(spec, ranks=8, gap=1) == (speed.LATENCY, 450e9)


def test_a_message_inside_one_rank_costs_nothing():
    alone = SimpleNamespace(data=10**9, calls=3, ranks=1, gap=1, passes=2)
    assert speed.ring_time(eight(), alone) == 0.0
