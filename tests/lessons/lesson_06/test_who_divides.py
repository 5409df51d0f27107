"""Lesson 06's table on one process, and the paired interval that its comparison draws."""

import pytest

from course_utils.lessons.lesson_06.who_divides import WAYS, compare, evaluated, full_batch, worst_of_losses

FOUR = {"model: mean, **kwargs ignored": 4, "function: mean": 4, "override: mean, **kwargs model": 4}
EXPECTED = dict.fromkeys(WAYS, 1) | FOUR | {"override: mean / k, flag False": 0.25}


@pytest.mark.parametrize("name", WAYS)
def test_factor_at_four_micro_batches(name):
    found = compare(WAYS[name], 4)
    assert found["gradient"] == pytest.approx(EXPECTED[name], rel=1e-5)
    assert found["loss"] == pytest.approx(EXPECTED[name], rel=1e-5)
    assert found["off"] < 1e-5


@pytest.mark.parametrize("name", WAYS)
def test_ragged_rows(name):
    exact = "sum / num_items" in name or "x processes" in name
    assert (compare(WAYS[name], 4, ragged=True)["off"] < 1e-6) == exact


def test_losses_add_up_through_both_doors():
    assert max(worst_of_losses([1, 2, 4, 16]).values()) < 1e-6


@pytest.mark.parametrize("name", ["override: sum / num_items", "override: the same x processes"])
def test_eval_loss_on_one_process(name):
    assert evaluated(WAYS[name]) == pytest.approx(1, rel=1e-5)


def test_the_reference_is_torchs_mean():
    loss, gradient = full_batch(ragged=True)
    assert 1 < loss < 3 and gradient.norm() > 0
