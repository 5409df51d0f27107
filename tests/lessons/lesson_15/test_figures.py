"""Drawings, planted faults and rehearsals of lesson 15."""

import pytest

from course_utils.launch import Spec, strategies
from course_utils.launch.check.rows import Row
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.reduction import Reduction
from course_utils.lessons.lesson_15 import faults, figures, rehearsals

SLOW = Spec(model="Qwen/Qwen3-8B", nodes=2, global_batch=64, sequence_length=4096, network=12.5)


def test_every_figure_has_its_words():
    plans = [plan(SLOW.but(strategy="zero1")), plan(SLOW)]
    made = [
        figures.flow(),
        figures.collectives(),
        figures.sharding(),
        figures.rendezvous(),
        figures.requeue(),
        figures.strategy_memory(plans),
        figures.step_memory(plans[0]),
        figures.step_times({"a network": plans}),
        figures.overlap(plans),
    ]
    assert all(len(figure.alternative_text) > 100 for figure in made)


@pytest.mark.parametrize("each_batch", [False, True])
@pytest.mark.parametrize("changes", [{"strategy": "zero1"}, {"replicas": 2}, {"global_batch": 16}])
def test_the_timeline_is_as_long_as_the_step(changes, each_batch):
    one = plan(SLOW.but(**changes), reduction=Reduction(each_batch=each_batch))
    (axis,) = figures.overlap([one]).axes
    end = max(bar.get_x() + bar.get_width() for bar in axis.patches)
    assert end == pytest.approx(one.speed.step)


def test_no_number_lies_on_the_limit():
    """What stays free, or is too much, stands right of the bar and of the limit's line."""
    plans = strategies(SLOW)
    (axis,) = figures.strategy_memory(plans).axes
    limit = plans[0].limit / 2**30
    numbers = [text for text in axis.texts if text.get_text().endswith(("free", "too much"))]
    assert len(numbers) == len(plans)
    for text, one in zip(numbers, plans, strict=True):
        assert text.get_position()[0] > max(limit, one.total / 2**30)
        assert text.get_text().endswith("free") == one.fits


def test_a_fault_that_is_none_is_not_planted():
    planted = faults.edited(Spec(), "accelerate.yaml", "no such text", "x")
    with pytest.raises(ValueError, match="does not stand in accelerate.yaml"), planted:
        pass


def test_a_planted_fault_shows_in_its_row():
    rows, heard = faults.plant("processes that do not divide")
    assert {row.field for row in rows} >= {"world size", "effective batch"} and heard == []


def test_the_summary_keeps_what_differs():
    same = [Row(f"{name}.sh", "nodes", 2, 2) for name in "abc"]
    other = Row("a.sh", "strategy", "fsdp2", "ddp")
    assert rehearsals.summary([*same, other, Row("b.sh", "seldom", 1, 1)]) == [Row("3 files", "nodes", 2, 2), other]
