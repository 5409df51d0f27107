"""Every lesson runs to its end with ``source="hub"``, against a hub on loopback that serves real text."""

from __future__ import annotations

from pathlib import Path

import pytest

from course_utils.authoring.run_course import lessons
from course_utils.hub import HUB_NAMES
from tests.headless import papermill
from tests.hub_files import DOLLY, SST2, write_real_text
from tests.hub_server import HubServer

# What a lesson must have fetched: otherwise it did not use the source it was told to use.
USES = {
    "01_training_loop": (SST2, HUB_NAMES["encoder"]),
    "02_batches": (SST2, DOLLY, HUB_NAMES["encoder"]),
    "03_trainer": (SST2, HUB_NAMES["encoder"]),
    "15_launch": (SST2, HUB_NAMES["encoder"]),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The folder the hub serves."""
    folder = tmp_path_factory.mktemp("hub")
    write_real_text(folder)
    return folder


@pytest.mark.parametrize("lesson", lessons(), ids=lambda path: path.stem)
def test_a_lesson_runs_on_the_hubs_data_and_models(lesson, root, guarded_environment, tmp_path):
    with HubServer(root) as hub:
        environment = guarded_environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": "0"}
        done = papermill(lesson, tmp_path / "out.ipynb", tmp_path, environment, source="hub", max_steps=40)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in USES[lesson.stem]:
        assert hub.asked(f"/{name}/resolve/"), f"{name} was never fetched"
