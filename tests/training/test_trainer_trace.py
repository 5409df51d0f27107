"""The tracer records what really runs, in order, and leaves nothing behind."""

import pytest
import torch
from transformers import Trainer, TrainerCallback

from course_utils.training.trainer_trace import Call, Trace, outline, trace
from tests.training.trainer_runs import Classifier, make_trainer, same_weights

STEP = """get_batch_samples
on_step_begin
training_step
    compute_loss
    backward
on_substep_end
training_step
    compute_loss
    backward
clip
on_pre_optimizer_step
optimizer.step
on_optimizer_step
scheduler.step
zero_grad
on_step_end"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "logging_steps": 4}
    settings |= {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    trainer = make_trainer(folder, **settings)
    with trace(trainer) as recorded:
        trainer.train()
    return trainer, recorded, folder


def test_one_step_in_order(traced):
    assert outline(traced[1].of_step(1)) == STEP


def test_calls_nest_and_are_ordered(traced):
    calls = traced[1].calls
    assert [call.start for call in calls] == sorted(call.start for call in calls)
    for step in calls:
        if step.name == "training_step":
            inside = traced[1].inside("training_step", [c for c in calls if c.name == "training_step"].index(step))
            assert [call.name for call in inside] == ["training_step", "compute_loss", "backward"]
            assert sum(call.seconds for call in inside[1:]) <= step.seconds


def test_evaluation_and_checkpoint_are_seen(traced):
    names = [call.name for call in traced[1].calls]
    assert names.count("prediction_step") == 3  # 20 rows in batches of 8
    assert names.count("evaluation_loop") == names.count("save_checkpoint") == 1
    assert names[0] == "train" and names[-1] == "on_train_end"


def test_step_numbers(traced):
    assert [c.step for c in traced[1].calls if c.name == "optimizer.step"] == [0, 1, 2, 3]


def test_nothing_stays_behind(traced):
    trainer, _, folder = traced
    assert type(trainer) is Trainer and type(trainer.model) is Classifier
    scheduler = torch.load(folder / "checkpoint-4" / "scheduler.pt")
    assert "step" not in scheduler
    before = len(traced[1].calls)
    trainer.train()
    assert len(traced[1].calls) == before


def test_a_traced_run_is_the_same_run(tmp_path):
    plain, watched = make_trainer(tmp_path), make_trainer(tmp_path)
    plain.train()
    watched = make_trainer(tmp_path)
    with trace(watched):
        watched.train()
    assert same_weights(plain.model, watched.model)


def test_classes_come_back_after_an_exception(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("planted")

    trainer = make_trainer(tmp_path, callbacks=[Stop()])
    with pytest.raises(RuntimeError, match="planted"), trace(trainer) as recorded:
        trainer.train()
    assert type(trainer) is Trainer and recorded.calls[0].name == "train"


def test_an_override_is_what_is_traced(tmp_path):
    class Twice(Trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    trainer = make_trainer(tmp_path, trainer_class=Twice, max_steps=1)
    with trace(trainer) as recorded:
        trainer.train()
    assert [call.name for call in recorded.calls].count("compute_loss") == 1
    assert type(trainer) is Twice


def test_metrics_are_one_call_after_all_batches(tmp_path):
    def share(prediction):
        return {"share": 0.5}

    trainer = make_trainer(tmp_path, compute_metrics=share)
    with trace(trainer) as recorded:
        found = trainer.evaluate()
    names = [call.name for call in recorded.calls]
    assert found["eval_share"] == 0.5 and trainer.compute_metrics is share
    assert names.count("compute_metrics") == 1
    assert names.index("compute_metrics") > len(names) - 1 - names[::-1].index("prediction_step")


def test_without_metrics_none_are_traced(tmp_path):
    trainer = make_trainer(tmp_path)
    with trace(trainer) as recorded:
        trainer.evaluate()
        assert trainer.compute_metrics is None
    assert "compute_metrics" not in [call.name for call in recorded.calls]


def test_unknown_step_or_name_is_one_sentence(traced):
    with pytest.raises(ValueError, match="step=9 was not traced; allowed: 0 to 3"):
        traced[1].of_step(9)
    with pytest.raises(ValueError, match="'predict', occurrence=0, was not traced"):
        traced[1].inside("predict")


def test_outline_folds_repeated_blocks():
    names = [(1, "a"), (2, "b"), (1, "a"), (2, "b"), (1, "c")]
    calls = [Call(name, "outer", i, 0.5, depth, 0) for i, (depth, name) in enumerate(names)]
    assert outline(calls) == "a  x2\n    b  x2\nc"
    assert outline([]) == ""
    assert Trace(calls).seconds_in("a") == 1.0
