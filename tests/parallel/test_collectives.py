"""Collectives by hand: right on any number of ranks, with the ring's bytes, and equal to torch's on real ranks."""

from __future__ import annotations

import pytest
import torch

from course_utils.parallel import collectives, run_ranks
from course_utils.parallel.collectives import pieces, ring_bytes
from course_utils.parallel.links import in_threads


def numbers(rank, elements):
    return torch.randint(-50, 50, (elements,), generator=torch.Generator().manual_seed(rank)).float()


def total(size, elements):
    return sum(numbers(rank, elements) for rank in range(size))


@pytest.mark.parametrize("way", ["all_reduce_naive", "all_reduce_ring"])
@pytest.mark.parametrize(("size", "elements"), [(1, 5), (2, 1), (2, 7), (3, 2), (4, 12), (5, 13), (8, 3)])
def test_all_reduce_gives_everybody_the_sum(way, size, elements):
    found = in_threads(lambda link: getattr(collectives, way)(link, numbers(link.rank, elements)), size)
    assert all(torch.equal(tensor, total(size, elements)) for tensor in found)


@pytest.mark.parametrize(("size", "elements"), [(2, 4), (3, 7), (4, 8)])
def test_reduce_scatter_gives_rank_r_its_piece_of_the_sum(size, elements):
    found = in_threads(lambda link: collectives.reduce_scatter(link, numbers(link.rank, elements)).clone(), size)
    for piece, expected in zip(found, pieces(total(size, elements), size), strict=True):
        assert torch.equal(piece, expected)


@pytest.mark.parametrize(("size", "elements"), [(2, 4), (3, 7), (4, 2)])
def test_all_gather_collects_piece_r_of_rank_r(size, elements):
    found = in_threads(lambda link: collectives.all_gather(link, numbers(link.rank, elements)), size)
    expected = torch.cat([pieces(numbers(rank, elements), size)[rank] for rank in range(size)])
    assert all(torch.equal(tensor, expected) for tensor in found)


def test_broadcast_gives_everybody_the_roots_tensor():
    found = in_threads(lambda link: collectives.broadcast(link, numbers(link.rank, 4), root=2), 3)
    assert all(torch.equal(tensor, numbers(2, 4)) for tensor in found)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_the_ring_sends_what_the_formula_says(size):
    def run(link):
        collectives.all_reduce_ring(link, torch.ones(84))
        return link.bytes, link.messages

    assert in_threads(run, size) == [(ring_bytes(84, size), 2 * (size - 1))] * size


def test_each_step_of_the_ring_adds_one_chunk():
    from course_utils.lessons.lesson_11.figures import ring_history

    names, states = zip(*ring_history(4), strict=True)
    assert names[0] == "start" and names[3] == "reduce-scatter 3" and names[-1] == "all-gather 3"
    complete = [sum(mask == 15 for row in state for mask in row) for state in states]
    assert complete == [0, 0, 0, 4, 8, 12, 16]


def on_real_ranks(elements):
    import torch
    import torch.distributed as dist

    from course_utils.parallel import collectives
    from course_utils.parallel.links import join_group

    link = join_group()
    mine = torch.arange(elements, dtype=torch.float32) * (link.rank + 1)
    theirs = link.all_reduce(mine.clone())
    ring = collectives.all_reduce_ring(link, mine.clone())
    naive = collectives.all_reduce_naive(link, mine.clone())
    gathered = collectives.all_gather(link, mine.clone())
    root = mine.clone()
    dist.broadcast(root, 1)
    same = torch.equal(theirs, ring) and torch.equal(theirs, naive)
    return {
        "same": same and torch.equal(root, collectives.broadcast(link, mine.clone(), 1)),
        "gathered": gathered.tolist(),
        "backend": link.backend,
        "size": link.size,
    }


def test_on_three_real_ranks_they_are_torchs():
    found = run_ranks(on_real_ranks, processes=3, arguments={"elements": 7})
    assert all(rank["same"] and rank["size"] == 3 for rank in found)
    assert found[0]["gathered"] == found[2]["gathered"] == [0, 1, 2, 6, 8, 15, 18]
