"""What lesson 13 says about its runs, against the results that were recorded when it was built."""

import json

import pytest

from course_utils.lessons.lesson_13 import exercises, figures, runs
from course_utils.parallel.deepspeed_hf import auto_config


@pytest.fixture(scope="module")
def recorded():
    return json.loads(runs.RECORDED.read_text())


def _asked(recorded, name, **arguments):
    """Rank 0's answer to this call, under the key that ``LessonRanks`` gives it."""
    return recorded[f"{name} {json.dumps(arguments, sort_keys=True)}"][0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_gradient_norm_of_two_micro_batches_is_one_process_s(recorded, stage):
    norm = _asked(recorded, "train_zero", stage=stage, max_steps=20)["norms"][0]
    assert norm == pytest.approx(runs.first_norm(), rel=1e-4)


def test_without_the_factor_only_the_norm_tells(recorded):
    blind = _asked(recorded, "train_zero", stage=2, scaled=False, max_steps=20)
    assert blind["norms"][0] == pytest.approx(runs.first_norm() / 4, rel=1e-4)
    assert blind["from_alone"] < 1e-3 and blind["losses_from_alone"] < 1e-3


def test_the_formulas_of_exercise_2_are_the_trainers_at_both_widths(recorded):
    known = {"micro": 8, "accumulation": 1, "ranks": 2, "max_grad_norm": 0.0, "bf16": False}
    wide = _asked(recorded, "fill_in", hidden_size=96)
    narrow = _asked(recorded, "train_trainer", stage=3)["resolved"]
    for found, width in ((wide, 96), (narrow, 64)):
        known["micro"] = found["train_micro_batch_size_per_gpu"]
        due = exercises.fill(auto_config(3), known | {"hidden_size": width})
        assert {name: found["zero_optimization"][name] for name in due["zero_optimization"]} == due["zero_optimization"]
        assert found["train_batch_size"] == due["train_batch_size"]


def test_the_default_threshold_keeps_more_weights_than_ddp_and_less_in_all(recorded):
    unset = _asked(recorded, "train_engine", stage=3, without=["stage3_param_persistence_threshold"])["bytes"]
    ddp = _asked(recorded, "train_engine", stage=0)["bytes"]
    assert unset["parameters"] > ddp["parameters"] and sum(unset.values()) < sum(ddp.values())


def test_the_larger_json_admits_torchs_optimizer_while_it_offloads():
    assert "offload_optimizer" in runs.LARGER["zero_optimization"]
    assert runs.LARGER["zero_allow_untested_optimizer"] and runs.LARGER["zero_force_ds_cpu_optimizer"] is False


def test_words_of_the_figures_follow_what_is_drawn():
    inside = figures.distances([("one", 1e-6, 1e-5), ("two", 2e-6, 1e-5)]).alternative_text
    assert "All lie left" in inside and "red" not in inside
    beyond = figures.distances([("one", 1e-6, 1e-5), ("two", 1e-2, 1e-3)]).alternative_text
    assert "All but one lie left" in beyond and "two, in red" in beyond
    held = {name: runs.predicted(1000, 2, 3) for name in ("a", "b")}
    assert figures.bytes_per_rank(held, held, alt="Two bars.").alternative_text == "Two bars."
    tools = {name: {"a": 1} for name in ("Trainer", "Trainer, width 96", "Accelerate")}
    assert "width 96" in figures.filled({"a": "auto"}, tools).alternative_text
