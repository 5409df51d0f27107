"""``ShardedSampler``: torch's rows in torch's order."""

from __future__ import annotations

import pytest
from torch.utils.data import DistributedSampler

from course_utils.parallel.sampler import ShardedSampler


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (11, 3), (12, 3), (2, 5), (7, 8), (100, 7)])
def test_rows_are_those_of_torch(count, size, drop_last):
    for rank in range(size):
        ours = ShardedSampler(count, rank, size, seed=3, drop_last=drop_last)
        theirs = DistributedSampler(range(count), size, rank, seed=3, drop_last=drop_last)
        for epoch in (0, 1, 5):
            ours.set_epoch(epoch)
            theirs.set_epoch(epoch)
            assert list(ours) == list(theirs)
        assert len(ours) == len(list(ours))


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="count=0 is out of range"):
        ShardedSampler(0, 0, 1)
    with pytest.raises(ValueError, match="rank=2 is out of range; allowed: 0 to 1"):
        ShardedSampler(5, 2, 2)
