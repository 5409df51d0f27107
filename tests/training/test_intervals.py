"""The bootstrap: close to the formula for a mean, rows stay together, bad arguments are one sentence."""

import numpy as np
import pytest
import torch

from course_utils.training.intervals import bootstrap


def test_a_mean_has_the_formulas_interval():
    values = np.random.default_rng(0).random(800)
    found = bootstrap(np.mean, values, resamples=2000)
    half = 1.96 * values.std() / 800**0.5
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_rows_stay_together_in_arrays_and_tensors():
    first = np.arange(50)
    assert bootstrap(lambda a, b: float((a == b).mean()), first, torch.arange(50).numpy()) == (1, 1, 1)
    assert bootstrap(lambda a, b: (a == b).double().mean(), torch.arange(50), torch.arange(50)) == (1, 1, 1)


def test_the_seed_decides():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(np.mean, values, seed=1) == bootstrap(np.mean, values, seed=1)
    assert bootstrap(np.mean, values, seed=1) != bootstrap(np.mean, values, seed=2)


def test_it_reads_well():
    assert str(bootstrap(np.mean, np.ones(3))) == "1.000 [1.000, 1.000]"


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ((), {}, "columns have"),
        (([],), {}, r"columns have \[0\] rows; allowed"),
        (([1], [1, 2]), {}, r"columns have \[1, 2\] rows; allowed"),
        (([1],), {"resamples": 0}, "resamples=0 is out of range; allowed"),
        (([1],), {"level": 95}, "level=95 is out of range; allowed"),
    ],
)
def test_bad_arguments(columns, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        bootstrap(np.mean, *map(np.array, columns), **options)
