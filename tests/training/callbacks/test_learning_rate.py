"""LearningRateLogger: the rates of every group are those that the step used."""

import pytest
import torch

from course_utils.training.callbacks import LearningRateLogger
from tests.training.callbacks.runs import entries
from tests.training.trainer_runs import make_trainer


def two_groups(model):
    first, last = model.layers[0], model.layers[3]
    groups = [{"params": first.parameters(), "lr": 0.01}, {"params": last.parameters(), "lr": 0.001}]
    return torch.optim.SGD(groups)


def test_learning_rates_of_every_group_are_those_of_the_step(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[LearningRateLogger(["body", "head"])], max_steps=4)
    trainer.optimizer = two_groups(trainer.model)
    trainer.train()
    assert entries(trainer, "learning_rate/body") == entries(trainer, "learning_rate")
    expected = [0.001 * (1 - step / 4) for step in range(4)]
    assert [rate for _, rate in entries(trainer, "learning_rate/head")] == pytest.approx(expected)


def test_learning_rates_need_a_name_per_group(tmp_path):
    with pytest.raises(ValueError, match="for 2 parameter groups"):
        make_trainer(tmp_path, callbacks=[LearningRateLogger(["all"])]).train()
