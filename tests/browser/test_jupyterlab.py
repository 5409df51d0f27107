"""A newcomer's click-through: JupyterLab in a real browser, open lesson 01, Run All Cells, no error, every cell ran."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from course_utils.authoring.build import ROOT
from course_utils.authoring.run_course import lessons
from tests.lesson_runs import record_execution

pytestmark = pytest.mark.browser
LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "about:")


def copy_to_click_through(lesson: Path, folder: Path) -> Path:
    """A copy of ``lesson`` without outputs and with few steps."""
    notebook = nbformat.read(lesson, as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source, count = re.subn(r"(?m)^max_steps = \d+", "max_steps = 40", parameters.source)
    assert count == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / lesson.name)
    return folder / lesson.name


@pytest.mark.parametrize("lesson", lessons()[:1], ids=lambda path: path.stem)
def test_lesson_01_runs_through(lesson, browser, lab, tmp_path, record_property):
    notebook = copy_to_click_through(lesson, lab.root)
    record_execution(record_property, lesson, "browser")
    outside: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: None if request.url.startswith(LOCAL) else outside.append(request.url))
    page.goto(lab.at(f"lab/tree/{notebook.name}") + "&reset", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    wait_until(lambda: kernel_states(lab) == ["idle"], 60, "the kernel did not start", page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    wait_until(lambda: has_ended(page, lab, notebook), 600, "the lesson did not run to its end", page)
    page.screenshot(path=tmp_path / "lesson_01.png")

    assert page.locator(".jp-InputPrompt", has_text="[*]").count() == 0
    cells = saved_code_cells(notebook)
    errors = [(c.source, o) for c in cells for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert errors == []
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert any("<img" in o.get("data", {}).get("text/html", "") for c in cells for o in c.outputs), (
        "no figure was drawn"
    )
    assert outside == [], "the page asked for something outside this machine"
    page.close()


def has_ended(page, lab, notebook: Path) -> bool:
    """True when every cell ran or one failed. Saves with the keyboard, as a learner does, and looks into the file.

    Cells outside the window are not in the page (JupyterLab renders what is visible), so the saved file is what counts.
    """
    if kernel_states(lab) != ["idle"]:
        return False
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1500)
    cells = saved_code_cells(notebook)
    failed = any(output.output_type == "error" for cell in cells for output in cell.outputs)
    return failed or (bool(cells) and all(cell.execution_count for cell in cells))


def kernel_states(lab) -> list[str]:
    with urllib.request.urlopen(lab.at("api/kernels"), timeout=10) as answer:
        return [kernel["execution_state"] for kernel in json.load(answer)]


def saved_code_cells(notebook: Path) -> list[nbformat.NotebookNode]:
    try:
        return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    except ValueError:  # read while JupyterLab was writing it
        return []


def wait_until(condition, seconds: float, message: str, page) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        page.wait_for_timeout(1000)


def test_the_lab_target_opens_the_lessons():
    done = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True)
    assert "jupyterlab notebooks\n" in done.stdout
