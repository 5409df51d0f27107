"""A worker copies lists of Python objects as it reads them, a tensor's numbers not: measured where Linux tells."""

import pytest
import torch

from course_utils.data.worker_memory import growth_in_a_worker, private_mib


@pytest.mark.skipif(private_mib() is None, reason="no /proc/self/smaps_rollup")
def test_lists_are_copied_tensors_are_not():
    strings = [[str(200 * row + i) for i in range(200)] for row in range(2_000)]
    lists = growth_in_a_worker(strings, lambda row: sum(map(len, row)), points=4)
    tensor = growth_in_a_worker(torch.arange(400_000).view(2_000, 200), lambda row: row.sum(), points=4)
    assert len(lists) == 4 and lists[0] == 0
    assert lists == sorted(lists) and lists[-1] > 8 + tensor[-1]


def test_where_the_system_does_not_tell(monkeypatch):
    from pathlib import Path

    from course_utils.data import worker_memory

    monkeypatch.setattr(worker_memory, "_SUMMARY", Path("/proc/none"))
    assert growth_in_a_worker([1, 2, 3], print) is None
    with pytest.raises(ValueError, match="points=1"):
        growth_in_a_worker([1, 2, 3], print, points=1)
