"""How a test run behaves: threads per worker, lessons guarded and counted, choice and order of tests, the browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from course_utils.authoring.decks.browser import find_chromium
from tests import lesson_runs, one_lesson, order


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lesson", metavar="NN", help="only what concerns this lesson (tests/one_lesson.py)")


def pytest_configure(config: pytest.Config) -> None:
    one_lesson.check_number(config.option.lesson)
    # Two workers that each start as many threads as there are cores slow each other down.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Registered, because this file's own hooks would not see the notebooks, which lie outside tests/.
    config.pluginmanager.register(lesson_runs.LessonRuns(), "lesson-runs")
    config.pluginmanager.register(lesson_runs.Executions(), "executions")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.lesson:
        one_lesson.keep(config, items, config.option.lesson)
    order.longest_first(items)


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> order.Groups | None:
    return order.Groups(config, log) if config.option.dist == "loadgroup" else None


@pytest.fixture(autouse=True)
def no_deepspeed_left() -> Iterator[None]:
    """TrainingArguments with a DeepSpeed file change how the process loads models until they are gone: not in the next
    test, also where a test keeps their error."""
    yield
    module = sys.modules.get("transformers.integrations.deepspeed")
    if module is not None:
        module.unset_hf_deepspeed_config()


@pytest.fixture(scope="session")
def guarded_environment() -> dict[str, str]:
    """The environment for running a lesson in a test: no network, deprecations of the Hugging Face stack raise."""
    return lesson_runs.guarded(dict(os.environ))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium; the test is skipped where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    return path
