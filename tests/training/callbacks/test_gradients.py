"""GradientWatch: the norms, a NaN at its step, skipping it, resume; watching changes nothing."""

import math

import pytest
import torch

from course_utils.training.callbacks import EventRecorder, GradientWatch, LearningRateLogger
from course_utils.training.callbacks.gradients import part_norms
from tests.training.callbacks.runs import RESTORE, entries, restored
from tests.training.trainer_runs import Classifier, make_trainer, same_weights


class Poisoned(Classifier):
    """The loss of the ``at``-th forward pass is NaN."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        self.calls += self.training
        if self.training and self.calls == self.at:
            output["loss"] = output["loss"] * float("nan")
        return output


def test_part_norms_are_the_norms():
    model = Classifier()
    model(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))["loss"].backward()
    names, norms = part_norms(model, depth=2)
    assert names == ["layers.0", "layers.3"]
    expected = [math.sqrt(sum((p.grad**2).sum().item() for p in model.layers[i].parameters())) for i in (0, 3)]
    assert norms.tolist() == pytest.approx(expected)
    assert part_norms(Classifier())[0] == []


def test_the_norms_are_those_after_clipping(tmp_path):
    watch = GradientWatch("record")
    trainer = make_trainer(tmp_path, callbacks=[watch], max_grad_norm=0.01, max_steps=3)
    trainer.train()
    assert [norm for _, norm in entries(trainer, "grad_norm/layers")] == pytest.approx([0.01] * 3, rel=1e-3)
    assert all(norm > 0.01 for _, norm in entries(trainer, "grad_norm"))


@pytest.mark.parametrize("filtered", [True, False])
def test_nan_is_found_and_stops_the_run_although_the_log_hides_it(tmp_path, filtered):
    watch = GradientWatch("stop")
    settings = {"logging_steps": 4, "logging_nan_inf_filter": filtered, "max_steps": 12}
    trainer = make_trainer(tmp_path, Poisoned(6), callbacks=[watch], **settings)
    trainer.train()
    assert watch.bad_steps[0] == 6 and trainer.state.global_step == 8
    assert all(math.isfinite(loss) for _, loss in entries(trainer, "loss")) is filtered


def test_skipping_leaves_the_weights_finite(tmp_path):
    watch = GradientWatch("skip")
    trainer = make_trainer(tmp_path, Poisoned(6), callbacks=[watch])
    trainer.train()
    assert watch.bad_steps == [6] and all(p.isfinite().all() for p in trainer.model.parameters())


def test_watching_changes_nothing(tmp_path):
    plain, watched = make_trainer(tmp_path), make_trainer(tmp_path, callbacks=[GradientWatch(), LearningRateLogger()])
    plain.train()
    watched = make_trainer(tmp_path, callbacks=[GradientWatch(), LearningRateLogger(), EventRecorder()])
    watched.train()
    assert same_weights(plain.model, watched.model)


def test_bad_steps_survive_resume_also_those_since_the_last_log(tmp_path):
    settings = {"logging_steps": 5, "save_strategy": "steps", "save_steps": 4, "max_steps": 12}
    make_trainer(tmp_path, Poisoned(3), callbacks=[GradientWatch("record")], **settings).train()
    trainer = make_trainer(tmp_path, callbacks=[GradientWatch("record")], **settings, **RESTORE)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert restored(trainer, GradientWatch).bad_steps[:2] == [3, 4]


@pytest.mark.parametrize(("options", "words"), [({"action": "warn"}, "action='warn'"), ({"depth": 0}, "depth=0")])
def test_unknown_action(options, words):
    with pytest.raises(ValueError, match=words):
        GradientWatch(**options)
