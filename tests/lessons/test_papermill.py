"""Lessons run headlessly with papermill: few steps, from both folders; bad parameters end at once in one sentence."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import nbformat
import pytest

from course_utils.authoring.build import ROOT
from course_utils.authoring.run_course import lessons
from tests.headless import papermill

LESSONS = lessons()
BAD = {
    "unknown source": ({"source": "nowhere"}, "ValueError: source='nowhere' is not known; allowed: 'local', 'hub'"),
    "negative": ({"max_steps": "-3"}, "ValueError: max_steps=-3 is out of range; allowed: a whole number from 1 to"),
    "zero": ({"max_steps": "0"}, "ValueError: max_steps=0 is out of range; allowed: a whole number from 1 to"),
    "a word": ({"max_steps": "many"}, "TypeError: max_steps='many' is a str; allowed: a whole number >= 1"),
    "a fraction": ({"max_steps": "2.5"}, "TypeError: max_steps=2.5 is a float; allowed: a whole number >= 1"),
    "a bad seed": ({"seed": "-1"}, "ValueError: seed=-1 is out of range; allowed: a whole number from 0 to"),
}
# Every case with the first lesson, one with each other lesson: they all open with the same call.
CASES = [(lesson, name) for n, lesson in enumerate(LESSONS) for name in (BAD if n == 0 else ["negative"])]


def visible(folder: Path) -> set[Path]:
    return {path for path in folder.iterdir() if not path.name.startswith((".", "__"))}


@pytest.mark.parametrize(("lesson", "case"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_bad_parameters_end_with_one_sentence(lesson, case, guarded_environment, tmp_path):
    parameters, sentence = BAD[case]
    began = time.perf_counter()
    done = papermill(lesson, tmp_path / "out.ipynb", ROOT, guarded_environment, **parameters)
    assert done.returncode != 0
    assert sentence in done.stderr.strip().splitlines()[-1]
    assert time.perf_counter() - began < 60  # mostly the start of a kernel; "in the first minute" is the promise
    executed = [c for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if c.get("execution_count")]
    assert len(executed) <= 3, "more than the parameters and the opening call ran"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_hub_without_a_network_ends_with_one_sentence(lesson, guarded_environment, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:  # after this block nobody listens on the port
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    began = time.perf_counter()
    environment = {**guarded_environment, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    done = papermill(lesson, tmp_path / "out.ipynb", ROOT, environment, source="hub", max_steps=40)
    assert done.returncode != 0
    assert "is not reachable" in done.stderr and 'use source="local"' in done.stderr.strip().splitlines()[-1]
    assert time.perf_counter() - began < 90


@pytest.mark.parametrize(
    ("lesson", "folder"),
    [*((lesson, ROOT) for lesson in LESSONS), *((lesson, lesson.parent) for lesson in LESSONS[:1])],
    ids=lambda value: value.stem or value.name,
)
def test_few_steps_from_both_folders(lesson, folder, guarded_environment, tmp_path):
    before = visible(ROOT) | visible(lesson.parent)
    done = papermill(lesson, tmp_path / "out.ipynb", folder, guarded_environment, max_steps=40)
    assert done.returncode == 0, done.stderr[-4000:]
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    injected = [c for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert [c.source for c in injected] == ["# Parameters\nmax_steps = 40\n"]
    noise = [o.text for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
    assert noise == []
    left = (
        (visible(ROOT) | visible(lesson.parent)) - before - {ROOT / "build", ROOT / "launch"}
    )  # lesson 15 writes launch/
    assert not left, "the lesson left files behind"
