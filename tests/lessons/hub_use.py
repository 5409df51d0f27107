"""What a lesson fetches from the hub when it is told ``source="hub"``: read off its source, never listed by lesson.

Every loader of the course takes the lesson's ``source`` on. A call that does not (``load_causal_lm()``, or ``"local"``
written out) stays local whatever the lesson was told. A loader is found by its import and its call; one that is handed
on as a value is not followed, and the server's log in test_short_runs.py would say so.
"""

from __future__ import annotations

import ast
import inspect
from importlib import import_module

from course_utils.hub import HUB_NAMES

PLACES = ("course_utils.data", "course_utils.models")
FETCHES = {
    "load_classification": HUB_NAMES["classification"],
    "load_fresh_test": HUB_NAMES["classification"],
    "load_instructions": HUB_NAMES["instructions"],
    "load_language_modelling": HUB_NAMES["instructions"],
    "load_tokenizer": HUB_NAMES["encoder"],
    "load_classifier": HUB_NAMES["encoder"],
    "load_masked_lm": HUB_NAMES["encoder"],
    "load_causal_lm": HUB_NAMES["causal_lm"],
    "load_chat_tokenizer": HUB_NAMES["causal_lm"],
}
LOCAL = {"load_digit_scenes", "load_point_clouds"}  # have no ``source``


def hub_loaders(code: str) -> dict[str, str]:
    """The loaders that ``code`` calls with a source of its choice -> the place; one that nobody knows is among them."""
    tree = ast.parse(code)
    origin = _imported_loaders(tree)
    found = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        module, name = origin.get(ast.unparse(call.func), ("", ""))
        if not name or name in LOCAL:
            continue
        if name not in FETCHES or _is_told(call, getattr(import_module(module), name)):
            found[name] = f"line {call.lineno} calls {module}.{name}"
    return found


def _imported_loaders(tree: ast.AST) -> dict[str, tuple[str, str]]:
    """What a call of a loader looks like in this code -> its module and name: ``load_x``, ``models.load_x``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                written = alias.asname or alias.name
                if f"{node.module}.{alias.name}" in PLACES:  # from course_utils import models
                    found |= _loaders_of(tree, written, f"{node.module}.{alias.name}")
                elif (node.module or "").startswith(PLACES) and alias.name.startswith("load_"):
                    found[written] = (node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in PLACES:
                    found |= _loaders_of(tree, alias.asname or alias.name, alias.name)
    return found


def _loaders_of(tree: ast.AST, written: str, module: str) -> dict[str, tuple[str, str]]:
    """The attributes of a module, known as ``written``, that are loaders."""
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("load_")]
    return {ast.unparse(n): (module, n.attr) for n in attributes if ast.unparse(n.value) == written}


def _is_told(call: ast.Call, loader) -> bool:
    """Whether this call of ``loader`` gets a source that may be ``"hub"``."""
    place = list(inspect.signature(loader).parameters).index("source")
    given = [word.value for word in call.keywords if word.arg == "source"] + call.args[place : place + 1]
    return any(not (isinstance(value, ast.Constant) and value.value == "local") for value in given)


def fetched(code: str) -> set[str]:
    """Names on the hub of all that a lesson with this source asks for.

    Raises:
        ValueError: it calls a loader of which nobody wrote down what it fetches; one sentence.
    """
    used = hub_loaders(code)
    for name in used.keys() - FETCHES.keys():
        raise ValueError(
            f"{used[name]}, of which nobody knows what it fetches from the hub: "
            "add it to FETCHES or LOCAL in tests/lessons/hub_use.py"
        )
    return {FETCHES[name] for name in used}


def runs_from_the_hub(code: str, earlier: list[str]) -> bool:
    """Whether a lesson takes anything from the hub through a loader that no lesson before it uses."""
    return bool(hub_loaders(code).keys() - set().union(*map(hub_loaders, earlier)))
