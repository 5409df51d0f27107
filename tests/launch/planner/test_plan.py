"""The planner's own promises: sums, monotonicity, units, verdicts, cheapest changes, other estimators, errors."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.launch import SpecError
from course_utils.launch.planner import memory
from course_utils.launch.planner.changes import cheapest_change
from course_utils.launch.planner.plan import CHOICES, GIB, plan, strategies
from course_utils.launch.planner.report import plan_table, strategies_table, verdict
from course_utils.launch.spec import Spec
from course_utils.lessons.lesson_15 import figures
from course_utils.models.configs import shape_of
from course_utils.models.shapes import ModelShape, builtin, parameter_count

LLAMA = builtin()["meta-llama/Llama-3.1-8B"]
PSI = parameter_count(LLAMA)


def eight(**fields):
    return Spec(**{"model": "meta-llama/Llama-3.1-8B", "gpus_per_node": 8, "strategy": "fsdp2"} | fields)


shapes = st.builds(
    ModelShape,
    vocab_size=st.integers(100, 200_000),
    hidden_size=st.integers(1, 64).map(lambda n: 64 * n),
    intermediate_size=st.integers(64, 30_000),
    num_hidden_layers=st.integers(1, 90),
    num_attention_heads=st.sampled_from([8, 16, 64]),
    num_key_value_heads=st.sampled_from([1, 4, 8]),
    head_dim=st.sampled_from([32, 64, 128]),
    gated_mlp=st.booleans(),
    tie_word_embeddings=st.booleans(),
    norm=st.sampled_from(["rms", "layer"]),
    qk_norm=st.booleans(),
    fused_projections=st.booleans(),
    lm_head=st.booleans(),
)


@st.composite
def specs(draw):
    """Any spec on up to 32 GPUs that the rules let pass."""
    strategy, offload, reshard = draw(st.sampled_from(CHOICES))
    fields = {
        "model": draw(shapes),
        "nodes": draw(st.sampled_from([1, 2, 4])),
        "gpus_per_node": draw(st.sampled_from([1, 2, 8])),
        "precision": draw(st.sampled_from(["fp32", "bf16", "fp16"] + (["bf16_weights"] if offload == "none" else []))),
        "micro_batch": draw(st.integers(1, 64)),
        "accumulation": draw(st.integers(1, 8)),
        "sequence_length": draw(st.integers(1, 512)) * 64,
        "checkpointing": draw(st.booleans()),
        "lora_rank": draw(st.sampled_from([0, 8])),
        "price": draw(st.sampled_from([None, 2.5])),
    }
    try:
        return Spec(strategy=strategy, offload=offload, reshard_after_forward=reshard, **fields)
    except SpecError:  # one GPU leaves nothing to shard, LoRA with another precision ...
        return eight(**fields | {"model": fields["model"], "gpus_per_node": 8, "lora_rank": 0})


@settings(max_examples=200, deadline=None)
@given(specs())
def test_components_are_finite_and_add_up(spec):
    one = plan(spec)
    assert list(one.moments) == list(memory.MOMENTS)
    for found in one.moments.values():
        assert tuple(found) == memory.COMPONENTS
        assert all(isinstance(size, int) and size >= 0 for size in found.values())
        assert sum(found.values()) <= one.total
    assert sum(one.memory.values()) == one.total
    numbers = [number for number in one.speed if number is not None]
    assert all(math.isfinite(number) and number >= 0 for number in numbers) and one.speed.step > 0
    assert one.speed.step == pytest.approx(one.speed.compute + one.speed.exposed + one.speed.offload)
    assert (one.speed.cost is None) == (spec.price is None)
    assert one.fits == (one.total <= one.limit)
    assert plan_table(one)


@settings(max_examples=100, deadline=None)
@given(specs(), st.integers(2, 4))
def test_more_costs_more_and_sharding_saves(spec, factor):
    """A larger batch or longer sequence never needs less; checkpointing and more nodes to shard over never more."""
    one = plan(spec)
    assert plan(spec.but(micro_batch=spec.micro_batch * factor)).total >= one.total
    assert plan(spec.but(sequence_length=spec.sequence_length * factor)).total >= one.total
    wider = plan(spec.but(nodes=spec.nodes * factor, micro_batch=spec.micro_batch))
    state = ("weights", "gradients", "optimizer", "master copies")
    for moment in memory.MOMENTS:
        assert sum(wider.moments[moment][name] for name in state) <= sum(one.moments[moment][name] for name in state)
    without, with_ = (plan(spec.but(checkpointing=value)) for value in (False, True))
    assert with_.moments["loss"]["activations"] <= without.moments["loss"]["activations"]
    assert with_.speed.compute > without.speed.compute


@pytest.mark.parametrize(
    ("fields", "bytes_of"),
    [
        ({"strategy": "ddp"}, lambda n: 4 + 4 + 8),
        ({"strategy": "ddp", "precision": "bf16_weights"}, lambda n: 2 + 2 + 4),
        ({"strategy": "zero1"}, lambda n: 2 + 2 + (4 + 8 + 4) / n),
        ({"strategy": "zero2"}, lambda n: 2 + (2 + 4 + 8 + 4) / n),
        ({"strategy": "zero3"}, lambda n: (2 + 2 + 4 + 8 + 4) / n),
        ({"strategy": "fsdp2"}, lambda n: (4 + 4 + 8) / n),
    ],
)
def test_bytes_per_parameter_at_the_step(fields, bytes_of):
    """The table of the ZeRO paper (figure 1); DeepSpeed casts a shard of the gradients to fp32 for the update."""
    for nodes in (1, 4):
        found = plan(eight(**fields, nodes=nodes)).moments["step"]
        states = sum(found[name] for name in ("weights", "gradients", "optimizer", "master copies"))
        assert states / PSI == pytest.approx(bytes_of(8 * nodes), rel=1e-3)


def test_hsdp_tensor_and_context_parallel():
    """Replicas and tensor-parallel ranks do not share a shard; context-parallel ranks do, and split the sequence."""
    plain, replicated = plan(eight(nodes=2)), plan(eight(nodes=2, replicas=2))
    assert replicated.moments["step"]["optimizer"] == pytest.approx(2 * plain.moments["step"]["optimizer"], rel=1e-6)
    context = plan(eight(nodes=2, context_parallel=2))
    assert context.moments["step"]["optimizer"] == plain.moments["step"]["optimizer"]
    assert context.moments["loss"]["logits"] == plain.moments["loss"]["logits"] // 2
    tensor = plan(eight(nodes=2, tensor_parallel=2))
    ratio = tensor.moments["step"]["optimizer"] / plain.moments["step"]["optimizer"]
    assert 1 < ratio < 1.1, "half the matrices over half the shards; only the embedding is whole"
    assert tensor.moments["loss"]["activations"] < plain.moments["loss"]["activations"]


def test_accumulation_under_no_sync_keeps_whole_gradients():
    once, twice = (plan(eight(accumulation=number)).moments["loss"] for number in (1, 2))
    assert (once["whole gradients"], twice["whole gradients"]) == (0, PSI * 2)
    assert once["gathered units"] == twice["gathered units"]
    reduced = [plan(eight(strategy="zero2", accumulation=number)) for number in (1, 2)]
    assert reduced[1].moments["loss"]["gradients"] == PSI * 2 // 8  # ZeRO-2 reduces every time and keeps its part
    assert reduced[0].moments["loss"]["gradients"] == 0


def test_lora_trains_adapters_only():
    one = plan(eight(strategy="ddp", lora_rank=16, precision="bf16_weights"))
    assert one.trained == sum(16 * (i + o) for i, o in memory.linears(LLAMA)) * LLAMA.num_hidden_layers
    found = one.moments["step"]
    assert found["weights"] == 2 * PSI + 4 * one.trained
    assert found["gradients"] + found["optimizer"] == 12 * one.trained


def test_host_memory_is_part_of_fitting():
    spec = eight(strategy="zero2", offload="optimizer", checkpointing=True)
    one = plan(spec)
    assert one.host_total == PSI * 16  # fp32 weights, moments, gradients of all eight ranks
    assert one.fits and not plan(spec.but(host_memory=64.0)).fits
    assert "of a machine's memory of 64 GiB" in verdict(plan(spec.but(host_memory=64.0)))


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"micro_batch": 8, "sequence_length": 2048}, {"micro_batch": 2}),
        ({"micro_batch": 5, "sequence_length": 2048, "global_batch": None}, {"micro_batch": 1, "accumulation": 5}),
        ({"strategy": "ddp"}, {"strategy": "fsdp2"}),
        ({"strategy": "zero1", "gpu_memory": 30.0}, {"strategy": "zero3"}),
        ({"sequence_length": 16384}, {"checkpointing": True}),
        ({"gpus_per_node": 4, "gpu_memory": 24.0, "checkpointing": True}, {"offload": "all"}),
        ({"model": "meta-llama/Llama-3.1-70B", "strategy": "zero3", "host_memory": 64.0}, {"nodes": 4}),
        ({"strategy": "ddp", "gpus_per_node": 1, "global_batch": 1, "host_memory": 64.0}, {"lora_rank": 16}),
    ],
)
def test_the_cheapest_change_is_the_least_painful_one(fields, changed):
    spec = eight(**{"global_batch": 64} | fields)
    assert not plan(spec).fits
    found = cheapest_change(spec)
    assert found is not None and found.plan.fits and plan(found.spec).fits
    assert found.spec.effective_batch == spec.effective_batch
    now = {name: getattr(found.spec, name) for name in Spec.model_fields}
    different = {name: value for name, value in now.items() if value != getattr(spec, name)}
    assert changed.items() <= different.items(), different
    assert all(f"{name}=" in found.sentence for name in different)
    assert found.sentence in verdict(plan(spec))


def test_instead_of_ddp_the_usual_setting_with_the_most_room():
    """Without resharding it would fit too, and be a little faster: that is for those who have seen that it runs."""
    spec = eight(strategy="ddp", global_batch=64)
    found = cheapest_change(spec)
    assert found.sentence.startswith("set strategy='fsdp2' (was 'ddp'): ") and found.spec == spec.but(strategy="fsdp2")
    kept = plan(found.spec.but(reshard_after_forward=False))
    assert kept.fits and kept.total > found.plan.total and kept.speed.volume < found.plan.speed.volume


def test_nothing_to_change_and_nothing_that_helps():
    assert cheapest_change(eight(checkpointing=True, nodes=2)) is None
    hopeless = eight(gpu_memory=1.0, model="meta-llama/Llama-3.1-70B")
    assert cheapest_change(hopeless) is None
    assert verdict(plan(hopeless)).endswith("no change known to this planner makes it fit.")


def test_strategies_are_sorted_and_say_what_they_are():
    found = strategies(eight(micro_batch=4, price=2.0))
    assert {one.name for one in found} >= {"DDP", "FSDP2", "FSDP2 + no reshard", "ZeRO-3 + offload"}
    assert len(found) == len(CHOICES)
    assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)
    steps = [one.speed.step for one in found if one.fits]
    assert steps and steps == sorted(steps)
    text = strategies_table(found)
    assert len(text.splitlines()) == len(found) + 1 and "cost $" in text


def test_strategies_with_sizes_that_only_fsdp2_has():
    found = strategies(eight(nodes=2, tensor_parallel=2))
    assert {one.spec.strategy for one in found} == {"fsdp2"}


def test_a_name_a_shape_and_a_folder_give_the_same_plan(tmp_path):
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}
    sizes = shape_of("Qwen/Qwen3-0.6B").model_dump()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    heads = ("num_attention_heads", "num_key_value_heads")
    (tmp_path / "config.json").write_text(json.dumps(config | {name: sizes[name] for name in names + heads}))
    by_name, by_shape, by_folder = (
        plan(Spec(model=model)) for model in ("Qwen/Qwen3-0.6B", shape_of("Qwen/Qwen3-0.6B"), str(tmp_path))
    )
    assert by_name.shape == by_shape.shape == by_folder.shape
    assert by_name.moments == by_shape.moments == by_folder.moments


@pytest.mark.parametrize(
    ("model", "says"),
    [("no/such-model", "neither a folder nor built in"), ("", "neither a folder nor built in")],
)
def test_an_unknown_model_is_one_sentence(model, says):
    with pytest.raises(SpecError, match=says) as caught:
        shape_of(model, hub=False)
    assert "\n" not in str(caught.value) and repr(model) in str(caught.value)


def test_without_a_network_an_unknown_name_fails_at_once(monkeypatch):
    def nobody(*_):
        raise ConnectionError("The hub is not reachable (no answer); connect")

    monkeypatch.setattr("course_utils.hub.require_hub", nobody)
    with pytest.raises(SpecError, match=r"no/such-model.*The hub is not reachable.*allowed offline"):
        shape_of("no/such-model")


def test_a_folder_without_a_usable_config_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text(json.dumps({"no": "model_type"}))
    with pytest.raises(SpecError, match="no usable config.json"):
        shape_of(str(tmp_path))


def test_figures_show_every_component_and_the_limit():
    plans = strategies(eight(micro_batch=4))
    assert {name for names in figures.GROUPS.values() for name in names} == set(memory.COMPONENTS)
    for figure, rows in ((figures.strategy_memory(plans), len(plans)), (figures.step_memory(plans[0]), 4)):
        (axis,) = figure.axes
        assert len(axis.get_yticklabels()) == rows and "GiB" in axis.get_xlabel()
        limit = [line.get_xdata()[0] for line in axis.lines]
        assert limit == [pytest.approx(plans[0].limit / GIB)] * len(limit) and limit
    ends = {bar.get_y(): bar.get_x() + bar.get_width() for bar in figures.strategy_memory(plans).axes[0].patches}
    assert sorted(ends.values()) == pytest.approx(sorted(one.total / GIB for one in plans))


def test_more_machines_than_sequences():
    """Without a ``global_batch`` the batch may grow with the machines, and the sentence says so."""
    spec = eight(model="meta-llama/Llama-3.1-70B", checkpointing=True, host_memory=64.0)
    found = cheapest_change(spec)
    assert found.spec.nodes > 1 and found.spec.effective_batch == 8 * found.spec.nodes
    assert f"of {found.spec.effective_batch} sequences, not 8" in found.sentence
