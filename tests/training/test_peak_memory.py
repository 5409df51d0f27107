"""Peak memory: what is allocated in between is seen, also when it is gone at the end; elsewhere it says None."""

import sys

import numpy as np
import pytest

from course_utils.training import peak_memory


def allocate():
    return float(np.ones(16 * 2**20).sum())  # 128 MiB, freed again


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_that_is_freed_again_counts():
    mib, result = peak_memory.peak_mib(allocate)
    assert result == 16 * 2**20
    if mib is None:
        pytest.skip("this container forbids the reset")
    assert 100 < mib < 200
    assert peak_memory.peak_mib(lambda: None)[0] < 30


def test_elsewhere_the_function_runs_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "_RESET", tmp_path / "no" / "such")
    assert peak_memory.peak_mib(lambda: 7) == (None, 7)
