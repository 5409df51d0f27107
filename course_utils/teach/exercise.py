"""The exercise engine: ``check("01.2", answer)`` says what is right, what is wrong, on which input, and why.

A lesson's exercises live in ``lessons/lesson_NN/exercises.py`` (a checker function each, registered with
``@exercise``), their solutions in ``solutions.py`` beside it. A checker tries the learner's answer on several inputs
with ``ask`` and raises ``Wrong`` with the input, what was expected and a hint. ``check`` never raises: a headless run
of a lesson passes with its exercises unattempted.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import linecache
import re
import reprlib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from course_utils.teach.record import record

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 60
KINDS = ("predict", "write", "debug", "vary")


class Wrong(Exception):
    """An answer is wrong: ``expected`` on which ``given`` input, what it ``got``, and a ``hint`` that leads on."""

    def __init__(self, *, given: str, expected: str, got: str, hint: str):
        super().__init__(hint)
        self.given, self.expected, self.got, self.hint = given, expected, got, hint


@dataclass(frozen=True)
class Exercise:
    """One exercise: ``checker(answer)`` raises ``Wrong`` or returns; ``hints`` are shown on request, one by one."""

    id: str
    title: str
    kind: str
    hints: tuple[str, ...]
    checker: Callable[[Any], None]


_REGISTRY: dict[str, Exercise] = {}


def exercise(id: str, title: str, hints: Sequence[str], kind: str = "write") -> Callable[[Callable], Callable]:
    """Register the decorated checker as an exercise.

    Args:
        id: ``"01.2"`` is the second exercise of lesson 01.
        title: a few words.
        hints: two steps; the first says where to look, the second how to go about it, neither is the solution.
        kind: ``"predict"`` (say the number, then run), ``"write"``, ``"debug"`` (find the planted bug) or ``"vary"``.

    Raises:
        ValueError: an unknown ``kind``.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; allowed: {', '.join(map(repr, KINDS))}")

    def register(checker: Callable[[Any], None]) -> Callable:
        _REGISTRY[id] = Exercise(id, title, kind, tuple(hints), checker)
        return checker

    return register


def ask(answer: Callable, *arguments: Any, given: str, expected: str = "a result", **options: Any) -> Any:
    """What the learner's function returns for ``arguments``; an exception or a missing return is ``Wrong``.

    Args:
        given: these arguments in words, for the message.
        expected: what should come back, in words.
    """
    try:
        found = answer(*arguments, **options)
    except (Exception, SystemExit) as error:
        hint = "Your code raised an exception. Call it by hand on this input and read the traceback."
        raise Wrong(given=given, expected=expected, got=_what_was_raised(error), hint=hint) from None
    if found is None:
        hint = "Your function returned None: is there a `return` on every path?"
        raise Wrong(given=given, expected=expected, got="None", hint=hint)
    return found


def _learners_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """The part of a traceback that ran in a notebook's cells, outermost first: ``(frame, line number)`` each."""
    steps = traceback.walk_tb(error.__traceback__)
    return [(f, line) for f, line in steps if re.search(r"ipykernel_\d+|^<", f.f_code.co_filename)]


def _what_was_raised(error: BaseException) -> str:
    """The exception, and below it the learner's line that raised it."""
    raised, frames = f"{type(error).__name__}: {error}", _learners_frames(error)
    if not frames:
        return raised
    frame, number = frames[-1]
    return f"{raised}\n  line {number:<4} {linecache.getline(frame.f_code.co_filename, number).strip()}".rstrip()


def _failing_input(error: BaseException) -> str:
    """The arguments of the learner's function that raised, as they were then."""
    for frame, _ in _learners_frames(error):
        code = frame.f_code
        names = [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]
        if names:
            return ", ".join(f"{name}={_SHORT.repr(frame.f_locals.get(name))}" for name in names)
    return "one of the checker's inputs"


def find(id: str) -> Exercise:
    """The exercise called ``id``.

    Raises:
        ValueError: no such exercise; the sentence names those of the lesson.
    """
    if not re.fullmatch(r"\d\d\.\d+", id):
        raise ValueError(
            f"exercise {id!r} is not an exercise number; allowed: two digits, a dot, a number, like '01.2'"
        )
    lesson = id.split(".")[0]
    module = f"course_utils.lessons.lesson_{lesson}.exercises"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.rpartition(".")[0]):  # the lesson is there, a package it imports is not
            raise
        raise ValueError(f"exercise {id!r} belongs to lesson {lesson}, which has no exercises") from error
    if id not in _REGISTRY:
        known = ", ".join(sorted(name for name in _REGISTRY if name.startswith(f"{lesson}.")))
        raise ValueError(f"exercise {id!r} does not exist; allowed in lesson {lesson}: {known}")
    return _REGISTRY[id]


def attempt(id: str, answer: Any) -> Wrong | None:
    """Run the checker of exercise ``id`` on ``answer``.

    Returns:
        ``None`` when the answer is right, else the ``Wrong`` that says why; also for an answer that raises, or that is
        of a kind that cannot be compared.

    Raises:
        NotImplementedError: the answer is still the empty stub.
    """
    checker = find(id).checker
    if is_stub(answer):
        raise NotImplementedError(id)
    try:
        checker(answer)
    except Wrong as wrong:
        return wrong
    except (Exception, SystemExit) as error:  # whatever the learner returned: report it, do not stop the notebook
        hint = (
            "Your code raised an exception, or what it returned could not be compared. Call it by hand on a small "
            "input and look at what comes back."
        )
        return Wrong(given=_failing_input(error), expected="a result", got=_what_was_raised(error), hint=hint)
    return None


def check(id: str, answer: Any) -> None:
    """Print whether ``answer`` solves exercise ``id``; never raises for a missing or wrong answer."""
    task = find(id)
    try:
        wrong = attempt(id, answer)
    except NotImplementedError:
        if failed := _error_of_the_previous_cell():
            print(f"○ {id} {task.title}: the cell above did not run ({failed}), so your answer is not there yet.")
            return
        print(f"○ {id} {task.title}: not attempted yet. Replace the `...` above and run both cells again.")
        return
    if wrong is None:
        print(f"✓ {id} {task.title}: correct.", *filter(None, [record(id)]))
        return
    print(f"✗ {id} {task.title}: not yet.\n  on       {wrong.given}\n  expected {wrong.expected}")
    print(f"  got      {wrong.got}\n  hint     {wrong.hint}")


def _error_of_the_previous_cell() -> str:
    """The error that ended the cell before this one; empty where it ran, or outside a notebook.

    An IndentationError, say, leaves the stub of an earlier run in place: "not attempted" would mislead.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    result = getattr(shell, "last_execution_result", None)
    error = result and (result.error_before_exec or result.error_in_exec)
    return f"{type(error).__name__}: {error}" if error else ""


def show_hint(id: str, step: int = 1) -> None:
    """Print hint ``step`` of exercise ``id``: the first says where to look, the next says more.

    Raises:
        ValueError: no such step.
    """
    hints = find(id).hints
    if not 1 <= step <= len(hints):
        raise ValueError(f"step={step} is out of range; allowed: a whole number from 1 to {len(hints)}")
    more = f'\nMore: teach.show_hint("{id}", {step + 1})' if step < len(hints) else ""
    print(f"Hint for {id}: {hints[step - 1]}{more}")


def show_solution(id: str) -> None:
    """Display the solution of exercise ``id``."""
    from course_utils.teach.lesson import show_source

    found = solution(id)
    if callable(found):
        show_source(found)
    else:
        print(f"Solution of {id}: {found!r}")


def solution(id: str) -> Any:
    """What solves exercise ``id``: ``solution_2`` of ``lessons/lesson_01/solutions.py`` for ``"01.2"``."""
    find(id)
    lesson, number = id.split(".")
    module = importlib.import_module(f"course_utils.lessons.lesson_{lesson}.solutions")
    return getattr(module, f"solution_{number}")


def is_stub(answer: Any) -> bool:
    """True for ``...`` and ``None``, for a function that only returns one of them, and for a class of such methods."""
    if inspect.isclass(answer):
        methods = [value for value in vars(answer).values() if inspect.isfunction(value)]
        return all(map(is_stub, methods))
    if not inspect.isfunction(answer):
        return answer is None or answer is Ellipsis
    steps = [i for i in dis.get_instructions(answer) if i.opname not in ("RESUME", "NOP")]
    returned = [step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")]
    return len(steps) == 1 + (steps[-1].opname == "RETURN_VALUE") and returned in ([None], [Ellipsis])
