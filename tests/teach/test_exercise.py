"""The exercise engine: what counts as unattempted, right, wrong, and what it prints."""

import sys
import types

import pytest

from course_utils.teach import exercise as engine


def solution_1(numbers):
    """The mean, of an empty list too."""
    return sum(numbers) / max(len(numbers), 1)


@pytest.fixture(autouse=True)
def lesson_99(monkeypatch):
    """A lesson 99 with one exercise: the mean of a list."""
    monkeypatch.setattr(engine, "_REGISTRY", {})
    exercises = types.ModuleType("course_utils.lessons.lesson_99.exercises")
    solutions = types.ModuleType("course_utils.lessons.lesson_99.solutions")
    monkeypatch.setitem(sys.modules, exercises.__name__, exercises)
    monkeypatch.setitem(sys.modules, solutions.__name__, solutions)
    solutions.solution_1 = solution_1

    @engine.exercise("99.1", "The mean", hints=("Sum, then divide.", "An empty list has length 0."))
    def check_mean(answer):
        for numbers, expected in (([1, 3], 2), ([], 0)):
            got = answer(numbers)
            if got != expected:
                raise engine.Wrong(
                    given=f"{numbers}", expected=f"{expected}", got=f"{got}", hint="Divide by the length."
                )


def stub(numbers): ...


def stub_with_docstring(numbers: list[float]) -> float:
    """The mean of ``numbers``."""


def stub_with_pass(numbers):
    pass


def stub_with_both(numbers):
    """The mean."""
    ...


def stub_that_returns_dots(numbers):
    # your lines here
    return ...


class StubClass:
    """A class whose methods are to be written."""

    limit = 3

    def __init__(self, numbers): ...

    def step(self):
        """One step."""


class HalfDone(StubClass):
    def step(self):
        return 1


@pytest.mark.parametrize(
    "answer",
    [
        stub,
        stub_with_docstring,
        stub_with_pass,
        stub_with_both,
        stub_that_returns_dots,
        StubClass,
        None,
        ...,
        lambda n: None,
    ],
)
def test_stubs_are_not_attempted(answer, capsys):
    assert engine.is_stub(answer)
    engine.check("99.1", answer)
    assert capsys.readouterr().out.startswith("○ 99.1 The mean: not attempted yet.")
    with pytest.raises(NotImplementedError):
        engine.attempt("99.1", answer)


def returns_zero(numbers):
    return 0


def returns_its_input(numbers):
    return numbers


@pytest.mark.parametrize("answer", [solution_1, returns_zero, returns_its_input, len, HalfDone, lambda n: n, 3])
def test_anything_with_a_body_is_an_attempt(answer):
    assert not engine.is_stub(answer)


def test_a_right_answer_gets_a_tick(capsys):
    engine.check("99.1", solution_1)
    assert capsys.readouterr().out == "✓ 99.1 The mean: correct.\n"
    assert engine.attempt("99.1", solution_1) is None


def test_a_wrong_answer_hears_the_input_the_expectation_and_a_hint(capsys):
    engine.check("99.1", returns_zero)
    assert capsys.readouterr().out.splitlines() == [
        "✗ 99.1 The mean: not yet.",
        "  on       [1, 3]",
        "  expected 2",
        "  got      0",
        "  hint     Divide by the length.",
    ]


def raises(numbers):
    return sum(numbers) / len(numbers)


@pytest.mark.parametrize(
    ("answer", "got"), [(raises, "ZeroDivisionError: division by zero"), (3, "TypeError: 'int' object")]
)
def test_an_answer_that_raises_is_wrong_and_does_not_stop_the_notebook(answer, got, capsys):
    engine.check("99.1", answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗ 99.1") and got in printed and "raised an exception" in printed


def test_hint_and_solution_are_shown_on_request(capsys, monkeypatch):
    from course_utils.teach import lesson

    shown = []
    monkeypatch.setattr(lesson, "show_source", shown.append)
    engine.show_hint("99.1")
    engine.show_solution("99.1")
    first, second = "Hint for 99.1: Sum, then divide.", "Hint for 99.1: An empty list has length 0."
    assert capsys.readouterr().out == f'{first}\nMore: teach.show_hint("99.1", 2)\n'
    engine.show_hint("99.1", 2)
    assert capsys.readouterr().out == f"{second}\n"
    with pytest.raises(ValueError, match="step=3 is out of range; allowed: a whole number from 1 to 2"):
        engine.show_hint("99.1", 3)
    assert shown == [solution_1] and engine.solution("99.1") is solution_1


@pytest.mark.parametrize(
    ("id", "sentence"),
    [
        ("99.7", "exercise '99.7' does not exist; allowed in lesson 99: 99.1"),
        ("98.1", "exercise '98.1' belongs to lesson 98, which has no exercises"),
        ("1.2", "exercise '1.2' is not an exercise number; allowed: two digits, a dot, a number, like '01.2'"),
        ("99.1 ", "exercise '99.1 ' is not an exercise number"),
    ],
)
def test_an_unknown_exercise_is_one_sentence(id, sentence):
    for call in (engine.find, engine.show_hint, engine.show_solution, lambda id: engine.check(id, stub)):
        with pytest.raises(ValueError) as caught:
            call(id)
        assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_a_broken_lesson_module_is_not_mistaken_for_a_missing_one(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(engine.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        engine.find("99.1")


# --- ask: what checkers call the learner's function with --------------------------------------------------------------


@pytest.fixture
def asking():
    """Exercise 99.2, whose checker asks three times."""

    @engine.exercise("99.2", "Twice", ("Look at the operator.", "Multiply."), kind="debug")
    def check_twice(answer):
        for number in (1, 2, 3):
            if engine.ask(answer, number, given=f"number={number}", expected=f"{2 * number}") != 2 * number:
                raise engine.Wrong(given=f"number={number}", expected=f"{2 * number}", got="else", hint="Multiply.")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n: {1: 2, 2: 4}[n], ("number=3", "KeyError: 3", "Call it by hand on this input")),
        (lambda n: print(end=""), ("number=1", "None", "is there a `return` on every path?")),
        (lambda n: 2 * n if n < 2 else None, ("number=2", "got      None")),
        (lambda n: exit(), ("number=1", "SystemExit")),
        (lambda: 3, ("number=1", "TypeError")),
        (7, ("number=1", "'int' object is not callable")),
        ({}, ("number=1", "'dict' object is not callable")),
        (lambda n: n + 1, ("number=2", "Multiply.")),
    ],
)
def test_a_failing_input_is_named(asking, answer, words, capsys):
    engine.check("99.2", answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗ 99.2") and all(word in printed for word in words), printed


@pytest.fixture
def cell():
    """``cell(code)[name]``: what a notebook cell with this code defines."""
    import linecache

    def run(code: str) -> dict:
        name, names = "/tmp/ipykernel_12/345.py", {}
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)  # as ipykernel does
        exec(compile(code, name, "exec"), names)
        return names

    yield run
    linecache.clearcache()


def test_an_exception_shows_the_learners_line(asking, cell, capsys):
    half = cell("def half(number):\n    rest = number - 2\n    return 2 * number if rest < 0 else 1 / rest\n")["half"]
    engine.check("99.2", half)
    assert capsys.readouterr().out.splitlines()[1:-1] == [
        "  on       number=2",
        "  expected 4",
        "  got      ZeroDivisionError: division by zero",
        "  line 3    return 2 * number if rest < 0 else 1 / rest",
    ]


def test_an_exception_where_no_input_was_named_shows_the_arguments(cell, capsys):
    mean = cell("def mean(numbers):\n    return sum(numbers) / len(numbers)\n")["mean"]
    engine.check("99.1", mean)  # its checker calls the answer itself
    printed = capsys.readouterr().out
    assert "  on       numbers=[]\n" in printed and "  line 2    return sum(numbers) / len(numbers)\n" in printed


@pytest.mark.parametrize("broken", [True, False])
def test_a_cell_that_did_not_run_is_not_called_unattempted(broken, monkeypatch, capsys):
    import IPython

    result = types.SimpleNamespace(error_before_exec=IndentationError("unexpected indent"), error_in_exec=None)
    if not broken:
        result.error_before_exec = None
    shell = types.SimpleNamespace(last_execution_result=result)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    engine.check("99.1", stub)
    assert ("did not run (IndentationError: unexpected indent)" in capsys.readouterr().out) is broken


def test_an_answer_that_cannot_be_compared_is_wrong_too(capsys):
    @engine.exercise("99.3", "A length", ("Count.", "Use len."), kind="predict")
    def check_length(answer):
        if answer + 1 != 4:
            raise engine.Wrong(given="[1, 2, 3]", expected="3", got=str(answer), hint="Count.")

    engine.check("99.3", "three")
    assert "could not be compared" in capsys.readouterr().out
    engine.check("99.3", ...)
    assert "not attempted" in capsys.readouterr().out
    engine.check("99.3", 3)
    assert "correct" in capsys.readouterr().out


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='guess' is not known; allowed: 'predict', 'write', 'debug', 'vary'"):
        engine.exercise("99.4", "x", ("a", "b"), kind="guess")
