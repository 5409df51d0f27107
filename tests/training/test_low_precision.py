"""Stochastic rounding is unbiased and goes to neighbours only; master copies follow fp32 training."""

import pytest
import torch
from torch import nn

from course_utils.lessons.lesson_09.experiments import WAYS, small_steps
from course_utils.training.low_precision import MasterWeights, StochasticRounding, round_stochastically


def test_rounding_is_right_on_average():
    x = torch.full((200_000,), 1.001)
    rounded = round_stochastically(x, torch.Generator().manual_seed(0)).float()
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert abs(rounded.mean().item() - 1.001) < 3e-5


def test_goes_to_one_of_two_neighbours_and_leaves_bf16_numbers():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5000, generator=generator) * 10.0 ** torch.randint(-20, 20, (5000,), generator=generator)
    rounded = round_stochastically(x, generator).float()
    assert ((rounded - x).abs() <= x.abs() * 2.0**-7).all()
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e38]).bfloat16()
    for _ in range(20):
        assert torch.equal(round_stochastically(exact.float(), generator), exact)


def test_refuses_other_types():
    with pytest.raises(ValueError, match="float64"):
        round_stochastically(torch.zeros(2, dtype=torch.float64))


def test_a_master_copy_collects_what_bf16_loses():
    layer = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(layer.weight)
    optimizer = MasterWeights(layer.parameters(), lambda ps: torch.optim.SGD(ps, lr=1.0))
    for _ in range(100):
        layer.weight.grad = torch.full_like(layer.weight, -0.001)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(layer.weight.float(), torch.full((1, 4), 1.1), atol=4e-3)
    assert layer.weight.dtype == torch.bfloat16 and layer.weight.grad is None


def test_stochastic_rounding_keeps_no_copy_but_the_moments():
    layer = nn.Linear(64, 8, bias=False).to(torch.bfloat16)
    nn.init.ones_(layer.weight)
    optimizer = StochasticRounding(layer.parameters(), lambda ps: torch.optim.Adam(ps, lr=0.001))
    for _ in range(100):
        layer.weight.grad = torch.full_like(layer.weight, -1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert abs(layer.weight.float().mean().item() - 1.1) < 4e-3
    assert all(view.numel() == 0 for view in optimizer._views)
    assert next(iter(optimizer.optimizer.state.values()))["exp_avg"].dtype == torch.float32


def test_bf16_weights_stall_and_both_cures_do_not():
    ends = {way: sum(small_steps(way, 7)[0][-16:]) / 16 for way in WAYS}
    assert ends[WAYS[1]] > 10 * ends[WAYS[0]]
    assert max(ends[WAYS[2]], ends[WAYS[3]]) < 2 * ends[WAYS[0]]
