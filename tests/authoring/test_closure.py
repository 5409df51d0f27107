"""Which files a lesson uses: what it imports and names, through packages, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from course_utils.authoring.build import targets
from course_utils.authoring.closure import ROOT, files_used

PROJECT = {
    "bench/results/times.json": "{}",
    "course_utils/__init__.py": "",
    "course_utils/hub.py": "",
    "course_utils/data/__init__.py": "from course_utils.data.text import load\n_LATER = {'draw': 'digits'}\n",
    "course_utils/data/text.py": "def load():\n    from course_utils.data.cache import keep\n",
    "course_utils/data/cache.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import course_utils.hub\n",
    "course_utils/data/digits.py": "",
    "course_utils/launch/__init__.py": "",
    "course_utils/launch/files/__init__.py": "def write():\n    pass\n",
    "course_utils/launch/files/values.py": "TEXT = 'course_utils.recipes.tune'\n",
    "course_utils/launch/files/templates/run.sh.j2": "",
    "course_utils/launch/files/beside.json": "",
    "course_utils/lessons/__init__.py": "",
    "course_utils/lessons/lesson_07/__init__.py": "",
    "course_utils/lessons/lesson_07/exercises.py": "from course_utils.lessons.lesson_07 import solutions\n",
    "course_utils/lessons/lesson_07/solutions.py": "",
    "course_utils/recipes/__init__.py": "",
    "course_utils/recipes/tune.py": "SCHEMA = 'tune.json'\n",
    "course_utils/recipes/tune.json": "{}",
    "course_utils/recipes/other.py": "",
    "course_utils/teach/__init__.py": "from course_utils.teach.lesson import start\n"
    "from course_utils.teach.figure import show\n",
    "course_utils/teach/lesson.py": "",
    "course_utils/teach/figure.py": "",
}
CASES = {
    "a module": ("import course_utils.hub", {"hub.py"}),
    "a name of a module": ("from course_utils.data.cache import keep", {"data/cache.py"}),
    "a submodule by name": ("from course_utils.data import digits", {"data/digits.py"}),
    "a name that a package hands on": ("from course_utils.data import load", {"data/text.py", "data/cache.py"}),
    "a name that a package imports later": ("from course_utils.data import draw", {"data/digits.py"}),
    "an import inside a function": ("def f():\n    import course_utils.hub", {"hub.py"}),
    "only the attributes that are used": ("from course_utils import teach\nteach.start()", {"teach/lesson.py"}),
    "a package handed on": ("from course_utils import teach\nf(teach)", {"teach/lesson.py", "teach/figure.py"}),
    "a name for a type only": ("if TYPE_CHECKING:\n    import course_utils.hub", set()),
    "a package that defines something": (
        "from course_utils.launch.files import write",
        {"launch/files/__init__.py", "launch/files/templates/run.sh.j2"},
    ),
    "a module's dotted name in a string": (
        "command = ['python', '-m', 'course_utils.recipes.tune']",
        {"recipes/tune.py", "recipes/tune.json"},
    ),
    "a package's data, and a program that it names": (
        "import course_utils.launch.files.values",
        {"launch/files/values.py", "launch/files/templates/run.sh.j2", "recipes/tune.py", "recipes/tune.json"},
    ),
    "results of a bench": ("file = root / 'bench' / 'results' / 'times.json'", {"../bench/results/times.json"}),
    "exercises": (
        "from course_utils import teach\nteach.check('07.1', f)",
        {"lessons/lesson_07/exercises.py", "lessons/lesson_07/solutions.py"},
    ),
    "other libraries, other words": ("import json, torch\nword = 'course_utils'\nfile = 'nothing.json'", set()),
}


@pytest.fixture
def project(tmp_path) -> Path:
    for name, text in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "notebooks" / "source").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_a_lesson_uses(case, project):
    code, expected = CASES[case]
    lesson = project / "notebooks" / "source" / "07_lesson.py"
    lesson.write_text(code)
    assert files_used(lesson, project) == {(project / "course_utils" / name).resolve() for name in expected}


def test_an_edited_file_is_read_again(project):
    lesson = project / "notebooks" / "source" / "07_lesson.py"
    lesson.write_text("import course_utils.hub")
    assert len(files_used(lesson, project)) == 1
    lesson.write_text("x = 1  # longer than before")
    assert files_used(lesson, project) == set()


def test_each_figure_and_helper_belongs_to_the_lessons_that_use_it():
    users: dict[str, set[str]] = {}
    for source in targets():
        for path in files_used(source):
            users.setdefault(path.relative_to(ROOT).as_posix(), set()).add(f"{source.parent.name}/{source.stem}")
    assert users["course_utils/lessons/lesson_03/figures.py"] == {"source/03_trainer", "slides/03_trainer"}
    assert users["course_utils/lessons/lesson_03/exercises.py"] == {"source/03_trainer"}
    assert users["course_utils/training/trainer_trace.py"] == {"source/03_trainer", "slides/03_trainer"}
    assert users["bench/results/pretraining.json"] == {"source/02_batches", "slides/02_batches"}
    assert {"source/15_launch", "slides/15_launch"} <= users["course_utils/launch/files/templates/torchrun.sh.j2"]
    assert "source/15_launch" in users["course_utils/recipes/finetune.py"], "the rehearsal starts it"
    assert len(users["course_utils/teach/figure.py"]) == len(targets())
