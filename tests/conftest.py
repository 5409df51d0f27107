"""How the whole test run behaves: threads per worker, the lessons' kernels, where browser tests may run."""

from __future__ import annotations

import os

import pytest

from course_utils.authoring.decks.browser import find_chromium
from tests import lesson_runs as nbval_lessons


def pytest_configure(config: pytest.Config) -> None:
    # Two workers that each start as many threads as there are cores slow each other down.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Registered, because this file's own hooks would not see the notebooks, which lie outside tests/.
    config.pluginmanager.register(nbval_lessons.LessonRuns(), "lesson-runs")


@pytest.fixture(scope="session")
def guarded_environment() -> dict[str, str]:
    """The environment for running a lesson in a test: no network, deprecations of the Hugging Face stack raise."""
    return nbval_lessons.guarded(dict(os.environ))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium; the test is skipped where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    return path
