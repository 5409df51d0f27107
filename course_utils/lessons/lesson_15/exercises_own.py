"""Exercise 7 of lesson 15: a file of the learner's own, explained until nothing is left to say about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from course_utils.teach.exercise import Wrong, ask, exercise

FEWEST = 3  # facts that must be claimed; two are a guess


@exercise(
    "15.7",
    "your own file, and what you believe it says",
    hints=(
        "Run `python -m course_utils.launch explain FILE` first and read the findings: each names its cure.",
        "The table's names, or common ones such as micro_batch, accumulation, precision, nodes and world_size, may be "
        "claimed. Where the table surprises you, mend the file or the claim.",
    ),
    kind="debug",
)
def check_own_file(answer: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
    """``answer()`` returns a path, or a list of paths of one run, and what was asked for, ``{setting: value}``."""
    from course_utils.launch import SpecError
    from course_utils.launch.explain.explain import explain

    given, expected = "a file of yours", "(path, {setting: value, ...})"
    found = ask(answer, given=given, expected=expected)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        hint = "Return two things: where the file lies, and a dict of what you asked for."
        raise Wrong(given=given, expected=expected, got=repr(found)[:200], hint=hint)
    paths = list(found[0]) if isinstance(found[0], list | tuple) else [found[0]]
    if not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
        hint = "The first of the two is a path, or a list of paths."
        raise Wrong(given=given, expected="a path", got=repr(found[0])[:200], hint=hint)
    if len(found[1]) < FEWEST:
        hint = f"Say at least {FEWEST} things that the run should do, before you look at the table."
        raise Wrong(given=given, expected=f"{FEWEST} settings", got=repr(found[1])[:200], hint=hint)
    try:
        explained = explain(paths, {str(name): str(value) for name, value in found[1].items()})
    except SpecError as error:
        hint = "The file cannot be read as the launch file of a run."
        raise Wrong(given=given, expected="a file that is understood", got=str(error)[:300], hint=hint) from None
    if explained.findings:
        first = explained.findings[0]
        hint = f"{first.sentence[:1].upper()}{first.sentence[1:]}."
        got = f"{len(explained.findings)} findings; {first.kind}, in {first.file}"
        raise Wrong(given=", ".join(explained.kinds), expected="no findings", got=got, hint=hint)
