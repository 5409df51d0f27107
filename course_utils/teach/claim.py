"""``claim``: a sentence that is printed with a tick when it is true, and stops the notebook when it is not."""

from __future__ import annotations

import ast
import inspect
from types import FrameType
from typing import Any


class ClaimFailed(AssertionError):
    """A claim is false; the message holds the sentence, the condition and the values that were measured."""


def claim(sentence: str, holds: Any, when: Any = True) -> None:
    """Print ``sentence`` with a tick if ``holds`` is true, else raise with the values behind it.

        teach.claim("AdamW equals torch's within 1e-12 after 200 steps", difference <= 1e-12)
        teach.claim("our encoder beats word weights", f1 > baseline, when=max_steps >= 200 and source == "local")

    Args:
        sentence: what the reader is to believe; it names the bound that ``holds`` tests.
        holds: the condition, written out in the call, so that its values can be shown where it is false.
        when: on which runs the claim is judged. On the others one line says that it was not.

    Raises:
        ClaimFailed: ``holds`` is false and ``when`` is true.
        ValueError: ``sentence`` is empty.
    """
    if not str(sentence).strip():
        raise ValueError("sentence='' is empty; allowed: the claim in words")
    frame = inspect.currentframe().f_back
    if not when:
        condition = _argument(frame, 2, "when")
        print(f"– not judged in this run{f' ({condition} is false)' if condition else ''}: {sentence}")
    elif holds:
        print(f"✓ {sentence}")
    else:
        raise ClaimFailed(f"not true: {sentence}{_measured(frame)}")


def _measured(frame: FrameType) -> str:
    """The condition as it stands in the call and what is in it: ``; f1 > base with f1=0.4, base=0.5``."""
    condition = _argument(frame, 1, "holds")
    if not condition:
        return ""
    values = {text: _value(text, frame) for text in _parts(ast.parse(condition, mode="eval").body)}
    shown = ", ".join(f"{text}={value}" for text, value in values.items() if value is not None)
    return f"; {condition} with {shown}" if shown else f"; {condition}"


def _parts(node: ast.AST) -> list[str]:
    """Names, attributes and subscripts in an expression, each as a whole: of ``history["loss"]`` not ``history``."""
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
        return [ast.unparse(node)]
    return [text for child in ast.iter_child_nodes(node) for text in _parts(child)]


def _value(expression: str, frame: FrameType) -> str | None:
    """A number, a text or a list of the caller, in few digits; None for what is no measured value."""
    try:
        found = eval(expression, frame.f_globals, frame.f_locals)  # the caller's own expression, evaluated once more
        found = found.item() if hasattr(found, "item") and getattr(found, "ndim", 0) == 0 else found
    except Exception:
        return None
    if isinstance(found, float):
        return f"{found:.6g}"
    return repr(found)[:80] if isinstance(found, bool | int | str | list | tuple | dict | set) else None


def _argument(frame: FrameType, position: int, name: str) -> str:
    """The text of an argument in the call that ``frame`` is at; empty where the source is not to be had."""
    from executing import Source

    node = Source.executing(frame).node
    if not isinstance(node, ast.Call):
        return ""
    given = {keyword.arg: keyword.value for keyword in node.keywords} | dict(enumerate(node.args))
    found = given.get(name, given.get(position))
    return ast.unparse(found) if found is not None else ""
