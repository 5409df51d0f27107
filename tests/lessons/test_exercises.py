"""Every lesson's exercises: solutions pass, stubs are not attempted, wrong answers get the hint that fits."""

from importlib import import_module
from pathlib import Path

import pytest

from course_utils.teach.exercise import attempt, find, solution

# lesson_NN/wrong_answers.py: WRONG = {"NN.1": [(answer, words of its hint), ...], ...}, an entry for each exercise
MODULES = sorted(path.parent.name for path in Path(__file__).parent.glob("lesson_*/wrong_answers.py"))
WRONG = {
    id: cases for name in MODULES for id, cases in import_module(f"tests.lessons.{name}.wrong_answers").WRONG.items()
}


@pytest.mark.parametrize("id", WRONG)
def test_solution_passes(id):
    assert attempt(id, solution(id)) is None


@pytest.mark.parametrize("id", WRONG)
def test_stub_is_not_attempted(id):
    def stub(*args):
        """Not written yet."""
        ...

    with pytest.raises(NotImplementedError):
        attempt(id, stub)


@pytest.mark.parametrize(("id", "answer", "words"), [(id, *case) for id, cases in WRONG.items() for case in cases])
def test_wrong_answer_gets_the_hint_that_fits(id, answer, words):
    wrong = attempt(id, answer)
    assert wrong is not None, "a wrong answer passed"
    assert words in wrong.hint
    assert wrong.given and wrong.expected and wrong.got


@pytest.mark.parametrize("id", WRONG)
def test_exercise_has_a_title_and_a_hint_of_its_own(id):
    assert find(id).title and all(len(hint) > 20 for hint in find(id).hints)


def test_every_exercise_has_at_least_two_wrong_answers():
    import course_utils.lessons as lessons
    from course_utils.teach.exercise import _REGISTRY

    for path in Path(lessons.__file__).parent.glob("lesson_*/exercises.py"):
        import_module(f"course_utils.lessons.{path.parent.name}.exercises")
    written = {id for id, found in _REGISTRY.items() if found.checker.__module__.startswith(lessons.__name__)}
    assert {id for id, cases in WRONG.items() if len(cases) >= 2} >= written
