"""Paired differences between runs of the same seed, with Student's 95 % interval (lesson 06).

Runs of one seed share weights, data and order, and so a part of their luck; the difference removes that part. Source:
Student 1908, "The probable error of a mean".
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from course_utils.training.intervals import Interval


def paired_interval(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Mean of ``values - base``, seed by seed, with its 95 % interval.

    Raises:
        ValueError: fewer than two pairs, or lists of different lengths.
    """
    if not 2 <= len(values) == len(base):
        raise ValueError(f"{len(values)} values and {len(base)} to compare with; allowed: equally many, at least 2")
    return mean_interval([value - other for value, other in zip(values, base, strict=True)])


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent runs with Student's 95 % interval.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values; allowed: at least 2")
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Interval(mean(values), mean(values) - half, mean(values) + half)
