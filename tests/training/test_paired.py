"""Paired differences and their interval."""

from __future__ import annotations

import pytest

from course_utils.training.paired import paired_interval


def test_paired_interval_equals_scipys():
    from scipy import stats

    values, base = [0.5, 0.7, 0.4, 0.9], [0.4, 0.5, 0.45, 0.6]
    expected = stats.ttest_rel(values, base).confidence_interval(0.95)
    found = paired_interval(values, base)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-3)
    assert found.value == pytest.approx(0.1375)


@pytest.mark.parametrize("values", [[1.0], []])
def test_paired_interval_wants_two_pairs(values):
    with pytest.raises(ValueError, match="allowed: equally many, at least 2"):
        paired_interval(values, values)


def test_pairs_belong_together():
    with pytest.raises(ValueError, match="3 values and 2 to compare with"):
        paired_interval([1.0, 2.0, 3.0], [1.0, 2.0])
