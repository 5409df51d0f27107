"""Which project files a lesson or a deck uses: found by reading its code, never by running it.

A file uses what it imports (also inside a function), modules and files that it names in a string, and the data folders
of its package. An import of a name from a package leads to the module that defines the name, so that a new helper in a
package touches no lesson that does not use it. ``build`` seals a notebook with these files; a test run for one lesson
finds the lesson's helpers by them.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "course_utils"
_DOTTED = re.compile(rf"{PACKAGE}(\.\w+)+")


def files_used(source: Path, root: Path = ROOT) -> set[Path]:
    """Every file of the project that the code of ``source`` uses, directly or through others; not ``source`` itself.

    Args:
        source: a Python file (py:percent for a lesson or a deck) of the project in ``root``.
        root: folder that holds ``course_utils`` and ``bench/results``.
    """
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        for path in _direct(waiting.pop(), root) - found:
            found.add(path)
            if path.suffix == ".py":
                waiting.append(path)
    return found - {source}


def _direct(path: Path, root: Path) -> set[Path]:
    return _read(path, root, path.stat().st_mtime_ns)


@cache
def _read(path: Path, root: Path, changed: int) -> frozenset[Path]:
    """What the code of one file uses itself. ``changed`` makes an edited file be read again."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {inner for node in ast.walk(tree) if _is_type_checking(node) for inner in ast.walk(node)}
    used: set[Path] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                used |= _module(alias.name, root)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                used |= _imported(node.module, alias, tree, root)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used |= _named_in(node.value, path, root)
    return frozenset(used | _exercises(path, tree, root) | _package_data(path, root))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _module(dotted: str, root: Path) -> set[Path]:
    """The file of a module, or all that a package's ``__init__`` offers; empty outside the project."""
    if not (dotted == PACKAGE or dotted.startswith(f"{PACKAGE}.")):
        return set()
    place = root.joinpath(*dotted.split("."))
    if place.with_suffix(".py").is_file():
        return {place.with_suffix(".py")}
    init = place / "__init__.py"
    if not init.is_file():
        return set()
    tree = ast.parse(init.read_text(encoding="utf-8"))
    return set().union(*(_offered(dotted, name, root) for name in _exports(tree)), _own(init, tree))


def _imported(module: str, alias: ast.alias, tree: ast.AST, root: Path) -> set[Path]:
    """``from module import alias``; of a package bound to a name, only the attributes that ``tree`` uses."""
    dotted = f"{module}.{alias.name}"
    if not module.startswith(PACKAGE) or not (root.joinpath(*dotted.split(".")) / "__init__.py").is_file():
        return _offered(module, alias.name, root)
    bound = alias.asname or alias.name
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == bound]
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    attributes = [node for node in attributes if node.value.id == bound]
    if len(names) > len(attributes):  # the package itself is handed on: anything may be used
        return _module(dotted, root)
    return set().union(*(_offered(dotted, node.attr, root) for node in attributes))


def _offered(package: str, name: str, root: Path) -> set[Path]:
    """The file that defines ``name`` of a module or package: a submodule, or wherever ``__init__`` has it from."""
    if not (package == PACKAGE or package.startswith(f"{PACKAGE}.")):
        return set()
    if found := _module(f"{package}.{name}", root):
        return found
    init = root.joinpath(*package.split(".")) / "__init__.py"
    if not init.is_file():
        return _module(package, root)
    tree = ast.parse(init.read_text(encoding="utf-8"))
    origin = _exports(tree).get(name)
    if origin is None:
        return {init} if name in _defined(tree) else set()
    module = origin if "." in origin else f"{package}.{origin}"
    return _offered(module, name, root)


def _exports(tree: ast.AST) -> dict[str, str]:
    """Name -> module it comes from, by ``from ... import`` or by a table of names that are imported later (lazy)."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            found |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found |= {k.value: v.value for k, v in pairs if isinstance(k, ast.Constant) and isinstance(v, ast.Constant)}
    return found


def _defined(tree: ast.AST) -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def _own(init: Path, tree: ast.AST) -> set[Path]:
    """An ``__init__`` counts where it defines something; one that only hands names on changes nothing by itself."""
    return {init} if _defined(tree) else set()


def _named_in(text: str, path: Path, root: Path) -> set[Path]:
    """A module's dotted name (``"course_utils.recipes.finetune"``), or a file beside ``path``, above it, of a bench."""
    if _DOTTED.fullmatch(text.partition(":")[0]):
        return _module(text.partition(":")[0], root)
    if not re.fullmatch(r"[\w./-]+\.\w+", text) or ".." in text:
        return set()
    places = [path.parent / text, path.parent.parent / text, root / "bench" / "results" / text]
    inside = (root / PACKAGE, root / "bench" / "results")
    return {place for place in places if place.is_file() and any(place.is_relative_to(folder) for folder in inside)}


def _exercises(path: Path, tree: ast.AST, root: Path) -> set[Path]:
    """A lesson that calls ``teach.check`` uses its exercises, which the engine finds by the lesson's number."""
    number = re.match(r"(\d\d)_", path.name)
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    checks = any(isinstance(f, ast.Attribute) and ast.unparse(f) == "teach.check" for f in calls)
    if not (number and checks):
        return set()
    return _module(f"{PACKAGE}.lessons.lesson_{number[1]}.exercises", root)


def _package_data(path: Path, root: Path) -> set[Path]:
    """Files in the folders of the module's package that are no packages: templates, a folder for PYTHONPATH.

    A data file right beside modules belongs to the module that names it.
    """
    if not (path.parent / "__init__.py").is_file() or not path.is_relative_to(root / PACKAGE):
        return set()
    folders = [inner for inner in path.parent.iterdir() if inner.is_dir() and not (inner / "__init__.py").is_file()]
    files = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    return {file for file in files if "__pycache__" not in file.parts}
