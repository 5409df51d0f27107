"""CountWaits counts what Python reads from tensors, and changes nothing."""

import torch

from course_utils.training.waits import CountWaits


def test_each_read_is_counted():
    value = torch.ones(3)
    with CountWaits() as waits:
        total = value.sum()
        assert waits.count == 0
        total.item()
        float(total)
        if total > 1:
            bool(total)
    assert waits.count == 4
    total.item()
    assert waits.count == 4


def test_gradients_are_the_same():
    weight = torch.ones(2, requires_grad=True)
    with CountWaits():
        (weight * 3).sum().backward()
    assert weight.grad.tolist() == [3, 3]
