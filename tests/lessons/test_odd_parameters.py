"""Odd but allowed parameters, and other seeds: a claim that needs certain parameters says so, no claim needs a seed.

Each run is a lesson whole, as a user types it. A night runs the odd parameters and one of ten seeds at full length, the
date says which; ``LESSON_SEEDS=10 make test-long`` runs all ten.
"""

from __future__ import annotations

import datetime
import os

import pytest

from course_utils.authoring.build import ROOT
from course_utils.authoring.run_course import lessons
from course_utils.teach.lesson import HIGHEST_SEED
from tests.campaign.tally import Tally
from tests.headless import papermill

pytestmark = pytest.mark.long
LESSONS = {path.stem[:2]: path for path in lessons()}
SEEDS = range(1, 11)
TONIGHT = [SEEDS[datetime.date.today().toordinal() % len(SEEDS)]]  # sure to be a seed that was tried
CHOSEN = list(SEEDS)[: int(os.environ["LESSON_SEEDS"])] if "LESSON_SEEDS" in os.environ else TONIGHT
ODD = [
    (number, {"max_steps": steps, "seed": seed}) for steps, seed in ((1, HIGHEST_SEED), (7, 3)) for number in LESSONS
]
ODD += [("01", {"batch_size": 1, "accumulation": 3, "max_steps": 2}), ("01", {"batch_size": 512, "max_steps": 1})]
ODD += [("01", {"batch_size": 8}), ("01", {"batch_size": 7, "accumulation": 5, "max_steps": 201})]
ODD += [("02", {"batch_size": size, "max_steps": 2}) for size in (1, 2, 4, 7, 8, 256)]
REFUSED = {
    ("01", "batch_size", 20_000): 512,
    ("02", "batch_size", 20_000): 256,
    ("03", "seed", 2**32 - 1): HIGHEST_SEED,
}


def named(value: object) -> str | None:
    return ",".join(f"{name}={number}" for name, number in value.items()) if isinstance(value, dict) else None


@pytest.fixture
def run(tmp_path, guarded_environment):
    """``run("02", {"batch_size": 7})`` -> the finished process; not counted as one of the lesson's executions."""

    def start(number: str, parameters: dict):
        output, uncounted = tmp_path / "out.ipynb", lambda *_: None
        return papermill(LESSONS[number], output, ROOT, guarded_environment, uncounted, **parameters)

    return start


@pytest.fixture(scope="module")
def tally():
    counted = Tally()
    yield counted
    if counted.tried:
        counted.check()


@pytest.fixture
def survives(run, tally):
    """``survives("another seed", "02", {"seed": 3})``: run, counted, and a failure shown."""

    def check(kind: str, number: str, parameters: dict) -> None:
        done = run(number, parameters)
        tally.count(f"{kind}: lesson {number}", f"{parameters}" if done.returncode else None)
        assert done.returncode == 0, done.stderr[-4000:]

    return check


@pytest.mark.parametrize(("number", "parameters"), ODD, ids=named)
def test_odd_parameters(number, parameters, survives):
    survives("odd parameters", number, parameters)


@pytest.mark.parametrize("seed", CHOSEN)
@pytest.mark.parametrize("number", LESSONS)
def test_another_seed(number, seed, survives):
    survives("another seed", number, {"seed": seed})


@pytest.mark.parametrize(("number", "name", "value"), REFUSED)
def test_what_would_not_fit_is_refused(number, name, value, run):
    done, lowest = run(number, {name: value}), 0 if name == "seed" else 1
    assert done.returncode != 0
    sentence = (
        f"{name}={value} is out of range; allowed: a whole number from {lowest} to {REFUSED[number, name, value]}"
    )
    assert sentence in done.stderr
