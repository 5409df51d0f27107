"""The entropy model: a distribution, rounding around medians, an auxiliary loss that reaches the quantiles only."""

import pytest
import torch

from course_utils.models.entropy_bottleneck import EntropyBottleneck


@pytest.fixture
def bottleneck():
    torch.manual_seed(0)
    return EntropyBottleneck(3)


def far(bottleneck, lowest=-200, highest=200):
    return torch.arange(lowest, highest + 1.0).repeat(3, 1, 1)


def test_the_cumulative_rises_from_zero_to_one(bottleneck):
    cumulative = torch.sigmoid(bottleneck.logits(far(bottleneck)))
    assert (cumulative.diff(dim=-1) >= 0).all()
    assert cumulative[..., 0].max() < 1e-3 and cumulative[..., -1].min() > 1 - 1e-3


def test_likelihoods_of_all_whole_numbers_add_up_to_one(bottleneck):
    assert torch.allclose(bottleneck.likelihood(far(bottleneck)).sum(-1), torch.ones(3, 1), atol=1e-4)


def test_rounding_in_evaluation_noise_in_training(bottleneck):
    y = torch.randn(5, 3, 2, 2)
    with torch.no_grad():
        bottleneck.quantiles[:, 0, 1] = torch.tensor([0.3, -0.2, 0.0])
    value, likelihood = bottleneck.eval()(y)
    steps = value - bottleneck.medians.reshape(1, 3, 1, 1)
    assert torch.allclose(steps, steps.round(), atol=1e-6) and (value - y).abs().max() <= 0.5 + 1e-6
    assert torch.allclose(bottleneck.values(bottleneck.symbols(y)), value)
    assert value.shape == likelihood.shape == y.shape and likelihood.min() > 0 and likelihood.max() <= 1
    noisy, _ = bottleneck.train()(y)
    assert (noisy - y).abs().max() <= 0.5 and not torch.equal(noisy, value)


def test_each_channel_has_its_own_distribution(bottleneck):
    y = torch.randn(4, 3, 2, 2)
    _, likelihood = bottleneck.eval()(y)
    for channel in range(3):
        changed = y.clone()
        changed[:, channel] += 3
        _, other = bottleneck(changed)
        same = [torch.equal(likelihood[:, c], other[:, c]) for c in range(3)]
        assert same == [c != channel for c in range(3)]


def test_gradients_go_where_they_should(bottleneck):
    value, likelihood = bottleneck.train()(torch.randn(4, 3, 2, 2))
    (value.sum() - likelihood.log2().sum()).backward()
    assert bottleneck.quantiles.grad is None
    assert all(p.grad is not None for name, p in bottleneck.named_parameters() if name != "quantiles")
    bottleneck.zero_grad()
    bottleneck.aux_loss().backward()
    assert [name for name, p in bottleneck.named_parameters() if p.grad is not None] == ["quantiles"]


def test_the_auxiliary_loss_finds_the_quantiles(bottleneck):
    optimizer = torch.optim.Adam([bottleneck.quantiles], lr=0.5)
    for _ in range(600):
        optimizer.zero_grad()
        bottleneck.aux_loss().backward()
        optimizer.step()
    low, middle, high = torch.sigmoid(bottleneck.logits(bottleneck.quantiles.detach())).squeeze(1).unbind(-1)
    assert (middle - 0.5).abs().max() < 0.05
    assert low.max() < 1e-7 and (1 - high.double()).max() < 1e-6


def test_tables_hold_the_likelihood_of_each_symbol(bottleneck):
    with torch.no_grad():
        bottleneck.quantiles.copy_(torch.tensor([[[-2.2, 0.1, 3.5]], [[-1.0, 0.0, 1.0]], [[-0.4, 0.0, 5.0]]]))
    tables = bottleneck.tables()
    assert [(low, len(p)) for low, p in tables] == [(-3, 8), (-1, 3), (-1, 7)]
    for channel, (low, probabilities) in enumerate(tables):
        middle = bottleneck.quantiles[channel, 0, 1]
        for i, probability in enumerate(probabilities):
            x = torch.zeros(3, 1, 1)
            x[channel] = middle + low + i
            assert torch.allclose(bottleneck.likelihood(x)[channel, 0, 0], probability, atol=1e-6)


def test_the_distribution_learns_what_it_sees():
    torch.manual_seed(0)
    bottleneck = EntropyBottleneck(1)
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=0.02)
    for _ in range(800):
        _, likelihood = bottleneck(3 * torch.randn(512, 1, 1, 1))
        loss = -likelihood.log2().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, likelihood = bottleneck.eval()(3 * torch.randn(20_000, 1, 1, 1))
    # A rounded normal with deviation 3 has log2(3 * sqrt(2 pi e)) = 3.632 bits.
    assert abs(-likelihood.log2().mean().item() - 3.632) < 0.06
