"""A newcomer's click-through in a real browser: lesson 01 runs to its end; `make lab` keeps progress and leads on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from course_utils.authoring.build import KERNELSPEC
from course_utils.authoring.run_course import lessons
from course_utils.parallel.processes import free_ports
from tests.browser.conftest import TOKEN, Lab, wait_until_up
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


ANSWER = """from course_utils import teach
from course_utils.teach.exercise import solution

answer = solution("01.1")
"""


@pytest.fixture
def learners_lab(tmp_path) -> Iterator[Lab]:
    """What `make lab` starts, on copies in a folder of this test's; the second lesson's copy checks an exercise."""
    root, (port,) = tmp_path / "work", free_ports(1)
    command = [sys.executable, "-m", "course_utils.authoring.lab", "--folder", str(root), "--no-browser"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own["JUPYTERLAB_SETTINGS_DIR"] = str(tmp_path / "settings")
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", server, tmp_path / "log")
        yield Lab(f"http://127.0.0.1:{port}", root)
    finally:
        server.terminate()
        server.wait(20)


def test_start_page_then_a_lesson_then_a_solved_exercise_on_the_start_page(browser, learners_lab, tmp_path):
    cells = [nbformat.v4.new_code_cell(code) for code in (ANSWER, 'teach.check("01.1", answer)')]
    cells[1:1] = [nbformat.v4.new_code_cell("teach.show_source(teach.check)")]
    lesson = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC})
    nbformat.write(lesson, learners_lab.root / "notebooks" / "01_training_loop.ipynb")
    page = browser.new_page()
    page.goto(learners_lab.at(""), timeout=120_000)
    page.get_by_role("link", name="lesson 01").wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    assert page.locator(".jp-TableOfContents").first.is_visible(), "the list of sections is not open"
    assert page.get_by_text("get notified", exact=False).count() == 0, "the question about news popped up"
    assert page.get_by_text("○○○○○ 0 of 5").count() > 0
    page.screenshot(path=tmp_path / "start.png")

    page.get_by_role("link", name="lesson 01").click()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    wait_until(lambda: kernel_states(learners_lab) == ["idle"], 60, "the kernel did not start", page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_text("Lesson 01: ●○○○○ 1 of 5 exercises solved.").wait_for(timeout=60_000)
    style = "pre => [getComputedStyle(pre).whiteSpace, getComputedStyle(pre).overflowX]"
    assert page.locator(".highlight pre").first.evaluate(style) == ["pre", "auto"], "a source is wrapped in mid-word"
    breaks = "pre => [getComputedStyle(pre).wordBreak, getComputedStyle(pre).overflowWrap]"
    assert page.locator(".jp-RenderedText pre").first.evaluate(breaks) == ["normal", "anywhere"]
    page.screenshot(path=tmp_path / "lesson.png")

    page.locator(".lm-TabBar-tabLabel", has_text="start.md").click()
    page.reload()  # as the start page says
    page.locator(".jp-MarkdownViewer td", has_text="●○○○○ 1 of 5").wait_for(timeout=60_000)
    page.screenshot(path=tmp_path / "solved.png")
    assert (learners_lab.root / "progress.txt").read_text().startswith("01.1 ")
    page.get_by_role("link", name="02 Batches").click()
    page.locator(".jp-RenderedMarkdown h1", has_text="02 · Batches").wait_for(timeout=60_000)
    page.close()
