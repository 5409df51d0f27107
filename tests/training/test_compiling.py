"""Counts of compiled graphs: one a shape, one in all, or one and a variable one."""

import logging

import pytest
import torch

from course_utils.training.compiling import graphs_after


def double(x):
    return (2 * x).sum()


@pytest.mark.parametrize(
    ("dynamic", "expected"), [(False, [1, 2, 3, 3, 3]), (None, [1, 2, 2, 2, 2]), (True, [1, 1, 1, 1, 1])]
)
def test_five_shapes(dynamic, expected):
    calls = [(torch.ones(n, 3),) for n in (4, 5, 6, 7, 8)]
    assert graphs_after(double, calls, dynamic, limit=3) == expected


def test_the_same_shape_compiles_once_and_the_logger_is_as_before(capfd):
    level = logging.getLogger("torch._dynamo").level
    assert graphs_after(double, [(torch.ones(4),)] * 3, False) == [1, 1, 1]
    graphs_after(double, [(torch.ones(n),) for n in range(2, 14)], False)
    assert logging.getLogger("torch._dynamo").level == level
    assert "recompile_limit" not in capfd.readouterr().err
    with pytest.raises(ValueError, match="limit=0"):
        graphs_after(double, [], limit=0)
