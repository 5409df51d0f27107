"""Class weights: their mean over rows, their special cases, scikit-learn's values, errors."""

import numpy as np
import pytest
import torch

from course_utils.training.class_weights import (
    class_counts,
    effective_number,
    inverse_frequency,
    log_prior,
    rare_classes,
    recalls,
)

COUNTS = torch.tensor([50, 3, 700, 20])


@pytest.mark.parametrize(
    "weights", [inverse_frequency(COUNTS), inverse_frequency(COUNTS, 0.5), effective_number(COUNTS, 0.99)]
)
def test_a_training_rows_mean_is_one_and_rare_weighs_more(weights):
    assert (weights * COUNTS).sum().item() / COUNTS.sum().item() == pytest.approx(1, rel=1e-6)
    assert weights.argsort(descending=True).tolist() == COUNTS.argsort().tolist()
    assert weights.dtype == torch.float32


def test_equals_scikit_learns_balanced():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(4), COUNTS.numpy())
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert inverse_frequency(COUNTS).numpy() == pytest.approx(expected, rel=1e-6)


def test_special_cases():
    ones = torch.ones(4)
    assert torch.allclose(inverse_frequency(COUNTS, power=0), ones)
    assert torch.allclose(effective_number(COUNTS, beta=0), ones)
    assert torch.allclose(effective_number(COUNTS, beta=1 - 1e-9), inverse_frequency(COUNTS), rtol=1e-4)
    equal = torch.full((4,), 9)
    assert torch.allclose(inverse_frequency(equal), ones) and torch.allclose(effective_number(equal, 0.9), ones)


def test_effective_number_is_the_papers_up_to_scale():
    expected = torch.tensor([(1 - 0.9) / (1 - 0.9**n) for n in COUNTS.tolist()])
    found = effective_number(COUNTS, 0.9)
    assert torch.allclose(found / found[0], expected / expected[0])


def test_counts_are_in_the_order_of_class_numbers():
    assert class_counts([2, 2, 0, 3], 5).tolist() == [1, 0, 2, 1, 0]
    with pytest.raises(ValueError, match="reach from 0 to 3; allowed: 0 to 2"):
        class_counts([2, 2, 0, 3], 3)
    with pytest.raises(ValueError, match="allowed: 0 to 2"):
        class_counts([-100, 1], 3)


def test_prior_sums_to_one():
    assert log_prior(COUNTS).exp().sum().item() == pytest.approx(1, rel=1e-6)


def test_rare_classes_and_recalls():
    assert rare_classes(COUNTS) == [1] and rare_classes(torch.tensor([5, 4])) == [1]
    assert rare_classes(torch.arange(10, 0, -1)) == [9, 8, 7]
    found = recalls(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1]), 3)
    assert found[:2].tolist() == [0.5, 0.5] and found[2].isnan()


@pytest.mark.parametrize("call", [inverse_frequency, log_prior, lambda counts: effective_number(counts, 0.9)])
def test_an_empty_class(call):
    with pytest.raises(ValueError, match=r"counts\[1\]=0 is out of range; allowed: at least one row"):
        call(torch.tensor([4, 0]))


@pytest.mark.parametrize("beta", [1.0, -0.1])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match="allowed: 0 <= beta < 1"):
        effective_number(COUNTS, beta)
