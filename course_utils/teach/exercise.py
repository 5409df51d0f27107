"""The exercise engine: ``check("01.2", my_function)`` says what is right, wrong and why.

A lesson's exercises live in ``lessons/lesson_NN/exercises.py`` (a checker function each, registered with
``@exercise``), their solutions in ``solutions.py`` beside it. A checker calls the learner's function on small inputs
and raises ``Wrong`` with the input, what was expected and a hint. ``check`` never raises: a headless run of a lesson
passes with its exercises unattempted.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Wrong(Exception):
    """An answer is wrong: ``expected`` on which ``given`` input, and a ``hint`` that leads on."""

    def __init__(self, *, given: str, expected: str, got: str, hint: str):
        super().__init__(hint)
        self.given, self.expected, self.got, self.hint = given, expected, got, hint


@dataclass(frozen=True)
class Exercise:
    """One exercise: ``checker(answer)`` raises ``Wrong`` or returns; ``hint`` is shown on request."""

    id: str
    title: str
    hint: str
    checker: Callable[[Callable], None]


_REGISTRY: dict[str, Exercise] = {}


def exercise(id: str, title: str, hint: str) -> Callable[[Callable], Callable]:
    """Register the decorated checker as exercise ``id`` (``"01.2"``: second exercise of lesson 01)."""

    def register(checker: Callable[[Callable], None]) -> Callable:
        _REGISTRY[id] = Exercise(id, title, hint, checker)
        return checker

    return register


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
        known = ", ".join(sorted(name for name in _REGISTRY if name.startswith(lesson)))
        raise ValueError(f"exercise {id!r} does not exist; allowed in lesson {lesson}: {known}")
    return _REGISTRY[id]


def attempt(id: str, answer: Callable) -> Wrong | None:
    """Run the checker of exercise ``id`` on ``answer``.

    Returns:
        ``None`` when the answer is right, else the ``Wrong`` that says why. An answer that raises is wrong too.

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
    except Exception as error:  # the learner's own bug: report it, do not stop the notebook
        return Wrong(
            given="the checker's first inputs",
            expected="a result",
            got=f"{type(error).__name__}: {error}",
            hint="Your code raised an exception. Call it by hand on a small input and read the traceback.",
        )
    return None


def check(id: str, answer: Callable) -> None:
    """Print whether ``answer`` solves exercise ``id``; never raises for a missing or wrong answer."""
    task = find(id)
    try:
        wrong = attempt(id, answer)
    except NotImplementedError:
        print(f"○ {id} {task.title}: not attempted yet. Replace the `...` above and run both cells again.")
        return
    if wrong is None:
        print(f"✓ {id} {task.title}: correct.")
        return
    print(f"✗ {id} {task.title}: not yet.\n  on       {wrong.given}\n  expected {wrong.expected}")
    print(f"  got      {wrong.got}\n  hint     {wrong.hint}")


def show_hint(id: str) -> None:
    """Print the hint of exercise ``id``."""
    print(f"Hint for {id}: {find(id).hint}")


def show_solution(id: str) -> None:
    """Display the solution of exercise ``id``."""
    from course_utils.teach.lesson import show_source

    show_source(solution(id))


def solution(id: str) -> Callable:
    """The function that solves exercise ``id``: ``solution_2`` of ``lessons/lesson_01/solutions.py`` for ``"01.2"``."""
    find(id)
    lesson, number = id.split(".")
    module = importlib.import_module(f"course_utils.lessons.lesson_{lesson}.solutions")
    return getattr(module, f"solution_{number}")


def is_stub(answer: Any) -> bool:
    """True for a function whose body is nothing but a docstring, ``...`` or ``pass``, or a class of such methods."""
    if inspect.isclass(answer):
        methods = [value for value in vars(answer).values() if inspect.isfunction(value)]
        return all(map(is_stub, methods))
    if not inspect.isfunction(answer):
        return answer is None or answer is Ellipsis
    # Such a body compiles to "return None" and nothing else.
    steps = [(i.opname, i.argval) for i in dis.get_instructions(answer) if i.opname not in ("RESUME", "NOP")]
    return steps in ([("LOAD_CONST", None), ("RETURN_VALUE", None)], [("RETURN_CONST", None)])
