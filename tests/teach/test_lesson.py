"""``teach.start``: a wrong lesson parameter is refused in one sentence before any work; one seed for all generators."""

import gc
import logging
import os
import random
import subprocess
import sys

import pytest

from course_utils.teach import lesson


@pytest.mark.parametrize(
    ("parameters", "kind", "sentence"),
    [
        ({"source": "internet"}, ValueError, "source='internet' is not known; allowed: 'local', 'hub'"),
        ({"source": None}, ValueError, "source=None is not known; allowed: 'local', 'hub'"),
        ({"max_steps": 0}, ValueError, "max_steps=0 is out of range; allowed: a whole number from 1 to 1000000000"),
        ({"max_steps": -5}, ValueError, "max_steps=-5 is out of range; allowed: a whole number from 1 to 1000000000"),
        (
            {"max_steps": 10**9 + 1},
            ValueError,
            "max_steps=1000000001 is out of range; allowed: a whole number from 1 to",
        ),
        ({"max_steps": "40"}, TypeError, "max_steps='40' is a str; allowed: a whole number >= 1"),
        ({"max_steps": 40.0}, TypeError, "max_steps=40.0 is a float; allowed: a whole number >= 1"),
        ({"max_steps": True}, TypeError, "max_steps=True is a bool; allowed: a whole number >= 1"),
        ({"seed": -1}, ValueError, "seed=-1 is out of range; allowed: a whole number from 0 to 4294966295"),
        ({"seed": 2**32 - 1}, ValueError, "seed=4294967295 is out of range"),  # NumPy takes no seed + 1
        ({"seed": None}, TypeError, "seed=None is a NoneType; allowed: a whole number >= 0"),
        ({"batch_size": 0}, ValueError, "batch_size=0 is out of range; allowed: a whole number from 1"),
        (
            {"batch_size": 9, "at_most": {"batch_size": 8}},
            ValueError,
            "batch_size=9 is out of range; allowed: a whole number from 1 to 8",
        ),
    ],
)
def test_a_wrong_parameter_is_one_sentence_before_any_work(parameters, kind, sentence, monkeypatch):
    for work in ("quieten", "seed_everything"):
        monkeypatch.setattr(lesson, work, lambda *_: pytest.fail("work began"))
    with pytest.raises(kind) as caught:
        lesson.start(**parameters)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "parameters", [{}, {"source": "hub"}, {"max_steps": 1, "seed": 0}, {"seed": lesson.HIGHEST_SEED}]
)
def test_right_parameters_pass(parameters):
    lesson.start(**parameters)


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (
            ["", "max_steps = 5\nseed = 0", "# Parameters\nmax_step = 4\n"],
            "max_step=4 is no parameter of this lesson; ",
        ),
        (["", "max_steps = 5\nseed = 0", "# Parameters\nmax_steps = 4\n"], None),
        (["", "max_steps = 5\nseed = 0", "max_step = 4"], None),  # a learner's own name
        (["", "%matplotlib inline", "max_steps = 5"], None),
    ],
)
def test_a_parameter_that_papermill_was_given_in_vain_is_refused(cells, sentence, monkeypatch):
    import types

    import IPython

    shell = types.SimpleNamespace(user_ns={"In": cells, "max_step": 4})
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    if sentence is None:
        return lesson.start()
    monkeypatch.setattr(lesson, "seed_everything", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError) as caught:
        lesson.start()
    assert str(caught.value) == sentence + "allowed: max_steps, seed"


def test_the_same_seed_gives_the_same_numbers_from_every_generator():
    import numpy
    import torch

    def draw(seed: int) -> tuple:
        lesson.start(seed=seed)
        return random.random(), numpy.random.rand(), torch.rand(()).item()

    first, again, other = draw(3), draw(3), draw(4)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_quieten_leaves_errors_and_silences_the_rest():
    import datasets
    import transformers

    lesson.quieten()
    assert not datasets.is_progress_bar_enabled()
    assert transformers.logging.get_verbosity() == logging.ERROR
    assert logging.getLogger("accelerate").isEnabledFor(logging.ERROR)
    assert not logging.getLogger("accelerate").isEnabledFor(logging.WARNING)


def test_importing_the_package_and_teach_loads_no_heavy_library():
    code = "import sys, course_utils, course_utils.data; from course_utils import teach; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    heavy = {"torch", "transformers", "datasets", "matplotlib", "pandas", "sklearn"}
    assert done.returncode == 0, done.stderr
    assert heavy.isdisjoint(done.stdout.split())


def test_the_wait_policy_is_set_before_torch_unless_the_user_chose_one():
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = "import os; from course_utils import teach; teach.start(); print(*map(os.environ.get, {names}))"
    cases = [({}, "PASSIVE 1000"), ({names[0]: "ACTIVE"}, "ACTIVE None"), ({names[1]: "7"}, "PASSIVE 7")]
    for chosen, expected in cases:
        environment = {name: value for name, value in os.environ.items() if name not in names}
        done = subprocess.run(
            [sys.executable, "-c", code.format(names=names)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment, **chosen},
        )
        assert done.stdout.strip() == expected, done.stderr


def test_the_imported_libraries_are_not_visited_at_every_collection():
    """The Trainer calls gc.collect() at the end of each train()."""
    lesson.start()
    assert gc.get_freeze_count() > 100_000 > len(gc.get_objects())
    gc.unfreeze()
    assert len(gc.get_objects()) > 100_000  # so the assertion above can fail


def test_show_source_displays_highlighted_python(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    lesson.show_source(lesson.seed_everything)
    assert shown[0].data.startswith("def seed_everything(seed: int)") and shown[0].language == "python"
