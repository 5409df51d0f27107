"""SaveBest: exactly the best checkpoint for both directions, the first evaluation, NaN, and after resume."""

import math

import pytest

from course_utils.training.callbacks import SaveBest
from tests.training.callbacks.runs import RESTORE, on_disk, restored, scripted_trainer

VALUES = [0.5, 0.7, 0.6, 0.7, 0.9, 0.8]


def best_step(values, greater):
    numbers = [(value if greater else -value, -step) for step, value in enumerate(values, 1) if not math.isnan(value)]
    return -max(numbers)[1]


@pytest.mark.parametrize("greater", [True, False])
@pytest.mark.parametrize(
    "values", [VALUES, [0.9, 0.5, 0.4], [0.1, 0.5, 0.9], [math.nan, 0.5, math.nan, 0.4, 0.6], [0.5, 0.5, 0.5]]
)
def test_exactly_the_best_checkpoint(tmp_path, values, greater):
    best = SaveBest()
    trainer = scripted_trainer(tmp_path, values, [best], greater_is_better=greater)
    trainer.train()
    assert on_disk(tmp_path) == [best.best_step] == [best_step(values, greater)]
    assert best.folder(trainer.args).is_dir()


@pytest.mark.parametrize("greater", [True, False])
def test_the_library_keeps_the_same(tmp_path, greater):
    trainer = scripted_trainer(tmp_path, VALUES, greater_is_better=greater, save_strategy="best", save_total_limit=1)
    trainer.train()
    assert on_disk(tmp_path) == [best_step(VALUES, greater)]


def test_never_a_number_never_a_checkpoint(tmp_path):
    best = SaveBest()
    scripted_trainer(tmp_path, [math.nan, math.nan], [best]).train()
    assert on_disk(tmp_path) == [] and best.best is None


def test_the_last_two_bests(tmp_path):
    scripted_trainer(tmp_path, VALUES, [SaveBest(keep=2)]).train()
    assert on_disk(tmp_path) == [2, 5]


@pytest.mark.parametrize("settings", [{}, RESTORE])
@pytest.mark.parametrize(("later", "expected"), [([0.6, 0.65], 2), ([0.6, 0.9], 4)])
def test_after_resume(tmp_path, later, expected, settings):
    """Resumed from its own checkpoint of step 2; the best so far is remembered with and without restored states."""
    first = scripted_trainer(tmp_path, [0.5, 0.7], [SaveBest()], max_steps=2)
    first.train()
    assert on_disk(tmp_path) == [2]
    second = scripted_trainer(tmp_path, [0.5, 0.7, *later], [SaveBest()], done=2, **settings)
    second.train(resume_from_checkpoint=True)
    assert on_disk(tmp_path) == [expected]
    assert restored(second, SaveBest).best_step == expected


@pytest.mark.parametrize("settings", [{}, RESTORE])
def test_periodic_checkpoints_are_not_touched(tmp_path, settings):
    values = [0.5, 0.7, 0.6, 0.9, 0.8, 0.95, 0.97, 0.1]
    periodic = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8} | settings
    first = scripted_trainer(tmp_path, values[:3], [SaveBest()], **(periodic | {"max_steps": 3}))
    first.train()
    assert on_disk(tmp_path) == [2, 3]
    second = scripted_trainer(tmp_path, values, [SaveBest()], done=3, **periodic)
    second.train(resume_from_checkpoint=True)
    kept = [3, 6, 7, 8] if settings else [2, 3, 6, 7, 8]  # without its state it cannot know that 2 was its own
    assert on_disk(tmp_path) == kept and restored(second, SaveBest).best_step == 7


def test_what_a_killed_run_left_is_deleted(tmp_path):
    """Killed after the new checkpoint was written and before the old one was deleted."""
    scripted_trainer(tmp_path, [0.5, 0.7], [SaveBest()], max_steps=2).train()
    (tmp_path / "checkpoint-1").mkdir()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    assert '"saved": [\n          1,\n          2\n        ]' in state.read_text()
    second = scripted_trainer(tmp_path, [0.5, 0.7, 0.6], [SaveBest()], done=2, **RESTORE)
    second.train(resume_from_checkpoint=True)
    assert on_disk(tmp_path) == [2]


def test_epochs(tmp_path):
    settings = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3, "eval_steps": None}
    scripted_trainer(tmp_path, [0.5, 0.7, 0.6], [SaveBest()], **settings).train()
    assert on_disk(tmp_path) == [16]


def test_another_metric_than_the_trainers(tmp_path):
    best = SaveBest(metric="loss")
    trainer = scripted_trainer(tmp_path, [0.1] * 6, [best], learning_rate=0.05)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert on_disk(tmp_path) == [1 + losses.index(min(losses))]


def test_evaluating_by_hand_saves_nothing(tmp_path):
    best = SaveBest()
    trainer = scripted_trainer(tmp_path, VALUES, [best])
    trainer.evaluate()
    assert best.best is None and on_disk(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"save_strategy": "best"}, "save_strategy='best' overrules"),
        ({"save_strategy": "steps", "save_total_limit": 1}, "save_total_limit=1 would delete"),
    ],
)
def test_settings_that_would_lose_the_best_are_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        scripted_trainer(tmp_path, VALUES, [SaveBest()], **settings).train()
    with pytest.raises(ValueError, match="keep=0"):
        SaveBest(keep=0)
