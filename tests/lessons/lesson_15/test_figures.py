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
    numbers = [text for text in axis.texts if text.get_text().endswith(("a step", "too much"))]
    assert len(numbers) == len(plans)
    for text, one in zip(numbers, plans, strict=True):
        assert text.get_position()[0] > max(limit, one.total / 2**30)
        assert (f"GiB free, {one.speed.step:.2f} s a step" in text.get_text()) == one.fits


def test_a_fault_that_is_none_is_not_planted():
    planted = faults.edited(Spec(), "accelerate.yaml", "no such text", "x")
    with pytest.raises(ValueError, match="does not stand in accelerate.yaml"), planted:
        pass


def test_a_planted_fault_shows_in_its_row():
    rows, heard = faults.plant("16 processes on 3 machines of 6 GPUs")
    assert {row.field for row in rows} >= {"world size", "effective batch"} and heard == []


def test_every_fault_is_in_the_catalogue():
    """The lesson says that two of the eight stop in the ranks, and that the others train on."""
    stopping = [name for name in faults.FAULTS if faults.stops(name)]
    assert stopping == ["a list of layer classes", "dp_shard_size without its prefix"]
    assert all(name in faults.cures() for name in faults.FAULTS)


def test_a_sharded_bar_is_a_quarter_of_its_frame():
    """Each bar is as long as its bytes per parameter, and the filled part what one of four ranks keeps."""
    (axis,) = figures.sharding().axes
    frames, kept = axis.patches[::2], axis.patches[1::2]
    bytes_each = [4, 4, 8, *[2, 2, 12] * 3, 4, 4, 8]
    assert [frame.get_width() / 1.2 for frame in frames] == pytest.approx(bytes_each)
    shares = [part.get_width() / frame.get_width() for frame, part in zip(frames, kept, strict=True)]
    assert shares == pytest.approx([1, 1, 1, 1, 1, 0.25, 1, 0.25, 0.25, *[0.25] * 6])


def test_the_summary_keeps_what_differs():
    same = [Row(f"{name}.sh", "nodes", 2, 2) for name in "abc"]
    other = Row("a.sh", "strategy", "fsdp2", "ddp")
    assert rehearsals.summary([*same, other, Row("b.sh", "seldom", 1, 1)]) == [Row("3 files", "nodes", 2, 2), other]
