"""``--lesson NN`` keeps what concerns a lesson and nothing else; an unknown number is one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.authoring.build import ROOT, targets
from tests.one_lesson import helpers, mirrors, numbers


def collected(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "--nbval", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def kept() -> list[str]:
    return collected("--lesson", "02").stdout.splitlines()


@pytest.mark.parametrize(
    "item",
    [
        "notebooks/02_batches.ipynb::Cell 0",
        "tests/lessons/test_short_runs.py::test_few_steps[02_batches]",
        "tests/lessons/test_format.py::test_lesson[02_batches-sections]",
        "tests/lessons/test_format.py::test_deck[deck-02_batches-quiet_outputs]",
        "tests/lessons/test_exercises.py::test_solution_passes[02.1]",
        "tests/lessons/test_exercises.py::test_wrong_answer_gets_the_hint_that_fits[02.3",
        "tests/lessons/test_api_arguments.py::test_every_keyword_argument_exists[notebooks/source/02_batches.py]",
        "tests/authoring/test_build.py::test_notebook_is_what_its_source_gives[source/02_batches]",
        "tests/authoring/test_build.py::test_notebook_is_what_its_source_gives[slides/02_batches]",
        "tests/authoring/decks/test_export.py::test_deck_is_ready_for_jupyterlab[02_batches]",
        "tests/browser/test_slides.py::test_deck_can_be_presented[02_batches]",
        "tests/test_readme.py::test_a_row_says_what_the_lesson_has[02_batches]",
        "tests/data/test_packing.py::",
        "tests/data/test_collators.py::",
    ],
)
def test_what_concerns_the_lesson_is_kept(item, kept):
    assert any(line.startswith(item) for line in kept)


def test_other_lessons_and_what_they_used_before_are_not(kept):
    assert not [line for line in kept if re.search(r"\b(01|03|15)[_.]\w|lesson_(01|03|15)", line)]
    assert not [line for line in kept if "tests/training/" in line or "tests/launch/" in line]
    assert not [line for line in kept if "test_build.py" in line and "02_batches" not in line]


def test_an_unknown_lesson_is_one_sentence():
    done = collected("--lesson", "77", "-n", "2")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip() == f"ERROR: --lesson 77: no such lesson; allowed: {', '.join(numbers())}"


def test_every_lesson_can_be_chosen():
    assert numbers() == sorted({source.name[:2] for source in targets()})
    assert helpers(numbers()[0]) > {ROOT / "course_utils" / "teach" / "lesson.py"}


def test_helpers_belong_to_the_first_lesson_that_uses_them():
    owned = [helpers(number) for number in numbers()]
    assert len(set().union(*owned)) == sum(map(len, owned)) > 0


def test_a_helpers_tests_are_found_by_its_name(tmp_path):
    for name in ("launch/test_plan.py", "launch/test_plan_ranks.py", "launch/test_speed.py", "test_hub.py"):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    used = {
        tmp_path / "course_utils" / "launch" / "plan.py",
        tmp_path / "course_utils" / "hub.py",
        Path("/bench/x.json"),
    }
    found = mirrors(used, tmp_path)
    assert {path.name for path in found} == {"test_plan.py", "test_plan_ranks.py", "test_hub.py"}
