"""DPO and GRPO by hand: closed forms, directions, what is refused. TRL's values are compared in lesson 10."""

import math

import pytest
import torch

from course_utils.training.preference import dpo_loss, group_advantages, grpo_loss, token_log_probs


def test_token_log_probs_are_shifted_and_masked():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 1, 2, -100], [-100, -100, 3, 4]])
    found = token_log_probs(logits, labels)
    expected = logits.log_softmax(-1)
    assert found.shape == (2, 3) and found[0, 2] == 0 and found[1, 0] == 0
    assert torch.isclose(found[0, 0], expected[0, 0, 1]) and torch.isclose(found[1, 2], expected[1, 2, 4])


def test_dpo_starts_at_log_2_and_falls_when_the_chosen_gains():
    zero = torch.zeros(3)
    assert dpo_loss(zero, zero, zero, zero).loss.item() == pytest.approx(math.log(2))
    better = dpo_loss(zero + 2, zero - 3, zero, zero, beta=0.5)
    assert better.loss.item() == pytest.approx(math.log(1 + math.exp(-2.5)))
    assert better.margin == pytest.approx(2.5)
    assert dpo_loss(zero - 2, zero, zero, zero).loss > math.log(2)


def test_dpos_gradient_pushes_apart():
    chosen, rejected = (torch.zeros(2, requires_grad=True) for _ in range(2))
    dpo_loss(chosen, rejected, torch.zeros(2), torch.zeros(2)).loss.backward()
    assert (chosen.grad < 0).all() and torch.allclose(chosen.grad, -rejected.grad)


def test_advantages_compare_inside_a_group():
    found = group_advantages(torch.tensor([1.0, 0, 0, 1, 5, 5, 5, 5]), 4)
    assert torch.allclose(found[:4], torch.tensor([0.5, -0.5, -0.5, 0.5]) / (3**-0.5 + 1e-4), atol=1e-5)
    assert torch.equal(found[4:], torch.zeros(4))
    assert torch.equal(group_advantages(torch.tensor([0.0, 2.0]), 2, scale=False), torch.tensor([-1.0, 1.0]))


def test_grpos_loss_clips_on_the_side_that_would_go_too_far():
    old, mask = torch.zeros(2, 1), torch.ones(2, 1)
    new = torch.log(torch.tensor([[1.5], [1.5]])).requires_grad_()
    grpo_loss(new, old, mask, torch.tensor([1.0, -1.0]), clip=0.2).backward()
    assert new.grad[0] == 0 and new.grad[1] > 0  # a good answer that is likelier already gets no more push
    same = grpo_loss(old, old, mask, torch.tensor([1.0, 3.0]), beta=0.1, reference_log_probs=old)
    assert same.item() == -2
    pulled = grpo_loss(old, old, mask, torch.zeros(2), beta=0.1, reference_log_probs=old - 1)
    assert pulled.item() == pytest.approx(0.1 * (math.exp(-1) + 1 - 1))


def test_padding_is_not_counted():
    log_probs = torch.zeros(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert grpo_loss(log_probs, log_probs, mask, torch.tensor([1.0, 4.0])).item() == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dpo_loss(*[torch.zeros(2)] * 4, beta=0), "beta=0"),
        (lambda: dpo_loss(torch.zeros(2), *[torch.zeros(3)] * 3), "shapes"),
        (lambda: group_advantages(torch.zeros(5), 2), "group_size=2"),
        (lambda: group_advantages(torch.zeros(4), 1), "group_size=1"),
    ],
)
def test_what_cannot_work_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
