"""Two programs that are to be equal but for marked lines: what differs between them without a mark."""

from __future__ import annotations

import ast
import difflib

MARK = "# NEW"


def differences(old: str, new: str) -> tuple[list[str], list[str]]:
    """``(lines of old that new lacks, lines that only new has)``; docstrings and empty lines do not count."""
    old_lines, new_lines = _lines(old), _lines(new)
    steps = difflib.SequenceMatcher(None, old_lines, new_lines, autojunk=False).get_opcodes()
    gone = [line for tag, a, b, _, _ in steps if tag != "equal" for line in old_lines[a:b]]
    added = [line for tag, _, _, a, b in steps if tag != "equal" for line in new_lines[a:b]]
    return gone, added


def unmarked(old: str, new: str) -> list[str]:
    """What breaks the rule that ``new`` equals ``old`` plus marked lines, a sentence each.

    A line of ``old`` may be gone only where a marked line stands instead, at the same place.
    """
    found = [f"not marked: {line.strip()}" for line in differences(old, new)[1] if MARK not in line]
    old_lines, new_lines = _lines(old), _lines(new)
    for tag, a, b, _, _ in difflib.SequenceMatcher(None, old_lines, new_lines, autojunk=False).get_opcodes():
        if tag == "delete":
            found += [f"gone without a marked line instead: {line.strip()}" for line in old_lines[a:b]]
    marked_in_vain = [line for line in new_lines if MARK in line and line in old_lines]
    return found + [f"marked, but not new: {line.strip()}" for line in marked_in_vain]


def _lines(source: str) -> list[str]:
    tree, lines = ast.parse(source), source.splitlines()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            for number in range(body[0].lineno - 1, body[0].end_lineno):
                lines[number] = ""
    return [line for line in lines if line.strip()]
