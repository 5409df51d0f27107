"""Imports of a Python file that the installed libraries no longer have, told without importing what is named."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from importlib import import_module
from pathlib import Path

from course_utils.launch.explain.reading import Reading
from course_utils.launch.spec import silent

LISTS_ITSELF = ("transformers", "trl", "accelerate")  # dir() of these lists all names, and loads none
CAUGHT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


def explain(reading: Reading, tree: ast.Module) -> dict[str, str]:
    """Imported name -> module; names that are gone are found, unless the file is ready for that."""
    found: dict[str, str] = {}
    ready = {id(node) for part in ast.walk(tree) if _expects_gaps(part) for node in ast.walk(part)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ImportFrom) and node.module) or node.level:
            continue
        for alias in node.names:
            found[alias.asname or alias.name] = node.module
            cure = silent.IMPORTS.get((node.module, alias.name)) or _cure(node.module, alias.name)
            if cure and id(node) not in ready:
                reading.find("import-gone", name=f"{node.module}.{alias.name}", cure=cure)
    return found


def _expects_gaps(node: ast.AST) -> bool:
    """Whether imports below ``node`` may fail, or depend on a condition such as a version."""
    if isinstance(node, ast.Try):
        caught = [handler.type for handler in node.handlers]
        names = {name.id for kind in caught if kind for name in ast.walk(kind) if isinstance(name, ast.Name)}
        return None in caught or bool(names & CAUGHT)
    return isinstance(node, ast.If)


def _cure(module: str, name: str) -> str | None:
    """What to do about a name that is not in the installed module; None: it is there, or nobody can tell."""
    if module not in LISTS_ITSELF or name == "*" or name in _listed(module):
        return None
    if module == "trl" and (place := _experimental().get(name)):
        return f"import it from `{place}`"
    return f"look for its successor in {module}'s migration notes"


@cache
def _listed(module: str) -> frozenset[str]:
    top = import_module(module)
    below = {path.stem for path in Path(str(top.__file__)).parent.iterdir()}  # submodules
    return frozenset({*dir(top), *below})


@cache
def _experimental() -> dict[str, str]:
    """Name -> the module of trl.experimental that exports it."""
    spec = importlib.util.find_spec("trl")
    folder = Path(str(spec.origin)).parent / "experimental" if spec else Path()
    found = {}
    for path in sorted(folder.glob("*/__init__.py")):
        for name in re.findall(r"\b[A-Z]\w+\b", path.read_text(encoding="utf-8")):
            found.setdefault(name, f"trl.experimental.{path.parent.name}")
    return found
