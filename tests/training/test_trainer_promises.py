"""What lesson 03 claims about the Trainer: exact resume, accumulation, best model, silent bugs."""

import shutil

import pytest
import torch
from transformers import TrainerCallback, default_data_collator, set_seed

from course_utils.data.batches import ShuffledBatches
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import parameter_groups
from course_utils.training.schedules import make_scheduler
from course_utils.training.settings import logged
from tests.training.trainer_runs import Classifier, GreedyClassifier, make_rows, make_trainer, same_weights

FOLDER_FILES = ("optimizer.pt", "rng_state.pth", "scheduler.pt")


class SeedFirstStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            set_seed(args.seed)


@pytest.fixture
def whole(tmp_path):
    trainer = make_trainer(tmp_path / "whole", save_strategy="steps", save_steps=5, warmup_steps=3)
    trainer.train()
    return trainer


def resume(folder, checkpoint):
    settings = {"save_strategy": "steps", "save_steps": 5, "warmup_steps": 3}
    trainer = make_trainer(folder, Classifier(seed=1), **settings)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def test_resumed_equals_uninterrupted(whole, tmp_path):
    resumed = resume(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-5")
    assert same_weights(whole.model, resumed.model)
    assert logged(whole, "loss") == logged(resumed, "loss")


@pytest.mark.parametrize("missing", FOLDER_FILES)
def test_without_a_file_the_resumed_run_differs_silently(whole, tmp_path, missing):
    broken = tmp_path / "broken" / "checkpoint-5"
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", broken)
    (broken / missing).unlink()
    assert not same_weights(whole.model, resume(tmp_path / "broken", broken).model)


def test_without_the_step_resume_fails(whole, tmp_path):
    broken = tmp_path / "broken" / "checkpoint-5"
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", broken)
    (broken / "trainer_state.json").unlink()
    with pytest.raises(FileNotFoundError):
        resume(tmp_path / "broken", broken)


class LoopClassifier(Classifier):
    """The same weights, with the attribute access that the hand-written loop uses."""

    def forward(self, x, labels=None):
        from transformers.utils import ModelOutput

        return ModelOutput(super().forward(x, labels))


def test_trainer_equals_the_loop(tmp_path):
    trainer = make_trainer(
        tmp_path,
        callbacks=[SeedFirstStep()],
        train_sampling_strategy="sequential",
        lr_scheduler_type="cosine",
        warmup_steps=4,
        weight_decay=0.1,
        max_steps=7,
    )
    trainer.train()
    model = LoopClassifier()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2, fused=True)
    batches = ShuffledBatches(make_rows(), 8, default_data_collator, shuffle=False)
    set_seed(0)
    history = train(model, batches, optimizer, LoopConfig(max_steps=7), make_scheduler(optimizer, "cosine", 4, 7))
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [value for _, value in logged(trainer, key)] == [record[key] for record in history]
    assert same_weights(trainer.model, model)


@pytest.mark.parametrize(("model", "ratio"), [(Classifier, 1.0), (GreedyClassifier, 4.0)])
def test_accumulation_multiplies_the_loss_of_a_model_that_swallows_kwargs(tmp_path, model, ratio):
    def first_loss(accumulation):
        settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 16 // accumulation}
        trainer = make_trainer(tmp_path, model(), max_steps=1, train_sampling_strategy="sequential", **settings)
        for layer in trainer.model.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        trainer.train()
        return logged(trainer, "loss")[0][1]

    assert first_loss(4) / first_loss(1) == pytest.approx(ratio, abs=1e-5)


def test_evaluation_moves_the_random_state(tmp_path):
    plain = make_trainer(tmp_path)
    plain.train()
    evaluated = make_trainer(tmp_path, eval_strategy="steps", eval_steps=4)
    evaluated.train()
    assert not same_weights(plain.model, evaluated.model)


def test_fp16_is_ignored_on_a_cpu(tmp_path):
    plain = make_trainer(tmp_path)
    plain.train()
    half = make_trainer(tmp_path, fp16=True)
    half.train()
    assert same_weights(plain.model, half.model)


def test_best_step_that_was_not_saved_is_not_loaded(tmp_path):
    values = iter([0.1, 0.2, 0.9, 0.3, 0.2, 0.1])

    def run(**settings):
        trainer = make_trainer(
            tmp_path / str(len(settings)),
            compute_metrics=lambda prediction: {"score": next(values)},
            max_steps=6,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            **settings,
        )
        trainer.train()
        return trainer.state

    planted = run(save_strategy="steps", save_steps=2)
    assert planted.best_global_step == 3 and planted.best_model_checkpoint.endswith("checkpoint-2")
    values = iter([0.1, 0.2, 0.9, 0.3, 0.2, 0.1])
    cured = run(save_strategy="best")
    assert cured.best_model_checkpoint.endswith("checkpoint-3")
