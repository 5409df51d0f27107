"""The loop with planted mistakes: right without one, visibly wrong with each, and a warning for a name nobody knows."""

from __future__ import annotations

import pytest
import torch

from course_utils.lessons.lesson_01 import planted
from course_utils.lessons.lesson_01.probe import Probe, batches_of
from course_utils.training.loop import LoopConfig, summed_cross_entropy, train
from course_utils.training.schedules import make_scheduler

BATCHES = batches_of((4, 4, 4, 4, 4, 4, 2), seed=1)
RAGGED = batches_of((4, 7, 2, 3, 6, 1, 2), seed=2)
SETTINGS = {"accumulation": 3, "max_steps": 7}


def run(bug: str | None = None, batches: list = BATCHES) -> tuple[planted.Run, torch.nn.Module]:
    model = Probe(dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = make_scheduler(optimizer, "linear", 1, 9)
    torch.manual_seed(0)
    found = planted.loop(
        model, batches, optimizer, scheduler, **SETTINGS, max_norm=0.3, evaluate=model.eval, eval_every=2, bug=bug
    )
    return found, model


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_without_a_bug_it_is_the_courses_loop():
    found, ours = run()
    theirs = Probe(dropout=0.2)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    scheduler = make_scheduler(optimizer, "linear", 1, 9)
    torch.manual_seed(0)
    config = LoopConfig(7, accumulation=3, max_grad_norm=0.3)
    history = train(theirs, BATCHES, optimizer, config, scheduler, loss_function=summed_cross_entropy)
    assert torch.allclose(weights(ours), weights(theirs), rtol=0, atol=1e-6)  # the 1e-6 in the norm is torch's too
    assert found.losses == pytest.approx([record["loss"] for record in history], abs=1e-6)
    assert all(found.began_empty) and found.targets_of_epoch == 26 and len(found.rates) == 7


@pytest.mark.parametrize("bug", planted.BUGS)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_every_bug_changes_the_weights(bug):
    assert not torch.allclose(weights(run(bug, RAGGED)[1]), weights(run(None, RAGGED)[1]), rtol=0, atol=1e-4)


def test_the_checks_see_what_they_are_for():
    assert not all(run("zero_grad forgotten")[0].began_empty)
    assert not all(run("last window left in .grad")[0].began_empty)
    assert run("last window dropped")[0].targets_of_epoch == 24
    assert run("scheduler per micro-batch")[0].rates[-1] == 0 < run()[0].rates[-1]


def test_the_check_for_empty_gradients_holds_in_training_mode():
    model = Probe(dropout=0.5).train()
    assert planted.gradients_are_empty(model)
    planted.summed_loss(model, BATCHES[0]).backward()
    assert not planted.gradients_are_empty(model)
    model.zero_grad()
    assert planted.gradients_are_empty(model)


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="bug='none' is not known; allowed: 'loss / k'"):
        run("none")
    model = Probe()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = make_scheduler(optimizer, "linear", 1, 9)
    with pytest.raises(ValueError, match="make no step"):
        planted.loop(model, BATCHES[:2], optimizer, scheduler, 3, 2, bug="last window dropped")
