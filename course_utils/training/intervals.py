"""How sure is a score? Intervals by the bootstrap: the test set is drawn again from itself (lesson 04).

Source: Efron 1979, "Bootstrap methods: another look at the jackknife"; the percentile interval of Efron & Tibshirani
1993, "An introduction to the bootstrap", chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A score with its ``low`` and ``high`` end."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    statistic: Callable[..., float], *columns: Any, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The percentile interval of ``statistic(*columns)``.

    Rows are drawn with replacement, the same ones in every column: predictions keep their labels, and two models are
    compared on the same rows (``statistic`` may return the difference of two scores).

    Args:
        statistic: takes the columns, returns a number.
        *columns: arrays or tensors whose first axis are the rows, (N, ...) each.
        resamples: how often a set of N rows is drawn.
        level: share of the draws that lies inside, 0.95 by default.
        seed: of the draws.

    Raises:
        ValueError: no rows, columns of different lengths, ``resamples`` below 1 or ``level`` outside 0 to 1.
    """
    lengths = [len(column) for column in columns]
    if not lengths or lengths[0] == 0 or len(set(lengths)) > 1:
        raise ValueError(f"columns have {lengths} rows; allowed: equally many, at least one")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} is out of range; allowed: a whole number >= 1")
    if not 0 < level < 1:
        raise ValueError(f"level={level} is out of range; allowed: above 0 and below 1")
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        rows = generator.integers(0, lengths[0], lengths[0])
        draws.append(float(statistic(*(column[rows] for column in columns))))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*columns)), float(low), float(high))
