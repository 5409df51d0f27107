"""Every lesson runs to its end with few steps, once: from the hub if it is the first to use a loader, else offline."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest

from course_utils.authoring.build import ROOT
from course_utils.authoring.run_course import lessons
from course_utils.hub import HUB_NAMES
from tests.headless import papermill
from tests.hub_files import write_real_text
from tests.hub_server import HubServer
from tests.lessons.hub_use import fetched, runs_from_the_hub

LESSONS = lessons()
BUILT = {ROOT / "build", ROOT / "launch", ROOT / "notebooks" / "launch"}  # lesson 15 writes launch/ where it runs


def visible() -> set[Path]:
    """What a lesson could leave behind where it is started from."""
    folders = (ROOT, ROOT / "notebooks")
    return {path for folder in folders for path in folder.iterdir() if not path.name.startswith((".", "__"))} - BUILT


def source_of(lesson: Path) -> str:
    return (lesson.parent / "source" / f"{lesson.stem}.py").read_text(encoding="utf-8")


def asked_of_the_hub(lesson: Path) -> set[str]:
    """What the lesson must fetch when it runs from the hub, read off its source; empty if it is to run offline."""
    try:
        names = fetched(source_of(lesson))
    except ValueError as error:
        pytest.fail(f"{lesson.stem} was not executed: {error}", pytrace=False)
    earlier = [source_of(path) for path in LESSONS[: LESSONS.index(lesson)]]
    return names if runs_from_the_hub(source_of(lesson), earlier) else set()


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """The folder that the hub serves."""
    folder = tmp_path_factory.mktemp("hub")
    write_real_text(folder)
    return folder


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_few_steps(lesson, guarded_environment, tmp_path, record_property, request):
    wanted = asked_of_the_hub(lesson)
    folder = lesson.parent if lesson == LESSONS[0] else ROOT  # README shows both
    environment, parameters = guarded_environment, {"max_steps": 40}
    before = visible()
    with HubServer(request.getfixturevalue("hub_folder")) if wanted else nullcontext() as hub:
        if wanted:
            environment = environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
            parameters = {"source": "hub"} | parameters
        done = papermill(lesson, tmp_path / "out.ipynb", folder, environment, record_property, **parameters)
    assert done.returncode == 0, done.stderr[-4000:]
    if wanted:
        assert {name for name in HUB_NAMES.values() if hub.asked(f"/{name}/resolve/")} == wanted
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    (injected,) = (c.source for c in cells if "injected-parameters" in c.metadata.get("tags", []))
    assert injected == "# Parameters\n" + 'source = "hub"\n' * bool(wanted) + "max_steps = 40\n"
    noise = [o.text for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
    assert noise == []
    assert visible() <= before, "the lesson left files behind"
