"""Lessons are executed through three doors, which count them; any other test that starts a notebook makes its own.

Read off the tests' code: a test that starts notebooks and reaches a lesson's file, itself or through names and fixtures
of its module, is a door.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

from course_utils.authoring.build import ROOT
from course_utils.authoring.run_course import lessons

# nbval, the fourth file, is a plugin: tests/lesson_runs.py counts for it.
DOORS = {"tests/lessons/test_short_runs.py", "tests/lessons/test_starts.py", "tests/browser/test_jupyterlab.py"}
DOORS |= {"tests/lessons/test_odd_parameters.py"}  # at night
STARTS = re.compile(
    r"papermill|nbclient|nbconvert\.preprocessors|tests\.headless\.papermill"
    r"|course_utils\.authoring\.(build\.(execute|build|main)|run_course\.(run|main))"
)
COMMANDS = re.compile(r"papermill|nbconvert|nbclient|--nbval|course_utils\.authoring\.(build|run_course)")
LAB = "lab"  # the fixture with a JupyterLab server
REACHES = re.compile(r"course_utils\.authoring\.(run_course\.lessons|build\.targets)")
STEMS = {path.stem for path in lessons()}


def doors(code: str) -> set[str]:
    """Names of the tests in ``code`` that start notebooks and reach a lesson."""
    tree = ast.parse(code)
    imported = _imported(tree)
    parts = {name: node for node in tree.body for name in _defines(node)}
    starting = _spread(parts, {name for name, node in parts.items() if _starts(node, imported)})
    reaching = _spread(parts, {name for name, node in parts.items() if _reaches(node, imported)})
    return {name for name in starting & reaching if name.startswith("test_")}


def _imported(tree: ast.AST) -> dict[str, str]:
    """Name in the file -> what it is."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _mentions(node: ast.AST) -> set[str]:
    """Names that a part of the file uses; a parameter of a function may be a fixture."""
    names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return names | {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}


def _spread(parts: dict[str, ast.stmt], found: set[str]) -> set[str]:
    """``found`` and every part that uses one of them, directly or not."""
    while more := {name for name, node in parts.items() if _mentions(node) & found} - found:
        found = found | more
    return found


def _dotted(node: ast.AST, imported: dict[str, str]) -> set[str]:
    """What the names and attributes in ``node`` stand for."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(inner).partition(".")
            found |= {imported[first] + dot + rest} if first in imported else set()
    return found


def _texts(node: ast.AST) -> list[str]:
    return [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]


def _starts(node: ast.AST, imported: dict[str, str]) -> bool:
    by_name = any(STARTS.match(name) for name in _dotted(node, imported)) or LAB in _mentions(node)
    by_command = any(COMMANDS.search(text) for text in _texts(node)) and "--collect-only" not in _texts(node)
    return by_name or by_command


def _reaches(node: ast.AST, imported: dict[str, str]) -> bool:
    by_name = any(REACHES.fullmatch(name) for name in _dotted(node, imported))
    return by_name or any(stem in text for text in _texts(node) for stem in STEMS)


def test_lessons_are_executed_through_the_doors_only():
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    found = {str(path.relative_to(ROOT)): doors(path.read_text(encoding="utf-8")) for path in files}
    found.pop(str(Path(__file__).relative_to(ROOT)))  # names both in its planted faults
    assert {path for path, tests in found.items() if tests} == DOORS


@pytest.mark.parametrize(
    "code",
    [
        "import papermill\ndef test_x():\n    papermill.execute_notebook(lessons()[0], 'out.ipynb')",
        "from nbclient import NotebookClient\nALL = lessons()\ndef test_x():\n    NotebookClient(ALL[0]).execute()",
        "from nbconvert.preprocessors import ExecutePreprocessor as P\ndef test_x():\n    P().preprocess(lessons()[0])",
        "from tests.headless import papermill as p\n@mark(lessons())\ndef test_x(lesson):\n    p(lesson)",
        "from course_utils.authoring import build\ndef f(x):\n    build.execute(x)\ndef test_x():\n    f(lessons()[0])",
        "from course_utils.authoring import run_course as r\ndef test_x():\n    r.run(r.lessons(), 'folder')",
        "from course_utils.authoring import build as b\nALL = b.targets()\ndef test_x():\n    b.build(*ALL.popitem())",
        "def lesson():\n    return lessons()[0]\ndef test_x(lesson):\n    run(['python', '-m', 'papermill', lesson])",
        "def test_x(lab):\n    lab.open(lessons()[0])",
        f"def test_x():\n    run('pytest --nbval notebooks/{min(STEMS)}.ipynb')",
    ],
)
def test_a_planted_door_is_found(code):
    assert doors("from course_utils.authoring.run_course import lessons\n" + code) == {"test_x"}


def test_throwaway_notebooks_and_lessons_that_are_only_read_are_no_doors():
    code = """
    from course_utils.authoring import build
    PAIRS = build.targets()

    def test_agrees():
        assert not build.disagreements(*PAIRS.popitem())

    def built(folder):
        return build.build(folder / "01_tiny.py", folder / "01_tiny.ipynb")

    def test_builds(built):
        assert built == 4
    """
    assert doors(textwrap.dedent(code)) == set()
