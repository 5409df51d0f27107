"""Tensor parallelism by hand equals the undivided MLP in value and gradient, on two real ranks."""

from __future__ import annotations

import pytest

from course_utils.parallel import RanksFailed, shared_ranks


@pytest.fixture(scope="module")
def ranks():
    return shared_ranks(2)


def compare(exchange_back=True):
    """Largest relative differences of outputs and gradients between a divided and an undivided MLP."""
    import torch
    import torch.distributed as dist
    from torch import nn

    from course_utils.parallel import tensor_parallel
    from course_utils.parallel.sharded import join

    join()
    torch.manual_seed(0)
    first, second, x = nn.Linear(6, 8), nn.Linear(8, 6), torch.randn(2, 3, 6)
    right = tensor_parallel.Copy.backward
    if not exchange_back:
        tensor_parallel.Copy.backward = staticmethod(lambda ctx, gradient: gradient)
    found = []
    parallel = tensor_parallel.ParallelMLP(first, nn.GELU(), second)
    for mlp in (parallel, nn.Sequential(first, nn.GELU(), second)):
        given = x.clone().requires_grad_()
        out = mlp(given)
        out.pow(3).sum().backward()
        found.append((out, given.grad))
    tensor_parallel.Copy.backward = right
    rank = dist.get_rank()
    pairs = {
        "output": (found[0][0], found[1][0]),
        "input": (found[0][1], found[1][1]),
        "first": (parallel.first.weight.grad, first.weight.grad.chunk(2, 0)[rank]),
        "first bias": (parallel.first.bias.grad, first.bias.grad.chunk(2, 0)[rank]),
        "second": (parallel.second.weight.grad, second.weight.grad.chunk(2, 1)[rank]),
        "second bias": (parallel.second.bias.grad, second.bias.grad),
    }
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, (a, b) in pairs.items()}


def test_an_mlp_on_two_ranks_equals_the_undivided_one(ranks):
    for rank in ranks(compare):
        assert max(rank.values()) < 1e-5, rank


def test_without_the_backward_all_reduce_the_inputs_gradient_is_wrong(ranks):
    for rank in ranks(compare, exchange_back=False):
        assert rank["input"] > 0.01 and rank["output"] < 1e-5


def cut_unevenly():
    from torch import nn

    from course_utils.parallel.sharded import join
    from course_utils.parallel.tensor_parallel import ColumnParallel

    join()
    ColumnParallel(nn.Linear(4, 5))


def test_ranks_that_do_not_divide_a_matrix_are_refused(ranks):
    with pytest.raises(RanksFailed, match="2 ranks do not divide 5; allowed: a divisor of 5"):
        ranks(cut_unevenly)
