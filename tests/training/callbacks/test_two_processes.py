"""On two real processes every callback acts once, or on both, as it says; one start for all of it."""

import pytest

from course_utils.lessons.lesson_05.two_ranks import two_ranks
from course_utils.parallel import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(two_ranks, 2, {"folder": str(tmp_path_factory.mktemp("ranks"))}, timeout=280)


def test_every_event_fires_on_both(ranks):
    first, second = ranks
    assert first["world"] == second["world"] == 2
    assert first["events"] == second["events"]
    assert first["events"]["on_step_end"] == first["events"]["on_evaluate"] == 4


def test_both_stop_at_the_step_computed_by_hand(ranks):
    """Best at the second evaluation, patience 2: the fourth ends it."""
    assert [rank["stopped_at"] for rank in ranks] == [rank["steps"] for rank in ranks] == [4, 4]


def test_exactly_the_best_checkpoint_deleted_once(ranks):
    assert [rank["best_step"] for rank in ranks] == [2, 2]
    assert [rank["on_disk"] for rank in ranks] == [[2], [2]]
    assert [rank["deletions"] for rank in ranks] == [1, 0]


def test_samples_and_pictures_on_rank_0_only(ranks):
    assert [rank["samples"] for rank in ranks] == [4, 0]
    assert [rank["pictures"] for rank in ranks] == [1, 0]


def test_tokens_of_all_ranks_are_counted_on_both(ranks):
    assert ranks[0]["tokens"] == ranks[0]["tokens_seen"] == ranks[1]["tokens"] > 0
    assert [rank["bad_steps"] for rank in ranks] == [[], []]


def test_a_lonely_stop_is_seen_and_becomes_everybodys(ranks):
    assert [rank["disagreements"] for rank in ranks] == [[2], [2]]
    assert [rank["together"] for rank in ranks] == [2, 2]
