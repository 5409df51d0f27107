"""Goodput: the formula against a simulation that knows nothing of it, the best interval against a search."""

import math

import numpy as np
import pytest

from course_utils.launch.__main__ import main
from course_utils.launch.planner import goodput
from course_utils.launch.planner.budget import budget_table, days_table, reported_table, span
from course_utils.launch.planner.goodput import Failures, Saving
from course_utils.launch.planner.plan import plan, strategies
from course_utils.launch.spec import Spec
from course_utils.lessons.lesson_15.goodput_figure import goodput_chart

HOUR = 3600.0
BIG = Spec(model="Qwen/Qwen3-8B", nodes=64, global_batch=512, sequence_length=4096, price=3.0, max_steps=100_000)
CASES = {
    "blocking": (Failures(3 * HOUR, 600), Saving("blocking", 60)),
    "slow to start again": (Failures(3 * HOUR, 2 * HOUR), Saving("blocking", 60)),
    "a save as long as a life": (Failures(600, 60), Saving("blocking", 500)),
    "in the background": (Failures(3 * HOUR, 600), Saving("asynchronous", 4, 300)),
    "in the background, slowly": (Failures(HOUR, 60), Saving("asynchronous", 4, 1200)),
}


@pytest.mark.parametrize("share", [0.1, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_goodput_is_what_the_simulation_finds(name, share):
    """Within 2 %: 4,000 lives of 64 GPUs, each with a clock of its own; more where most lives save nothing."""
    failures, saving = CASES[name]
    interval = share * goodput.best_interval(failures, saving)
    expected = goodput.goodput(interval, failures, saving)
    lives = 4000 if expected > 0.1 else 25_000
    work = lives * failures.mtbf * expected
    found = work / goodput.simulate(work, interval, failures, saving, gpus=64, seed=1)
    assert found == pytest.approx(expected, rel=0.02)


def test_without_failures_only_saving_costs():
    """Ten times 100 s of work, nine saves of 10 s: the last one is the run's end."""
    never = Failures(1e15, 600)
    assert goodput.simulate(1000, 100, never, Saving("blocking", 10)) == 600 + 1000 + 9 * 10
    assert goodput.goodput(100, never, Saving("blocking", 10)) == pytest.approx(100 / 110)


@pytest.mark.parametrize("name", CASES)
def test_no_other_interval_is_better(name):
    failures, saving = CASES[name]
    best = goodput.best_interval(failures, saving)
    shares = [goodput.goodput(best * factor, failures, saving) for factor in np.geomspace(0.2, 5, 41)]
    assert max(shares) <= goodput.goodput(best, failures, saving) * (1 + 1e-9)


def test_young_and_daly_are_close_where_saving_is_short():
    """Daly's own examples (figures 3 to 5): M = 24 h, 6 h, 15 min with saves of 5 min: 117, 57 and 9.1 min."""
    for hours, minutes in ((24, 117), (6, 57), (0.25, 9.1)):
        failures, saving = Failures(hours * HOUR, 600), Saving("blocking", 300)
        assert goodput.daly(failures, saving) / 60 == pytest.approx(minutes, rel=0.02)
        assert goodput.best_interval(failures, saving) == pytest.approx(goodput.daly(failures, saving), rel=0.02)
    assert goodput.young(Failures(24 * HOUR, 600), Saving("blocking", 300)) == math.sqrt(2 * 300 * 24 * HOUR)
    assert goodput.daly(Failures(100, 600), Saving("blocking", 300)) == 100  # longer than two lives


def test_llama_3s_failures():
    """419 interruptions in 54 days on 16,384 GPUs; the default of a spec is that of one GPU, rounded."""
    llama = goodput.REPORTED[0]
    assert llama.gpu_mtbf == pytest.approx(16_384 * 54 * 24 / 419)
    assert Spec().gpu_mtbf == pytest.approx(llama.gpu_mtbf, rel=0.02)
    assert reported_table().count("\n") == len(goodput.REPORTED)


def test_the_plan_on_512_gpus():
    """Qwen3-8B, 12 bytes a parameter: 98.3 GB, 49 s at 2 GB/s; one failure in 50,000 / 512 h."""
    one = plan(BIG)
    blocking, behind = (goodput.outlook(one, saving) for saving in goodput.ways_to_save(one))
    assert blocking.saving.stall == pytest.approx(12 * one.parameters / 2e9)
    assert goodput.failures_of(one).mtbf == pytest.approx(50_000 * HOUR / 512)
    every = 100 * one.speed.step
    assert blocking.share == pytest.approx(every / (every + blocking.saving.stall), rel=0.01)  # hardly any failure
    assert blocking.best_share > 0.97 > blocking.share and behind.best_share > blocking.best_share
    assert blocking.days * blocking.share == pytest.approx(one.speed.hours / 24)
    assert blocking.cost * blocking.share == pytest.approx(one.speed.cost)
    text = budget_table(one)
    assert "98.3 GB" in text and "1000 of 1000 checkpoints, as save_total_limit is not set" in text
    assert "is spent on saving" in text and "refuse" not in text
    few = budget_table(plan(BIG.but(save_total_limit=3, save_every=4000)))
    assert "disk: 295 GB for 3 of 25 checkpoints" in few and "is spent on saving" not in few


def test_a_short_run_is_saved_at_its_end_at_best():
    one = plan(Spec(max_steps=50))
    assert goodput.outlook(one, goodput.ways_to_save(one)[0]).best == pytest.approx(50 * one.speed.step)


def test_strategies_compared_on_days_and_cost():
    plans = strategies(BIG)
    lines = days_table(plans).splitlines()
    fitting = [one for one in plans if one.fits]
    assert len(lines) == 1 + len(fitting) + 1 and lines[-1] == "do not fit: DDP"
    costs = [float(line.split()[-1].replace(",", "")) for line in lines[1:-1]]
    assert costs == sorted(costs) and costs[0] > min(one.speed.cost for one in fitting)


def test_plan_prints_the_budget(capsys):
    assert main(["plan", "--nodes", "2", "--strategies", "--layouts"]) == 0
    text = capsys.readouterr().out
    assert "FSDP2 + 2 replicas " in text
    assert "a checkpoint: 7.2 GB" in text and "blocking, at best" in text and "FSDP2 + no reshard" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5.0 s"), (119, "119.0 s"), (120, "2.0 min"), (7200, "2.0 h"), (7 * 86400, "7.0 days")]
)
def test_times_as_people_say_them(seconds, text):
    assert span(seconds) == text


def test_the_chart():
    figure = goodput_chart(plan(BIG))
    left, right = figure.axes
    assert len(left.lines) == 8 and len(right.lines) == 2 and len(figure.alternative_text) > 100
    tops = [line.get_xydata()[0] for line in left.lines[1::2]]
    assert all(one[0] > other[0] and one[1] > other[1] for one, other in zip(tops, tops[1:], strict=False))
    blocking, behind = (line.get_ydata() for line in right.lines)
    assert all(blocking <= behind)
