"""Lesson 01 started with what it cannot run with: it ends at once, in one sentence.

The others open with the same call (``rules.opening_call``) and load through the same loaders (tests/test_hub.py).
"""

from __future__ import annotations

import socket
import time

import pytest

from course_utils.authoring.build import ROOT
from course_utils.authoring.run_course import lessons
from tests.headless import executed, papermill

FIRST = lessons()[:1]
BAD = {
    "unknown source": ({"source": "nowhere"}, "ValueError: source='nowhere' is not known; allowed: 'local', 'hub'"),
    "negative": ({"max_steps": "-3"}, "ValueError: max_steps=-3 is out of range; allowed: a whole number from 1 to"),
    "zero": ({"max_steps": "0"}, "ValueError: max_steps=0 is out of range; allowed: a whole number from 1 to"),
    "a word": ({"max_steps": "many"}, "TypeError: max_steps='many' is a str; allowed: a whole number >= 1"),
    "a fraction": ({"max_steps": "2.5"}, "TypeError: max_steps=2.5 is a float; allowed: a whole number >= 1"),
    "a bad seed": ({"seed": "-1"}, "ValueError: seed=-1 is out of range; allowed: a whole number from 0 to"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("lesson", FIRST, ids=lambda path: path.stem)
def test_bad_parameters_end_with_one_sentence(lesson, case, guarded_environment, tmp_path, record_property):
    parameters, sentence = BAD[case]
    began = time.perf_counter()
    done = papermill(lesson, tmp_path / "out.ipynb", ROOT, guarded_environment, record_property, **parameters)
    assert done.returncode != 0
    assert sentence in done.stderr.strip().splitlines()[-1]
    assert time.perf_counter() - began < 60  # mostly the start of a kernel; "in the first minute" is the promise
    assert len(executed(tmp_path / "out.ipynb")) <= 3, "more than the parameters and the opening call ran"


@pytest.mark.parametrize("lesson", FIRST, ids=lambda path: path.stem)
def test_the_hub_without_a_network_ends_with_one_sentence(lesson, guarded_environment, tmp_path, record_property):
    with socket.create_server(("127.0.0.1", 0)) as server:  # after this block nobody listens on the port
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    began = time.perf_counter()
    environment = {**guarded_environment, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    parameters = {"source": "hub", "max_steps": 40}
    done = papermill(lesson, tmp_path / "out.ipynb", ROOT, environment, record_property, **parameters)
    assert done.returncode != 0
    assert "is not reachable" in done.stderr and 'use source="local"' in done.stderr.strip().splitlines()[-1]
    assert time.perf_counter() - began < 90
