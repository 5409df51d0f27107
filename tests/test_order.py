"""The queue of tests: what shares a worker, what starts first."""

from __future__ import annotations

import pytest

from course_utils.authoring.build import ROOT
from tests import order

SHORT = "tests/lessons/test_short_runs.py::test_few_steps"


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("notebooks/05_x.ipynb::Cell 3", "notebooks/05_x.ipynb"),
        ("tests/data/test_cache.py::test_x[a::b]", "tests/data/test_cache.py"),
        (f"{SHORT}[05_x]", f"{SHORT}[05_x]"),
        ("tests/parallel/convert/test_x.py::test_y", "tests/parallel/convert"),
    ],
)
def test_groups(nodeid, group):
    assert order.group(nodeid) == group


def test_notebooks_start_first_then_short_runs_then_long_files():
    long = [f"{path}::test_x" for path in order.LONGEST_FILES]
    ids = ["tests/data/test_cache.py::test_x", *reversed(long), f"{SHORT}[05_x]", "notebooks/05_x.ipynb::Cell 0"]
    assert sorted(ids, key=order.rank) == ids[::-1]


def test_the_files_of_the_queue_exist():
    assert all((ROOT / path).exists() for path in (*order.LONGEST_FILES, *order.EVERY_TEST_ALONE))
