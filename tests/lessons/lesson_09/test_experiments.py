"""The measuring functions of lesson 09 measure what they say."""

import torch

from course_utils.lessons.lesson_09 import experiments
from course_utils.lessons.lesson_09.device_queue import schedule
from course_utils.models import load_causal_lm


def tiny(**sizes):
    torch.manual_seed(0)
    return load_causal_lm(vocab_size=60, **({"num_hidden_layers": 1} | sizes))


def test_the_queue_by_hand():
    free = schedule(3, 1.0, 4.0, read_each_step=False, synchronise=False)
    assert free.host == [(0, 1), (1, 2), (2, 3)] and free.device == [(1, 5), (5, 9), (9, 13)]
    assert (free.read, free.total) == (3, 13)
    reading = schedule(3, 1.0, 4.0, read_each_step=True)
    assert (reading.read, reading.total) == (15, 15)
    bound_by_python = schedule(3, 4.0, 1.0, read_each_step=False)
    assert bound_by_python.device == [(4, 5), (8, 9), (12, 13)]


def test_packed_is_apart_and_a_mixed_row_is_not():
    model = tiny()
    documents = [torch.randint(5, 60, (n,)).tolist() for n in (9, 4, 12)]
    right = experiments.apart(model, documents)
    assert experiments.distance(right, right) == 0
    assert experiments.distance(experiments.packed(model, documents, 16), right) < 1e-5
    mixed = experiments.packed(model, documents, 32, attention_mask=None, position_ids=None)
    assert experiments.distance(mixed, right) > 1e-3


def test_micro_batches_need_memory_in_proportion():
    ids = torch.randint(5, 60, (4, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    found = experiments.divisions(tiny(), batch, [1, 2, 4], rounds=1)
    assert [one.accumulation for one in found] == [4, 2, 1]
    assert found[2].bytes > 3 * found[0].bytes and all(one.seconds > 0 for one in found)


def test_checkpointing_is_off_again_after_the_block():
    model = tiny()
    ids = torch.randint(5, 60, (2, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    before = experiments.kept(model, batch)
    less = experiments.kept(model, batch, checkpointing=True)
    assert less.measured < before.measured == experiments.kept(model, batch).measured
    assert abs(less.predicted / less.measured - 1) < 0.05


def test_the_committed_ladder_says_where_it_was_measured():
    report = experiments.recorded()
    assert {"processor", "cores", "threads", "torch", "rungs", "trl", "fastest", "peak_gflops"} <= set(report)
    from course_utils.training.ladder import GPU_LADDER, LADDER

    assert [row["name"] for row in report["rungs"]] == [rung.name for rung in (*LADDER, *GPU_LADDER)]
    assert all("not_run" in row or row["low"] <= row["ratio"] <= row["high"] for row in report["rungs"])
    assert experiments.recorded("no_such_bench") is None
