"""Data parallel by hand on pretended and real ranks: gradients of all rows, messages, buckets, overlap, equal runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.parallel import Ranks, data_parallel_runs
from course_utils.parallel.data_parallel import AverageAfter, buckets_in_bytes, buckets_of, start_equal
from course_utils.parallel.data_parallel_runs import KINDS, train_data_parallel
from course_utils.parallel.links import in_threads


def model_of(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


def test_the_naive_average_on_pretended_ranks_starts_equal_and_is_the_gradient_of_all_rows():
    x, y = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2

    def run(link):
        model = model_of(link.rank)
        wrapped = AverageAfter(model, link)
        mine = slice(3 * link.rank, 3 * link.rank + 3)
        nn.functional.cross_entropy(wrapped(x[mine]), y[mine]).backward()
        wrapped.finish()
        return torch.cat([p.grad.flatten() for p in model.parameters()]), wrapped.messages, len(wrapped.spans)

    alone = model_of(0)
    nn.functional.cross_entropy(alone(x), y).backward()
    expected = torch.cat([p.grad.flatten() for p in alone.parameters()])
    for gradient, messages, spans in in_threads(run, 3):
        assert torch.allclose(gradient, expected, atol=1e-6) and messages == spans == 4


def test_an_equal_start_reaches_buffers():
    def run(link):
        layer = nn.BatchNorm1d(2)
        layer.running_mean += link.rank
        start_equal(layer, link)
        return layer.running_mean.tolist()

    assert in_threads(run, 2) == [[0, 0], [0, 0]]


def test_buckets_go_from_the_last_parameter_to_the_first_and_keep_their_size():
    model = model_of(0)
    model[0].bias.requires_grad_(False)
    first, last, bias = model[0].weight, model[2].weight, model[2].bias
    assert [list(map(id, b)) for b in buckets_of(list(model.parameters()), 48)] == [[id(bias), id(last)], [id(first)]]
    assert buckets_in_bytes(buckets_of(list(model.parameters()), 48)) == [40, 96]
    assert len(buckets_of(list(model.parameters()), 1)) == 3 and len(buckets_of(list(model.parameters()), 1000)) == 1


@pytest.fixture(scope="module")
def ranks():
    two = Ranks(2)
    yield two
    two.close()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_five_ways_equal_one_process(ranks, accumulation):
    found = {kind: ranks(train_data_parallel, kind=kind, steps=4, accumulation=accumulation) for kind in KINDS}
    for kind, (first, second) in found.items():
        assert first["world_size"] == 2 and first["backend"] == "gloo", kind
        assert first["hash"] == second["hash"] and first["losses"] == second["losses"], kind
        assert first["from_alone"] < 1e-4, kind
        assert first["from_micro_batches"] == 0 or accumulation > 1 and first["from_micro_batches"] < 1e-5, kind
        assert first["hash"] == found["naive"][0]["hash"], kind
    wrappers = [found[kind][0]["wrapper"] for kind in KINDS]
    assert wrappers == ["AverageAfter", "AverageInBuckets", *["DistributedDataParallel"] * 3]


def test_own_targets_are_another_gradient(ranks):
    found = ranks(train_data_parallel, kind="trainer", steps=4, average_tokens=False)[0]
    assert found["from_alone"] > 1e-3


def test_unknown_kinds_are_one_sentence():
    with pytest.raises(ValueError, match="kind='fsdp' is not known; allowed: naive, bucketed, ddp, acc"):
        data_parallel_runs.train_data_parallel("fsdp")


def in_buckets(bucket_bytes):
    import torch
    from torch import nn

    from course_utils.parallel.data_parallel import AverageInBuckets
    from course_utils.parallel.links import join_group

    link = join_group()
    torch.manual_seed(link.rank)
    model = nn.ModuleDict({"used": nn.Linear(6, 4), "rank_0_only": nn.Linear(4, 1)})
    wrapped, found = AverageInBuckets(model, link, bucket_bytes=bucket_bytes), []
    x = torch.arange(12.0).view(2, 6) / 10 + link.rank
    for quiet in (True, False):

        def loss():
            hidden = model["used"](x)
            return hidden.sum() + (model["rank_0_only"](hidden).sum() if link.rank == 0 else 0)

        if quiet:
            with wrapped.no_sync():
                loss().backward()
            found.append(wrapped.messages)
        else:
            loss().backward()
            launched_in_backward = wrapped.messages
            wrapped.finish()
    expected = {}
    for rank in range(2):  # what each rank computes, in this process
        copy = nn.ModuleDict({"used": nn.Linear(6, 4), "rank_0_only": nn.Linear(4, 1)})
        copy.load_state_dict(model.state_dict())
        y = x - link.rank + rank
        hidden = copy["used"](y)
        (hidden.sum() + (copy["rank_0_only"](hidden).sum() if rank == 0 else 0)).backward()
        for name, p in copy.named_parameters():
            expected[name] = expected.get(name, 0) + (0 if p.grad is None else p.grad)
    # two micro-batches, averaged over two ranks: the factors cancel
    right = all(torch.allclose(p.grad, expected[name], atol=1e-5) for name, p in model.named_parameters())
    ended = all(b <= e for _, b, e in wrapped.spans)
    return {
        "quiet": found[0],
        "in_backward": launched_in_backward,
        "all": wrapped.messages,
        "right": right,
        "ended": ended,
    }


@pytest.mark.parametrize(("bucket_bytes", "buckets"), [(1, 4), (200, 1)])
def test_buckets_average_windows_and_parameters_that_one_rank_does_not_use(ranks, bucket_bytes, buckets):
    first, second = ranks(in_buckets, bucket_bytes=bucket_bytes)
    assert first["right"] and second["right"] and first["ended"]
    assert first["quiet"] == second["quiet"] == 0 and first["all"] == second["all"] == buckets
    assert first["in_backward"] == buckets  # sent during backward
    assert second["in_backward"] == 0  # rank 1 has no gradient for the first bucket: it sends in finish
