"""EventRecorder: all 16 events, in order, with the flags and the best metric of that moment."""

import pytest
from transformers import TrainerCallback

from course_utils.training.callbacks import EventRecorder
from course_utils.training.callbacks.events import EVENTS, listing
from tests.training.callbacks.runs import scripted_trainer


def test_events_of_one_step(tmp_path):
    recorder = EventRecorder()
    settings = {"gradient_accumulation_steps": 2, "logging_steps": 2, "save_strategy": "steps", "save_steps": 4}
    trainer = scripted_trainer(tmp_path, [0.3, 0.5], [recorder], max_steps=4, eval_steps=2, **settings)
    trainer.train()
    assert listing(recorder.of_step(2)).splitlines() == [
        "step   1  on_step_begin",
        "step   1  on_substep_end",
        "step   1  on_pre_optimizer_step",
        "step   1  on_optimizer_step",
        "step   2  on_step_end             [should_log, should_evaluate]",
        "step   2  on_log                  [should_evaluate]",
        "step   2  on_prediction_step      [should_evaluate]  x3",
        "step   2  on_log                  [should_evaluate]",
        "step   2  on_evaluate",
    ]
    counts = recorder.counts()
    assert counts["on_step_end"] == 4 and counts["on_substep_end"] == 4 and counts["on_save"] == 1
    assert counts["on_init_end"] == 1 and set(counts) == set(EVENTS) - {"on_predict", "on_push_begin"}
    best = {event.name: event.best_metric for event in recorder.of_step(4)}
    assert best["on_evaluate"] == 0.3 and best["on_save"] == 0.5
    with pytest.raises(ValueError, match="step=9 was not recorded; allowed: 1 to 4"):
        recorder.of_step(9)


def test_all_sixteen_events_are_the_librarys():
    library = {name for name in vars(TrainerCallback) if name.startswith("on_")}
    assert library == set(EVENTS) and len(EVENTS) == 16
