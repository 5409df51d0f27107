"""Imports in course_utils go down only, and in a circle only where a type is named."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))
GROUND = ("errors", "gpus", "hub", "lazy", "progress")
STAIRS = ("ground", "data", "models", "training", "parallel")
BELOW_LAUNCH = set(STAIRS)
# A room may import itself and the rooms named here. Nothing may import lessons or authoring.
ALLOWED = {room: set(STAIRS[:floor]) for floor, room in enumerate(STAIRS)} | {
    "recipes": BELOW_LAUNCH,
    "launch.spec": BELOW_LAUNCH,
    "launch.planner": BELOW_LAUNCH | {"launch.spec"},
    "launch.files": BELOW_LAUNCH | {"launch.spec"},
    "launch.check": BELOW_LAUNCH | {"launch.spec", "launch.files"},
    "launch": BELOW_LAUNCH | {"launch.spec", "launch.planner", "launch.files", "launch.check"},
    "teach": BELOW_LAUNCH,
    "lessons": {"launch.spec", "launch.planner", "launch.files", "launch.check", "launch", "recipes", "teach"}
    | BELOW_LAUNCH,
    "authoring": BELOW_LAUNCH | {"teach"},
}


def room_of(dotted: str) -> str | None:
    """The room of a module's dotted name: ``course_utils.launch.spec.rules`` is in ``launch.spec``."""
    parts = dotted.split(".")
    if parts[0] != "course_utils" or len(parts) == 1:
        return None
    if parts[1] in GROUND:
        return "ground"
    return ".".join(parts[1:3]) if ".".join(parts[1:3]) in ALLOWED else parts[1]


def imports(source: str, module: str, types: bool = True) -> set[str]:
    """Modules of course_utils that a module imports, by dotted name; ``types``: also what only names a type.

    Args:
        module: its own dotted name, for relative imports.
    """
    tree, found = ast.parse(source), set()
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = set() if types else {inner for node in guarded for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = ".".join([*parts[: len(parts) - node.level], *filter(None, [node.module])]) if node.level else ""
            base = base or node.module
            found |= {f"{base}.{alias.name}" if exists(f"{base}.{alias.name}") else base for alias in node.names}
    return {name for name in found if name.split(".")[0] == "course_utils"}


def exists(dotted: str) -> bool:
    place = ROOT.joinpath(*dotted.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def upward(source: str, module: str) -> list[str]:
    """Imports of ``module`` that lead to a room it may not use."""
    room = room_of(module)
    return sorted(
        name for name in imports(source, module) if room_of(name) not in ALLOWED.get(room, set()) | {room, None}
    )


def circles(uses: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (strongly connected, Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(uses.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in uses.get(node, ()):
                found.append(sorted(group))

    for node in sorted(uses):
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert upward(path.read_text(encoding="utf-8"), dotted_name(path)) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_stands_in_a_known_room(path):
    assert room_of(dotted_name(path)) in {*ALLOWED, None}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("training.loop", "from course_utils import teach"),
        ("training.loop", "import course_utils.teach.lesson"),
        ("training.loop", "from ..teach import start"),
        ("training.loop", "def f():\n    from course_utils.teach.figure import show"),
        ("teach.exercise", "from course_utils.lessons.lesson_01 import exercises"),
        ("lessons.lesson_01.figures", "from course_utils.authoring import build"),
        ("data.text", "from course_utils.models import load_tokenizer"),
        ("models.shapes", "from course_utils.launch.spec import Spec"),
        ("launch.spec.rules", "from course_utils.launch.planner.plan import plan"),
        ("launch.planner.plan", "from course_utils.launch.files.write import write"),
        ("launch.files.write", "from course_utils.launch.check.rows import Row"),
        ("errors", "from course_utils.data import cache"),
    ],
)
def test_a_planted_arrow_upwards_is_noticed(module, source):
    assert upward(source, f"course_utils.{module}")


def test_only_the_type_only_circle_is_left():
    sources = {dotted_name(path): path.read_text(encoding="utf-8") for path in MODULES}
    assert circles({name: imports(text, name, types=False) for name, text in sources.items()}) == []
    with_types = circles({name: imports(text, name) for name, text in sources.items()})
    assert with_types == [["course_utils.launch.spec.rules", "course_utils.launch.spec.spec"]]


def test_a_planted_circle_is_noticed():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"a"}}) == [["a"]] and circles({"a": {"b"}, "b": set()}) == []
