"""GradScaler by hand: torch's factors and weights on a run that overflows, its order of calls, its checkpoint."""

import pytest
import torch

from course_utils.lessons.lesson_09.experiments import scaler_run
from course_utils.training.grad_scaler import GradScaler


def torchs(**options):
    return torch.amp.GradScaler("cpu", **options)


@pytest.mark.parametrize(("scale", "interval"), [(2.0**40, 3), (2.0**20, 1), (2.0**4, 2), (3.0, 5)])
def test_equals_torchs_on_runs_that_overflow_and_grow(scale, interval):
    ours, theirs = (scaler_run(make, 45, scale, interval) for make in (GradScaler, torchs))
    assert ours.factors == theirs.factors
    assert ours.skipped == theirs.skipped
    assert torch.equal(ours.weights, theirs.weights)
    assert len(set(ours.factors)) > 3


def one_weight(gradient):
    p = torch.nn.Parameter(torch.tensor([1.0]))
    p.grad = torch.tensor([gradient])
    return p, torch.optim.SGD([p], lr=1.0)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_step_with_inf_or_nan_is_left_out(bad):
    p, optimizer = one_weight(bad)
    scaler = GradScaler(8.0)
    scaler.step(optimizer)
    scaler.update()
    assert p.item() == 1.0 and scaler.factor == 4.0


def test_gradients_are_divided_once_though_unscaled_before_clipping():
    p, optimizer = one_weight(4.0)
    scaler = GradScaler(8.0)
    scaler.unscale_(optimizer)
    assert p.grad.item() == 0.5
    with pytest.raises(RuntimeError, match="twice"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert p.item() == 0.5


def test_grows_after_the_interval_and_never_to_infinity():
    scaler = GradScaler(2.0**127, growth_interval=2)
    factors = []
    for _ in range(4):
        scaler.step(one_weight(1.0)[1])
        scaler.update()
        factors.append(scaler.factor)
    assert factors == [2.0**127] * 4
    scaler = GradScaler(2.0, growth_interval=2)
    for _ in range(3):
        scaler.step(one_weight(1.0)[1])
        scaler.update()
    assert (scaler.factor, scaler.good_steps) == (4.0, 1)


def test_continues_from_its_state():
    first = GradScaler(2.0, growth_interval=3)
    for _ in range(2):
        first.step(one_weight(1.0)[1])
        first.update()
    second = GradScaler(1.0, growth_interval=3)
    second.load_state_dict(first.state_dict())
    second.step(one_weight(1.0)[1])
    second.update()
    assert second.factor == 4.0


@pytest.mark.parametrize(
    "wrong", [{"init_scale": 0}, {"growth_factor": 1}, {"backoff_factor": 1.0}, {"growth_interval": 0}]
)
def test_refuses_what_cannot_work(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GradScaler(**wrong)
    with pytest.raises(RuntimeError, match="before step"):
        GradScaler().update()


def test_an_overflow_starts_the_count_of_good_steps_again():
    ours, theirs = GradScaler(8.0, growth_interval=3), torchs(init_scale=8.0, growth_interval=3)
    factors = []
    for gradient in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0, 1.0):
        ours.step(one_weight(gradient)[1])
        ours.update()
        p, optimizer = one_weight(gradient)
        theirs.scale(torch.ones(()))  # torch's wants to have scaled a loss
        theirs.step(optimizer)
        theirs.update()
        factors.append((ours.factor, theirs.get_scale()))
    assert [a for a, _ in factors] == [b for _, b in factors] == [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0]
