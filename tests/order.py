"""Which tests stay together on one worker, and in which order they start: the longest first, so that none is last."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

# Each test of these files is a group of its own; the tests of any other file, and a notebook's cells, stay together.
EVERY_TEST_ALONE = ("tests/lessons/test_short_runs.py",)
# All files of these folders are one group: they share what a start of ranks has made.
FOLDERS_TOGETHER = ("tests/parallel/convert",)
# After the notebooks and the short runs of lessons: files of 20 to 160 CPU-seconds, and SLURM's, which waits 100 s.
LONGEST_FILES = (
    "tests/launch/test_run_here.py",
    "tests/launch/files/test_slurm_cluster.py",
    "tests/parallel/test_restarts.py",
    "tests/parallel/convert",
    "tests/test_hub.py",
    "tests/parallel/test_cpu_fsdp.py",
    "tests/test_lesson_runs.py",
    "tests/recipes/test_train_by_hand.py",
    "tests/test_guard.py",
    "tests/launch/planner/test_measured.py",
    "tests/recipes/test_finetune.py",
    "tests/parallel/test_cpu_repairs.py",
    "tests/launch/check/test_cloud.py",
    "tests/lessons/test_starts.py",
    "tests/authoring/test_build.py",
    "tests/browser/test_jupyterlab.py",
    "tests/browser/test_slides.py",
)


def group(nodeid: str) -> str:
    """What an item shares a worker with: items of one group run one after the other, on one worker."""
    path = nodeid.partition("::")[0]
    folder = path.rpartition("/")[0]
    if folder in FOLDERS_TOGETHER:
        return folder
    return nodeid if path in EVERY_TEST_ALONE else path


def rank(nodeid: str) -> int:
    """Place of an item's group in the queue, 0 first."""
    path = nodeid.partition("::")[0]
    if path.endswith(".ipynb"):
        return 0
    if path in EVERY_TEST_ALONE:
        return 1
    path = group(nodeid)
    return 2 + (LONGEST_FILES.index(path) if path in LONGEST_FILES else len(LONGEST_FILES))


class Groups(LoadScopeScheduling):
    """xdist's queue of groups, in the order of collection, with ``group`` as the rule."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def longest_first(items: list[pytest.Item]) -> None:
    """Sort ``items`` in place by the rank of their group; within a group the order stays."""
    items.sort(key=lambda item: rank(item.nodeid))
