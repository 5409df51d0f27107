"""A cell that takes long says how far it is while it runs, and nothing is left of that when it ends."""

from __future__ import annotations

import time

import nbformat
import pytest

from course_utils.authoring.build import KERNELSPEC
from tests.browser.test_jupyterlab import kernel_states, saved_code_cells, wait_until

pytestmark = pytest.mark.browser
START = "from course_utils import teach\nteach.start()"
LONG = """import time, torch
weight = torch.nn.Parameter(torch.ones(()))
optimizer = torch.optim.SGD([weight], lr=0.1)
print("before")
for _ in range(40):
    (weight**2).backward()
    optimizer.step()
    time.sleep(0.2)
print("after")"""


def test_a_long_cell_says_how_far_it_is_until_it_ends(browser, lab, tmp_path):
    cells = [nbformat.v4.new_code_cell(code) for code in (START, LONG, "print('short')")]
    notebook = lab.root / "live.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), notebook)
    page = browser.new_page()
    page.goto(lab.at("lab/tree/live.ipynb") + "&reset", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    wait_until(lambda: "idle" in kernel_states(lab), 60, "the kernel did not start", page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    outputs = page.locator(".jp-Notebook .jp-CodeCell").nth(1).locator(".jp-OutputArea-output")
    seen = lines_while_it_runs(outputs, page)
    page.screenshot(path=tmp_path / "after.png")

    assert len(seen) >= 4, f"the line stood still: {seen}"
    longest = max(b - a for (a, _), (b, _) in zip(seen, seen[1:], strict=False))
    assert longest <= 2, f"{longest:.1f} s without a change: {seen}"
    assert all(" s · step " in text for _, text in seen)
    left = [text.strip() for text in outputs.all_inner_texts() if text.strip()]
    assert left == ["before", "after"]
    height = outputs.evaluate_all(
        "all => all.filter(one => !one.innerText.trim()).reduce((h, o) => h + o.offsetHeight, 0)"
    )
    assert height <= 2, f"the line left {height} pixels"
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1500)
    _, long, short = saved_code_cells(notebook)
    assert [o.text for o in long.outputs if o.output_type == "stream"] == ["before\n", "after\n"]
    assert [o.data for o in long.outputs if o.output_type == "display_data"] == [{}]
    assert [o.text for o in short.outputs] == ["short\n"], "a short cell needs no line"
    page.close()


def lines_while_it_runs(outputs, page) -> list[tuple[float, str]]:
    """When each new line was seen, until "after" is printed."""
    seen: list[tuple[float, str]] = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        texts = [text.strip() for text in outputs.all_inner_texts()]
        if "after" in texts:
            return seen
        for text in texts:
            if text not in ("", "before") and (not seen or seen[-1][1] != text):
                seen.append((time.monotonic(), text))
        page.wait_for_timeout(100)
    pytest.fail(f"the cell did not end: {seen}")
