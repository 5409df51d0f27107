"""The planner's speed: volumes as in the papers, times as by hand, links shared as on machines."""

import math
from types import SimpleNamespace

import pytest

from course_utils.launch.planner import memory, speed
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.reduction import Reduction
from course_utils.launch.planner.report import plan_table, traffic_table
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


# Qwen3-8B (8,190,735,360 parameters) on 2 x 8 H100, 4,096 tokens, MFU 0.4. Four micro-batches compute for 2.0307 s:
# 0.6769 forward, 3 x 0.3385 backward, 0.3385 in the last backward pass; a quarter of it with one micro-batch, whose
# backward pass takes the same 0.3385. Over 12.5 GB/s one byte per parameter takes 15/16 x 8.1907 / 12.5 = 0.6143 s in
# one direction; among the 8 GPUs of a machine, at 450 GB/s, 7/8 x 8.1907 / 450 = 0.0159 s.
SYNC = '--accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": true}}'
EXPOSED = [
    ("ddp", {}, 4, 8 * 0.6143 - 0.3385),  # fp32 gradients, all-reduced once
    ("ddp", {}, 1, 8 * 0.6143 - 0.3385),
    ("ddp", {"arguments": (SYNC,)}, 4, (3 * 8 * 0.6143 - 1.0154) + (8 * 0.6143 - 0.3385)),
    ("zero1", {}, 4, (4 * 0.6143 - 0.3385) + 2 * 0.6143),  # bf16 all-reduced, then the updated weights gathered
    ("zero1", {}, 1, (4 * 0.6143 - 0.3385) + 2 * 0.6143),
    ("zero1", {"arguments": (SYNC,)}, 4, (4 * 0.6143 - 0.3385) + 2 * 0.6143),  # DeepSpeed decides for itself
    ("zero2", {}, 4, (12 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385) + 2 * 0.6143),
    ("zero2", {}, 1, (4 * 0.6143 - 0.3385) + 2 * 0.6143),
    ("zero2", {"arguments": (SYNC,)}, 4, (12 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385) + 2 * 0.6143),
    ("zero3", {}, 4, (8 * 0.6143 - 0.6769) + (12 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385)),
    ("zero3", {}, 1, (2 * 0.6143 - 0.1692) + (4 * 0.6143 - 0.3385)),
    ("zero3", {"arguments": (SYNC,)}, 4, (8 * 0.6143 - 0.6769) + (12 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385)),
    ("fsdp2", {}, 4, (8 * 0.6143 - 0.6769) + (6 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385)),
    ("fsdp2", {}, 1, (2 * 0.6143 - 0.1692) + (4 * 0.6143 - 0.3385)),
    ("fsdp2", {"arguments": (SYNC,)}, 4, (8 * 0.6143 - 0.6769) + (12 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385)),
    ("fsdp2", {"reshard_after_forward": False}, 4, (8 * 0.6143 - 0.6769) + (2 * 0.6143 - 0.3385)),
    ("fsdp1", {}, 4, (8 * 0.6143 - 0.6769) + (6 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385)),
    ("fsdp1", {}, 1, (2 * 0.6143 - 0.1692) + (4 * 0.6143 - 0.3385)),
    ("fsdp1", {"arguments": (SYNC,)}, 4, (8 * 0.6143 - 0.6769) + (12 * 0.6143 - 1.0154) + (4 * 0.6143 - 0.3385)),
    ("fsdp1", {"reshard_after_forward": False}, 4, (2 * 0.6143 - 0.6769) + (2 * 0.6143 - 0.3385)),  # gathered once
    # HSDP: sharded inside the machine; between the two an eighth of the gradients on an eighth of the network.
    ("fsdp2", {"replicas": 2}, 4, 4 * 0.0159 + 2 * 8.1907 / 12.5 - 0.3385),
    ("fsdp2", {"replicas": 2}, 1, 4 * 0.0159 + 2 * 8.1907 / 12.5 - 0.3385),
    ("fsdp2", {"replicas": 2, "arguments": (SYNC,)}, 4, 4 * (4 * 0.0159 + 2 * 8.1907 / 12.5 - 0.3385)),
]


@pytest.mark.parametrize(("strategy", "fields", "accumulation", "exposed"), EXPOSED)
def test_what_does_not_hide_by_hand(monkeypatch, strategy, fields, accumulation, exposed):
    """What is reduced once per step hides behind the last backward pass only, not behind the whole step."""
    monkeypatch.setattr(speed, "LATENCY", 0.0)
    monkeypatch.setattr(speed, "NETWORK_LATENCY", 0.0)
    machines = {"nodes": 2, "network": 12.5, "sequence_length": 4096}
    spec = Spec(model="Qwen/Qwen3-8B", strategy=strategy, accumulation=accumulation, **machines, **fields)
    found = plan(spec).speed
    assert found.compute == pytest.approx(2.0307 * accumulation / 4, abs=1e-4)
    assert found.exposed == pytest.approx(exposed, abs=4e-3)
    assert found.step == pytest.approx(found.compute + found.exposed)


def test_the_windows_are_the_step():
    """Their computing adds up; recomputation belongs to the backward pass, and LoRA's is shorter."""
    for fields, forward in (({}, 1 / 3), ({"checkpointing": True}, 1 / 4), ({"lora_rank": 8}, 1 / 2)):
        one = plan(eight(accumulation=3, sequence_length=64, **fields))
        found = speed.windows(one.spec, one.shape, memory.parameters(one.spec, one.shape))
        assert tuple(found) == speed.WINDOWS
        assert sum(window.compute for window in found.values()) == pytest.approx(one.speed.compute)
        assert found["forward"].compute / one.speed.compute == pytest.approx(forward, rel=0.01)
        assert found["backward"].compute == pytest.approx(2 * found["last backward"].compute)


def test_fp32_reduction_costs_what_it_says():
    """accelerate reduces in the computation's 16 bit; in fp32 whole gradients and their sum take twice as much."""
    usual, exact = (plan(eight(accumulation=4), reduction=Reduction(fp32=flag)) for flag in (False, True))
    held = [one.moments["loss"]["whole gradients"] for one in (usual, exact)]
    assert held == [2 * PSI, 4 * PSI]
    assert (exact.speed.volume - usual.speed.volume) / PSI == pytest.approx(2 * 7 / 8, rel=1e-3)
    assert exact.name == "FSDP2 + fp32 reduction"
    rows = {line.split("  ")[0]: line.split()[-2] for line in traffic_table([usual, exact]).splitlines()[1:]}
    assert rows == {"FSDP2": "18.0", "FSDP2 + fp32 reduction": "20.0"}


def test_reducing_each_batch_frees_the_whole_gradients():
    waits, each = (plan(eight(accumulation=4, arguments=words)) for words in ((), (SYNC,)))
    assert waits.moments["loss"]["whole gradients"] == 2 * PSI
    assert each.moments["loss"]["whole gradients"] == 0
    assert each.moments["loss"]["gradients"] == 4 * PSI // 8, "the sharded sum of the micro-batches so far"
    assert each.name == "FSDP2 + sync each batch" and each.speed.volume > waits.speed.volume
    for words in (("--accelerator_config={broken",), ("--accelerator_config=file.json",), ("--accelerator_config={}",)):
        assert plan(eight(accumulation=4, arguments=words)).reduction == Reduction()


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
