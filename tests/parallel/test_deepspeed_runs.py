"""DeepSpeed's engine on two CPU ranks: the run of one process, in slices of the predicted sizes."""

import pytest

from course_utils.parallel import deepspeed_runs, shared_ranks
from course_utils.parallel.deepspeed_runs import ds_config, train_engine, volume
from course_utils.parallel.reference import train_alone

needs_deepspeed = pytest.mark.skipif(not deepspeed_runs.is_available(), reason="DeepSpeed is installed on Linux only")
pytestmark = pytest.mark.xdist_group("deepspeed")
P = 119_232


def test_a_config_says_what_it_must():
    config = ds_config(3, ranks=4, accumulation=2, offload="all", batch=16, reduce_bucket_size=1000)
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 4
    assert product == config["train_batch_size"] == 16
    assert config["gradient_clipping"] == 0.0 and config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert {"offload_optimizer", "offload_param"} <= config["zero_optimization"].keys()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stage": 4}, "stage=4 is not known; allowed: 0, 1, 2, 3"),
        ({"stage": 2, "offload": "all"}, "does not go with stage 2"),
        ({"stage": 1, "ranks": 3}, "batch=8 is no multiple of 3 ranks x 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ds_config(**arguments)


@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "parts", "moved"),
    [(1, {"gradients": 1, "parameters": 1}, 3), (2, {"gradients": 2, "parameters": 1}, 5), (3, {}, 4)],
)
def test_a_stage_repeats_one_process_and_holds_its_slices(stage, parts, moved):
    """Two micro-batches: stage 2 all-reduces twice, stage 3 gathers once each and reduces twice."""
    for found in shared_ranks(2)(train_engine, stage=stage, steps=3, accumulation=2):
        assert max(found["from_alone"], found["losses_from_alone"]) < 2e-5
        assert (found["world_size"], found["backend"], found["wrapper"]) == (2, "gloo", "DeepSpeedEngine")
        assert found["stage"] == stage and found["train_batch_size"] == 8
        held = found["bytes"]
        assert held["parameters"] == 4 * P // parts.get("parameters", 2)
        assert held["master copies"] == 4 * P // 2 and held["optimizer"] == 8 * P // 2
        assert abs(held["gradients"] - 4 * P // parts.get("gradients", 2)) < 4 * 512 * 64
        assert abs(volume(found["exchanged"]) - moved * P) < 0.01 * P


@needs_deepspeed
def test_by_default_a_small_model_stays_whole_and_gradients_are_clipped():
    without = ["gradient_clipping", "stage3_param_persistence_threshold"]
    found = shared_ranks(2)(train_engine, stage=3, steps=3, without=without)[0]
    assert found["bytes"]["parameters"] > 4 * P
    clipped = train_alone(3, max_grad_norm=1.0)["losses"]
    assert found["losses"] == pytest.approx(clipped, abs=2e-5) and found["losses_from_alone"] > 1e-4


@needs_deepspeed
def test_offloaded_runs_repeat_one_process():
    for stage, offload in ((2, "optimizer"), (3, "all")):
        found = shared_ranks(2)(train_engine, stage=stage, steps=2, offload=offload)[1]
        assert max(found["from_alone"], found["losses_from_alone"]) < 2e-5
