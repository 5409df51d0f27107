"""ZeRO by hand, torch's FSDP and accelerate's: what each rank holds, exchanges and ends with, on two real ranks."""

from __future__ import annotations

import pytest

from course_utils.lessons.lesson_12 import task
from course_utils.parallel import held, reference, shared_ranks
from course_utils.parallel.fsdp_runs import train_sharded

PARAMETERS = 119_232
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "zero1": "Zero1",
    "zero2": "Zero2",
    "zero3": "Zero3",
    "fully_shard": "FSDPQwen3ForCausalLM",
    "fsdp1": "FullyShardedDataParallel",
    "fsdp2": "FSDPQwen3ForCausalLM",
    "fsdp2_trainer": "FSDPQwen3ForCausalLM",
}
OUTER = 512 * 64 + 64  # parameters in no layer


@pytest.fixture(scope="module")
def ranks():
    return shared_ranks(2)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_every_way_ends_like_one_process_and_holds_what_the_formula_says(kind, ranks):
    expected = held.expected(PARAMETERS, 2, kind if kind in held.DIVIDED else "fully_shard")
    for rank in ranks(train_sharded, kind=kind, steps=4):
        assert rank["from_alone"] < 1e-5 and rank["losses_from_alone"] < 1e-5
        assert rank["gradient_from_alone"] < 1e-5
        assert (rank["world_size"], rank["backend"], rank["wrapper"]) == (2, "gloo", WRAPPERS[kind])
        assert rank["distributed_type"] == ("FSDP" if kind in ("fsdp2", "fsdp2_trainer") else None)
        assert rank["held"] == expected
        if "FSDPQwen3" in rank["wrapper"]:
            assert rank["shards"]["model.layers.0.mlp.down_proj.weight"] == [32, 160]


@pytest.mark.parametrize(
    ("kind", "resharded"), [*((kind, True) for kind in held.DIVIDED), ("zero3", False), ("fully_shard", False)]
)
def test_what_a_rank_holds_is_what_the_formula_and_the_planner_count(kind, resharded, ranks):
    way = {"kind": kind} if resharded else {"kind": kind, "reshard_after_forward": False}
    formula = held.expected(PARAMETERS, 2, kind) | {"gathered": held.expected_gathered(PARAMETERS, OUTER, **way)}
    assert formula["gathered"] == (0 if kind in ("ddp", "zero1", "zero2") else 4 * (OUTER if resharded else PARAMETERS))
    planned, masters = task.planned(kind, resharded or kind == "zero3")  # the setting is FSDP's: DeepSpeed has another
    if kind == "zero3":  # it keeps what it has gathered, up to 1e9 elements
        assert planned.pop("gathered") == 4 * PARAMETERS
    for rank in ranks(train_sharded, steps=2, **way):
        measured = rank["held"] | {"gathered": rank["gathered"]}
        assert measured == formula and planned.items() <= measured.items()
    # DeepSpeed's optimizer has a copy of its slice of the parameters; by hand it is the slice.
    assert masters == (2 * PARAMETERS if kind.startswith("zero") else 0)


def not_scaled(kind):
    """A planted bug: the average of the ranks' gradients in place of their sum."""
    from course_utils.parallel import fsdp_runs

    right = fsdp_runs.reference.summed_loss
    fsdp_runs.reference.summed_loss = lambda model, batch: right(model, batch) / 2
    try:
        return train_sharded(kind, steps=2)
    finally:
        fsdp_runs.reference.summed_loss = right


def test_a_lost_factor_is_seen_in_the_gradients_length_and_hardly_in_the_weights(ranks):
    unspoilt = ranks(train_sharded, kind="fully_shard", steps=2)  # the reference is kept from here
    found = ranks(not_scaled, kind="fully_shard")[0]
    assert unspoilt[0]["gradient_from_alone"] < 1e-5
    assert abs(found["gradient_from_alone"] - 0.5) < 1e-3 and found["from_alone"] < 5e-4  # half a step


@pytest.mark.parametrize("kind", ["fsdp2", "fsdp2_trainer"])
def test_without_the_rehearsal_accelerate_runs_ddp_and_says_nothing(kind, ranks):
    for rank in ranks(train_sharded, kind=kind, steps=2, rehearse=False):
        assert (rank["distributed_type"], rank["wrapper"]) == ("MULTI_CPU", "DistributedDataParallel")
    assert (
        ranks(train_sharded, kind=kind, steps=2)[0]["distributed_type"] == "FSDP"
    )  # the label went back and came again


def test_a_yaml_files_variables_are_what_accelerate_reads(ranks):
    off = task.YAML.replace("reshard_after_forward: true", "reshard_after_forward: false")
    for text in (task.YAML, off):
        rank = ranks(train_sharded, kind="fsdp2", steps=2, environment=task.environment_of(text))[0]
        assert rank["distributed_type"] == "FSDP" and rank["from_alone"] < 1e-5


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='zero4' is not known; allowed: ddp, zero1"):
        train_sharded("zero4")


def wrong_sum(kind):
    """A planted bug: gradients are not added up over the ranks."""
    from course_utils.parallel import zero

    right = zero.Unit.reduce
    zero.Unit.reduce = lambda unit, gradient: unit.slice_of(gradient).clone()
    try:
        return train_sharded(kind, steps=3)["from_alone"]
    finally:
        zero.Unit.reduce = right


@pytest.mark.parametrize("kind", ["zero1", "zero2", "zero3"])
def test_gradients_of_one_rank_only_are_noticed(kind, ranks):
    assert min(ranks(wrong_sum, kind=kind)) > 1e-4


def accumulate(kind):
    """Two micro-batches a step, one step; the largest difference to one process, and what was exchanged."""
    import torch.distributed as dist

    from course_utils.parallel.held import Exchanged
    from course_utils.parallel.sharded import join, set_up

    join()
    model, _, step, facts = set_up(kind, reference.new_model())
    batch = reference.global_batches(1)[0]
    with Exchanged() as exchanged:
        for micro in range(2):
            rows = reference.share(batch, 2 * dist.get_rank() + micro, 4)
            (reference.summed_loss(model, rows) / reference.count_targets(batch)).backward()
        step()
    apart = (facts["gather"]() - reference.train_alone(1)["weights"]).abs().max().item()
    return {"apart": apart, "volume": exchanged.volume}


@pytest.mark.parametrize(("kind", "volume"), [("zero1", 2), ("zero2", 3)])
def test_micro_batches_add_up_and_cost_what_the_lesson_says(kind, volume, ranks):
    for rank in ranks(accumulate, kind=kind):
        # A gradient that is nearly zero has either sign, and Adam's first step has the full length for both.
        assert rank["apart"] < 1e-4 and rank["volume"] == volume * PARAMETERS


def test_micro_batches_add_up_in_stage_3(ranks):
    both = ranks(accumulate, kind="zero3")
    assert max(rank["apart"] for rank in both) < 1e-4 and 5 < both[0]["volume"] / PARAMETERS <= 6


def gathered_while_evaluating():
    """Bytes that ZeRO-3 leaves gathered: before, after a forward pass without gradients, after a training step."""
    import torch

    from course_utils.parallel.sharded import join
    from course_utils.parallel.zero import Zero3

    join()
    model, batch = reference.new_model(), reference.global_batches(1)[0]
    whole = reference.summed_loss(model, batch).item()
    zero = Zero3(model, list(model.model.layers), reference.adamw)
    seen = [zero.gathered_bytes()]
    with torch.no_grad():
        same = abs(reference.summed_loss(model, batch).item() - whole)
    seen.append(zero.gathered_bytes())
    reference.summed_loss(model, batch).backward()
    seen.append(zero.gathered_bytes())
    return seen, same


def test_stage_3_leaves_nothing_gathered(ranks):
    for seen, same in ranks(gathered_while_evaluating):
        assert seen == [0, 0, 0] and same < 1e-3


def odd_unit():
    """A unit of 41 numbers on two ranks: the slices, and the parameters that are views of the buffer."""
    import torch
    from torch import nn

    from course_utils.parallel.sharded import join
    from course_utils.parallel.zero import Unit

    join()
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (5,), (3, 4))]
    before = torch.cat([p.detach().flatten() for p in parameters])
    unit = Unit(parameters)
    same = torch.equal(unit.whole[:41], before) and unit.whole[41:].tolist() == [0.0]
    with torch.no_grad():
        unit.own += 1
    unit.gather()
    moved = torch.allclose(torch.cat([p.detach().flatten() for p in parameters]), before + 1)
    return unit.part, same, moved


def test_a_unit_is_padded_and_its_parameters_are_views(ranks):
    assert ranks(odd_unit) == [[21, True, True]] * 2
