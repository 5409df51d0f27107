"""``pytest --lesson 05``: the tests that concern one lesson, found by the lesson's number and by the code that it uses.

That is every test that gets the lesson or one of its exercises as a parameter, the lesson's own folder
(tests/lessons/lesson_05), its notebook's cells, and the tests of helpers which no lesson before it uses: a module
course_utils/a/b.py is tested by tests/a/test_b*.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from course_utils.authoring.build import ROOT, targets
from course_utils.authoring.closure import files_used


def numbers() -> list[str]:
    """The numbers of the lessons that exist."""
    return sorted({source.name[:2] for source in targets()})


def check_number(number: str | None) -> None:
    """Raise ``pytest.UsageError`` for a number that no lesson has."""
    if number is not None and number not in numbers():
        raise pytest.UsageError(f"--lesson {number}: no such lesson; allowed: {', '.join(numbers())}")


def mirrors(used: set[Path], root: Path = ROOT) -> set[Path]:
    """The test files of the modules among ``used``."""
    inside = [path.relative_to(root / "course_utils") for path in used if path.is_relative_to(root / "course_utils")]
    return {test for path in inside for test in (root / "tests" / path.parent).glob(f"test_{path.stem}*.py")}


def helpers(number: str) -> set[Path]:
    """Project files that lesson ``number`` or its deck uses and no lesson or deck before it."""
    used = {source: files_used(source) for source in targets()}
    own = set().union(*(files for source, files in used.items() if source.name[:2] == number))
    return own.difference(*(files for source, files in used.items() if source.name[:2] < number))


def is_about(item: pytest.Item, number: str) -> bool:
    """Whether an item's path or one of its parameters names the lesson: ``05_name.ipynb``, its exercise ``05.1``."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = [value.name if isinstance(value, Path) else value for value in (item.path, *values)]
    in_its_folder = f"lesson_{number}" in item.path.parts
    return in_its_folder or any(isinstance(name, str) and re.match(rf"{number}[_.]\w", name) for name in names)


def keep(config: pytest.Config, items: list[pytest.Item], number: str) -> None:
    """Deselect, in place, every item that does not concern lesson ``number``."""
    tests = mirrors(helpers(number))
    chosen = [item for item in items if item.path in tests or is_about(item, number)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
