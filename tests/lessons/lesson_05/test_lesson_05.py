"""What lesson 05 relies on: the predicted counts are a real run's, its rule by hand, the paired interval."""

import math
from collections import Counter

from transformers import TrainerCallback

from course_utils.lessons.lesson_05.drive import tiny_trainer
from course_utils.lessons.lesson_05.exercises import EVENT_COUNTS
from course_utils.lessons.lesson_05.scripted import on_disk, scripted
from course_utils.lessons.lesson_05.stopping import paired_interval, stop_evaluation


def test_the_predicted_counts_are_those_of_a_run(tmp_path):
    counted = Counter()

    class Count(TrainerCallback):
        pass

    for name in EVENT_COUNTS:
        setattr(Count, name, lambda self, *args, _name=name, **kwargs: counted.update([_name]))
    settings = {"gradient_accumulation_steps": 3, "logging_steps": 5, "eval_strategy": "steps", "eval_steps": 8}
    settings |= {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 10, "max_steps": 20}
    trainer = tiny_trainer(str(tmp_path), [Count()], **settings)
    trainer.train_dataset = trainer.train_dataset * 4  # one epoch
    trainer.train()
    assert counted == EVENT_COUNTS


def test_stop_by_hand():
    assert stop_evaluation([0.5, 0.7, 0.6, 0.65], 2) == 4
    assert stop_evaluation([0.5, 0.7, 0.6, 0.8], 2) is None
    assert stop_evaluation([1.0, 0.9, 1.1, 1.2, 1.3], 3, greater_is_better=False) == 5


def test_scripted_runs_follow_their_script(tmp_path):
    trainer = scripted([0.5, 0.4], folder=tmp_path, save_strategy="steps", save_steps=1)
    values = [entry["eval_score"] for entry in trainer.state.log_history if "eval_score" in entry]
    assert values == [0.5, 0.4] and on_disk(tmp_path) == [1, 2]


def test_paired_interval():
    low, mean, high = paired_interval([{"x": 1.0}, {"x": 2.0}, {"x": 3.0}], [{"x": 0.0}, {"x": 0.0}, {"x": 0.0}], "x")
    assert mean == 2.0 and math.isclose(high - mean, 4.302653 / math.sqrt(3), rel_tol=1e-6) and low < mean
