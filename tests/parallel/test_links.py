"""Links: pretended ranks exchange, count and say for whom they waited; ``join_group`` names what is missing."""

from __future__ import annotations

import pytest
import torch

from course_utils.parallel import links
from course_utils.parallel.links import Stuck, in_threads, join_group


def test_pretended_ranks_send_receive_exchange_and_count():
    def run(link):
        right, left = (link.rank + 1) % link.size, (link.rank - 1) % link.size
        arrived = link.exchange(torch.full((3,), float(link.rank)), right, torch.empty(3), left)
        total = link.all_reduce(torch.tensor([1.0, link.rank]))
        if link.rank == 0:
            link.send(torch.ones(2), 1)
        if link.rank == 1:
            assert link.receive(torch.empty(2), 0).tolist() == [1, 1]
        return arrived[0].item(), total.tolist(), link.messages, link.bytes

    found = in_threads(run, 3)
    assert [arrived for arrived, *_ in found] == [2, 0, 1]
    assert all(total == [3, 3] for _, total, *_ in found)
    assert [sent[2:] for sent in found] == [(2, 20), (1, 12), (1, 12)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda link: link.send(torch.ones(1), 1 - link.rank), "waited to send to rank"),
        (lambda link: link.receive(torch.ones(1), 1 - link.rank), "waited to receive from rank"),
        (lambda link: link.all_reduce(torch.ones(1 + link.rank)), "expected a tensor of shape"),
        (lambda link: link.all_reduce(torch.ones(1)) if link.rank else None, "rank 0, which did not send"),
    ],
)
def test_who_waits_in_vain_says_for_whom(wrong, words, monkeypatch):
    monkeypatch.setattr(links, "PATIENCE", 0.2)
    with pytest.raises(Stuck, match=words):
        in_threads(wrong, 2)


def test_the_first_failure_is_raised(monkeypatch):
    monkeypatch.setattr(links, "PATIENCE", 0.3)

    def run(link):
        if link.rank == 1:
            raise KeyError("the reason")
        link.all_reduce(torch.ones(1))

    with pytest.raises(KeyError, match="the reason"):
        in_threads(run, 2)


def test_a_function_that_never_comes_back_is_given_up():
    import threading

    released = threading.Event()
    with pytest.raises(Stuck, match="rank 0 had not ended after 0.2 s"):
        in_threads(lambda link: released.wait(20), 2, patience=0.2)
    released.set()


def test_no_message_to_oneself_or_to_nobody():
    for other in (0, 2, -1):
        with pytest.raises(ValueError, match="is no other rank; allowed: 0 to 1 without 0"):
            in_threads(lambda link, other=other: link.rank or link.send(torch.ones(1), other), 2)


def test_without_a_launcher_the_missing_variables_are_named(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(RuntimeError, match="RANK.*MASTER_PORT.*not set; start this with torchrun"):
        join_group()
