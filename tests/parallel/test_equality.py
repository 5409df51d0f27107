"""The one table: every way of training on two ranks against one process, what really ran, and the counterexample."""

import pytest

from course_utils.parallel import deepspeed_runs, equality, shared_ranks

pytestmark = pytest.mark.xdist_group("deepspeed")
ROWS = [row for row in equality.ROWS if deepspeed_runs.is_available() or "deepspeed" not in row.module]
EMBEDDING, WHOLE, HALF = "model.embed_tokens.weight", [512, 64], [256, 64]  # 512 x 64, on two ranks
LAYER, OUTER, SIZE = 43_200, 512 * 64 + 64, 119_232  # parameters in a layer, in none, in all
DDP, FSDP2, ENGINE = "DistributedDataParallel", "FSDPQwen3ForCausalLM", "DeepSpeedEngine"
BY_HAND = {"naive": "AverageAfter", "bucketed": "AverageInBuckets"}


def what_must_run(row):
    """Accelerate's distributed type, the wrapper, and some local shapes on each of the two ranks."""
    kind, stage = row.arguments.get("kind", ""), row.arguments.get("stage")
    if row.function == "train_data_parallel":
        label = "MULTI_CPU" if kind in ("accelerate", "trainer") else None
        return label, BY_HAND.get(kind, DDP), [{EMBEDDING: WHOLE}] * 2
    if stage:
        label = None if row.function == "train_engine" else "DEEPSPEED"
        return label, ENGINE, [{"embedding": WHOLE if stage < 3 else [512 * 64 // 2]}] * 2
    if kind.startswith("zero"):
        units = {f"unit {number}": [size // 2] for number, size in enumerate((LAYER, LAYER, OUTER))}
        return None, kind.capitalize(), [units] * 2
    if kind == "fsdp1":  # its flat unit is cut in the middle: 16416 = 32832 / 2
        return None, "FullyShardedDataParallel", [{f"_fsdp_wrapped_module.{EMBEDDING}": [n]} for n in (16416, 16352)]
    return None if kind == "fully_shard" else "FSDP", FSDP2, [{EMBEDDING: HALF}] * 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_equals_one_process(row):
    (found,) = equality.table(shared_ranks(2), steps=3, rows=[row])
    assert found["world_size"] == 2 and found["backend"] == "gloo" and found["holds"], found
    label, wrapper, shards = what_must_run(row)
    assert (found["distributed_type"], found["wrapper"]) == (label, wrapper)
    for rank in range(2):
        assert shards[rank].items() <= found["shards"][rank].items()
    if row.arguments.get("stage"):  # the slices that DeepSpeed's optimizer updates
        assert [sum(shards["optimizer"]) for shards in found["shards"]] == [SIZE // 2] * 2
    # One process that takes the ranks' rows in turn adds up in their order; only DeepSpeed's stage 3 does not.
    exact = not row.differs and "accumulation" not in row.arguments and row.arguments.get("stage") != 3
    assert found["from_micro_batches"] == 0 or not exact


def test_rows_with_several_micro_batches_are_there_for_each_way_of_reducing():
    ways = {row.arguments.get("kind", row.arguments.get("stage")) for row in equality.ROWS if "accum" in str(row)}
    assert ways == {"bucketed", "ddp", "zero2", "zero3", "fully_shard", "fsdp2_trainer", 2, 3}


def test_a_wrong_run_does_not_hold():
    """The bounds can fail: another seed's run is far away."""
    row = equality.ROWS[0]

    def other_seed(function, **arguments):
        asked = arguments["arguments"] | {"seed": 1}
        return shared_ranks(2)(function, **(arguments | {"arguments": asked}))

    (found,) = equality.table(other_seed, steps=2, rows=[row])
    assert not found["holds"]
