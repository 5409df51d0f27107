"""What lesson 03 relies on: predicted calls are a real run's, checkpoints on disk, schedules, the tracked script."""

from collections import Counter

import pytest

from course_utils.lessons.lesson_03 import curves, tracking
from course_utils.lessons.lesson_03.drive import fresh, make_rows, tiny_trainer
from course_utils.lessons.lesson_03.exercises import CALLS
from course_utils.lessons.lesson_03.runs import (
    KeepHighest,
    NoteCheckpoints,
    equal_weights,
    killed,
    load_weights,
    on_disk,
    scores_of,
)
from course_utils.training.trainer_trace import trace


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"save_total_limit": 2, "load_best_model_at_end": True, "metric_for_best_model": "score"}
    script = iter((0.1, 0.9, 0.5, 0.4, 0.0))
    folder = str(tmp_path_factory.mktemp("run"))
    trainer = tiny_trainer(
        folder, make_rows(12), max_steps=8, compute_metrics=lambda p: {"score": next(script)}, **settings
    )
    notes = NoteCheckpoints()
    trainer.add_callback(notes)
    trainer.add_callback(KeepHighest("eval_score"))
    trainer.train()
    return trainer, notes


def test_the_predicted_calls_are_those_of_a_run(tmp_path):
    settings = {"gradient_accumulation_steps": 3, "max_steps": 10, "eval_strategy": "steps", "eval_steps": 4}
    trainer = tiny_trainer(str(tmp_path), make_rows(50), per_device_eval_batch_size=8, **settings)
    trainer.eval_dataset, trainer.compute_metrics = make_rows(20), lambda prediction: {}
    with trace(trainer) as recorded:
        trainer.train()
    counts = Counter(call.name for call in recorded.calls)
    assert {name: counts[name] for name in CALLS} == CALLS


def test_what_was_on_disk_after_each_save(run):
    trainer, notes = run
    assert notes.kept == {2: [2], 4: [2, 4], 6: [4, 6], 8: [4, 8]}
    assert notes.best == {2: 2, 4: 4, 6: 4, 8: 4} and on_disk(trainer.args.output_dir) == [4, 8]


def test_a_killed_run_leaves_one_checkpoint(run, tmp_path):
    checkpoint = killed(run[0], 4, tmp_path)
    assert on_disk(tmp_path) == [4] and (checkpoint / "model.safetensors").exists()


def test_scores_of_a_checkpoint_use_its_weights(run):
    trainer, _ = run
    trainer.compute_metrics = None
    names = "checkpoint-4", "checkpoint-8", "highest"
    best, last, kept = (scores_of(trainer, name, make_rows(8))["eval_loss"] for name in names)
    assert best != last and kept == best  # the score was highest at step 4
    load_weights(trainer, "checkpoint-4")
    assert trainer.evaluate(make_rows(8))["eval_loss"] == best


def test_training_without_the_labels_key_is_an_error(tmp_path):
    rows = [{"input_ids": row["input_ids"], "target": row["labels"]} for row in make_rows(8)]
    trainer = tiny_trainer(str(tmp_path), rows, max_steps=1)
    with pytest.raises(ValueError, match="did not return a loss"):
        trainer.train()


def test_kept_weights_are_those_of_the_highest_value_and_a_save_without_evaluation_is_none(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 4}
    script = iter((0.5, 0.5))  # of equal values the first stays
    trainer = tiny_trainer(
        str(tmp_path), make_rows(12), max_steps=8, compute_metrics=lambda p: {"score": next(script)}, **settings
    )
    trainer.add_callback(KeepHighest("eval_score"))
    trainer.train()
    assert (tmp_path / "highest/model.safetensors").read_bytes() == (
        tmp_path / "checkpoint-4/model.safetensors"
    ).read_bytes()


def test_equal_weights_means_every_bit(run, tmp_path):
    one, other = (tiny_trainer(str(tmp_path), make_rows(4)) for _ in range(2))
    assert equal_weights(one, other)
    other.model.head.bias.data[0] += 1e-7
    assert not equal_weights(one, other)


def test_the_drivers_model_leaves_the_global_generator_alone():
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fresh(seed=5)
    assert torch.equal(torch.rand(1), expected)


def test_schedules_and_formats():
    schedules = curves.all_schedules()
    assert len(schedules) == 8 and all(len(curve) == 200 for curve in schedules.values())
    assert schedules["cosine_with_min_lr"][-1] == pytest.approx(0.1, abs=0.01)
    formats = curves.number_formats()
    assert formats["bfloat16"]["max"] > 1e38 > formats["float16"]["max"] == 65504


def test_a_tracked_run_that_failed_shows_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "SCRIPT", "raise SystemExit('no tracker here')")
    process = tracking.start(tmp_path / "trackers")
    with pytest.raises(RuntimeError, match="no tracker here"):
        tracking.result(process, tmp_path / "trackers")
