"""``--lesson NN`` keeps what concerns a lesson and nothing else; an unknown number is one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.authoring.build import ROOT, targets
from tests.one_lesson import helpers, mirrors, numbers

LESSONS = [source.stem for source in targets() if source.parent.name == "source"]
FIRST = LESSONS[0]


def collected(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "--nbval", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def kept() -> list[str]:
    return collected("--lesson", FIRST[:2]).stdout.splitlines()


@pytest.mark.parametrize(
    "item",
    [
        f"notebooks/{FIRST}.ipynb::Cell 0",
        f"tests/lessons/test_short_runs.py::test_few_steps[{FIRST}]",
        f"tests/lessons/test_format.py::test_lesson[{FIRST}-sections]",
        f"tests/lessons/test_format.py::test_deck[deck-{FIRST}-quiet_outputs]",
        f"tests/lessons/test_exercises.py::test_solution_passes[{FIRST[:2]}.1]",
        f"tests/lessons/test_exercises.py::test_wrong_answer_gets_the_hint_that_fits[{FIRST[:2]}.1-",
        f"tests/lessons/test_api_arguments.py::test_every_keyword_argument_exists[notebooks/source/{FIRST}.py]",
        f"tests/authoring/test_build.py::test_notebook_is_what_its_source_gives[source/{FIRST}]",
        f"tests/authoring/test_build.py::test_notebook_is_what_its_source_gives[slides/{FIRST}]",
        f"tests/authoring/decks/test_export.py::test_deck_is_ready_for_jupyterlab[{FIRST}]",
        f"tests/browser/test_slides.py::test_deck_can_be_presented[{FIRST}]",
        f"tests/browser/test_jupyterlab.py::test_lesson_01_runs_through[{FIRST}]",
        f"tests/test_readme.py::test_a_row_says_what_the_lesson_has[{FIRST}]",
        f"tests/lessons/lesson_{FIRST[:2]}/test_",
        "tests/teach/test_lesson.py::",
    ],
)
def test_what_concerns_the_lesson_is_kept(item, kept):
    assert any(line.startswith(item) for line in kept)


def test_other_lessons_and_their_helpers_are_not(kept):
    others = "|".join(lesson[:2] for lesson in LESSONS[1:])
    assert not [line for line in kept if re.search(rf"\b({others})_[a-z]|lesson_({others})", line)]
    assert not [line for line in kept if line.startswith("tests/authoring/test_build.py") and FIRST not in line]
    later = {str(path.relative_to(ROOT)) for path in mirrors(helpers(LESSONS[-1][:2]))}
    assert later and not later & {line.partition("::")[0] for line in kept}


def test_an_unknown_lesson_is_one_sentence():
    done = collected("--lesson", "77", "-n", "2")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip() == f"ERROR: --lesson 77: no such lesson; allowed: {', '.join(numbers())}"


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
