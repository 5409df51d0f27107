"""The decks in a real browser: nothing overflows, nothing asks the network, notes open, a PDF has one slide a page.

Every check of ``Walk.problems`` is also seen failing, on a throwaway deck with one planted fault.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from nbformat import NotebookNode

from course_utils.authoring.build import KERNELSPEC
from course_utils.authoring.decks.browser import LOCAL_SCHEMES, Walk, open_deck, walk
from course_utils.authoring.decks.build import build_deck
from course_utils.authoring.decks.deck import DECKS as FOLDER
from tests.authoring.decks.throwaway_deck import NUM_SLIDES, code, deck, picture, save, slide

pytestmark = pytest.mark.browser
DECKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
NOTE = slide("Say this.", "notes")


def build(nb, folder: Path) -> Path:
    return build_deck(save(nb, folder), folder).path


@pytest.mark.parametrize("notebook", DECKS, ids=lambda path: path.stem)
def test_deck_can_be_presented(notebook, browser, tmp_path):
    built = build_deck(notebook, tmp_path)
    seen = walk(browser, built.path)
    assert seen.problems() == []
    assert len(seen.slides) == built.num_slides
    formulas = re.sub(r"<aside.*?</aside>", "", built.path.read_text(), flags=re.S).count("<math")
    assert sum(shown["math"] for shown in seen.slides) == formulas


def test_sound_deck_has_no_problem(browser, tmp_path):
    seen = walk(browser, build(deck(), tmp_path))
    assert seen.problems() == []
    assert len(seen.slides) == NUM_SLIDES
    assert [shown["math"] for shown in seen.slides[:2]] == [0, 2]
    assert len(seen.slides[3]["images"]) == 1


FAULTS = {
    "too many bullets": ((slide("## Long\n\n" + "- one more\n" * 14), NOTE), r"slide 12 \(Long\): overflows"),
    "too wide code": ((slide("## Wide\n\n```python\n" + "x" * 99 + "\n```"), NOTE), r"slide 12 .*overflows"),
    "too wide formula": ((slide("## Wide\n\n$$" + "a + " * 60 + "b$$"), NOTE), r"slide 12 .*overflows"),
    "text under the footer": ((slide("## Low\n\n" + "text\n\n" * 10), NOTE), "runs into the footer"),
    "overflowing fragment": (
        (slide("## Late"), slide("- one more\n" * 14, "fragment"), NOTE),
        r"slide 12 \(Late\): overflows",
    ),
    "absolute element outside": (
        (slide('## Out\n\n<div style="position:absolute; left:1250px; width:90px">out</div>'), NOTE),
        "overflows: <div> out",
    ),
    "squeezed figure": (
        (slide("## Small\n\n" + "text\n\n" * 7), code("", picture("A line.")), NOTE),
        "squeezes its figure",
    ),
    "remote image": (
        (slide("## Remote\n\n![a picture](https://example.invalid/a.png)"), NOTE),
        "asks the network for https://example.invalid/a.png",
    ),
    "remote script": (
        (slide('## Remote\n\n<script src="https://example.invalid/a.js"></script>'), NOTE),
        "asks the network for https://example.invalid/a.js",
    ),
    "missing note": ((slide("## Silent"),), r"slide 12 \(Silent\): has no speaker notes"),
    "empty note": ((slide("## Silent"), slide(" ", "notes")), "has no speaker notes"),
    "no title": ((slide("Only text"), NOTE), r"slide 12 \(no title\): has no title"),
    "image without alt": ((slide("## Blind"), code("", picture("")), NOTE), "image without alternative text"),
    "broken image": ((slide("## Broken\n\n![a picture](data:image/png;base64,AAAA)"), NOTE), "does not load"),
    "raw LaTeX": ((slide("## Raw\n\n<div>$$x$$</div>"), NOTE), "shows a formula as raw LaTeX"),
    "small code": ((slide('## Tiny\n\n<pre style="font-size: 14px">x = 1</pre>'), NOTE), "has code of 14 px"),
    "pale text": (
        (slide('## Pale\n\n<p style="color: #8a8a8a">hardly there</p>'), NOTE),
        r"slide 12 \(Pale\): has text that is hard to read: hardly there \(3\.45\); allowed: a contrast of 4\.5",
    ),
    "script error": ((slide("## Script\n\n<script>nobody.home()</script>"), NOTE), "browser console: .*nobody"),
    "too many slides": ((slide("## More"), NOTE) * 10, "has 21 slides; allowed: 12 to 20"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_seen(fault, browser, tmp_path):
    cells, expected = FAULTS[fault]
    problems = walk(browser, build(deck(*cells), tmp_path)).problems()
    assert any(re.search(expected, problem) for problem in problems), problems


def test_speaker_view_opens_with_the_notes_and_drives_the_deck(browser, tmp_path):
    seen = Walk()
    page = open_deck(browser, build(deck(), tmp_path), seen)
    page.evaluate("Reveal.slide(2)")  # its notes stand after a fragment in the notebook
    with browser.expect_page() as opened:
        page.keyboard.press("s")
    popup = opened.value
    popup.on("request", lambda request: seen.requests.append(request.url))
    notes = popup.locator(".speaker-controls-notes .value")
    notes.get_by_text("Walk through it.").wait_for()
    popup.frame_locator("#current-slide iframe").locator("section.present h2", has_text="Code").wait_for()
    popup.frame_locator("#upcoming-slide iframe").locator("section.present").wait_for()
    popup.keyboard.press("ArrowRight")  # the fragment
    popup.keyboard.press("ArrowRight")
    notes.get_by_text("What is on the axes.").wait_for()
    assert page.evaluate("Reveal.getIndices().h") == 3
    assert any("receiver" in url for url in seen.requests)
    assert [url for url in seen.requests if not url.startswith(LOCAL_SCHEMES)] == []
    popup.close()
    page.close()


def test_pdf_has_one_slide_a_page(browser, tmp_path):
    page = browser.new_page()
    page.goto(build(deck(), tmp_path).as_uri() + "?print-pdf")
    page.wait_for_selector(".pdf-page section")
    pdf = page.pdf(prefer_css_page_size=True)
    boxes = set(re.findall(rb"/MediaBox \[([^\]]*)\]", pdf))
    page.close()
    assert len(re.findall(rb"/Type /Page\b", pdf)) == NUM_SLIDES
    assert {tuple(round(float(n) / 0.75) for n in box.split()[2:]) for box in boxes} == {(1280, 720)}


def test_paper_cuts_nothing(browser, tmp_path):
    table = "| " + "`a_long_name` and more | " * 4 + "\n|---|---|---|---|"
    wide = slide(f"## Wide\n\n```python\nx = {'1' * 74}\n```\n\n{table}")
    page = browser.new_page()
    page.goto(build(deck(wide, NOTE), tmp_path).as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 with margins
    cut = "[...document.querySelectorAll('section, pre, table, img')].filter(e => e.scrollWidth > e.clientWidth + 2"
    cut += " || e.getBoundingClientRect().right > 721).map(e => e.outerHTML.slice(0, 80))"
    assert page.evaluate(cut) == []
    page.close()


def present_live(browser, lab, notebook: str) -> tuple[str, list[str]]:
    """Open a notebook in JupyterLab's presentation; returns the first slide's heading and requests to elsewhere."""
    page, requests = browser.new_page(), []
    page.route(re.compile(f"^https?://(?!{re.escape(lab.url[7:])})"), lambda route: route.abort())
    page.on("request", lambda request: requests.append(request.url))
    page.goto(lab.rise(notebook))
    heading = page.locator(".reveal .slides section.present h1").first
    heading.wait_for(timeout=90_000)
    page.wait_for_timeout(1000)  # the theme's style sheet comes after the slides
    text = heading.inner_text()
    page.close()
    local = (lab.url, lab.url.replace("http", "ws"), "data:", "blob:")
    return text, [url for url in requests if not url.startswith(local)]


@pytest.mark.parametrize("notebook", DECKS[:1] or [None], ids=lambda path: path.stem if path else "throwaway")
def test_deck_opens_in_jupyterlab_without_the_network(notebook, browser, lab, tmp_path):
    folder = lab.root / "slides"
    folder.mkdir(exist_ok=True)
    path = Path(shutil.copy(notebook, folder)) if notebook else save(deck(), folder)
    shutil.copy(FOLDER / "rise.css", folder)
    title, elsewhere = present_live(browser, lab, f"slides/{path.name}")
    assert re.match(r"\d\d · ", title)
    assert elsewhere == []


def test_set_up_cells_run_before_the_talk_serve_the_slides(browser, lab):
    """What slides/README.md says: run all cells in the notebook, then present; the slides' cells use that kernel."""
    cells = [code("secret = 6 * 7", kind="skip"), slide("# 00 · Live"), slide("## Try it"), code("print(secret)")]
    nb = deck()
    nb.cells = [NotebookNode(cell, id=f"live-{number}") for number, cell in enumerate(cells)]
    nb.metadata |= {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    path = save(nb, lab.root, "00_live")
    page = browser.new_page()
    page.goto(lab.at(f"lab/tree/{path.name}") + "&reset", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-OutputArea-output", has_text="42").wait_for(timeout=60_000)
    page.keyboard.press("Control+s")
    page.goto(lab.rise(path.name))
    page.locator(".reveal .slides section.present h1").first.wait_for(timeout=90_000)
    page.keyboard.press("Space")
    cell = page.locator("section.present .jp-CodeCell")
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("print(secret + 1)")
    page.keyboard.press("Shift+Enter")
    cell.locator(".jp-OutputArea-output", has_text="43").wait_for(timeout=30_000)
    assert page.locator("text=NameError").count() == 0
    page.close()


def test_figures_have_their_text_in_jupyterlab(browser, lab):
    """In the page that readers' software reads: of a notebook that was not run here, and is therefore sanitised."""
    nb = deck()
    nb.cells = [cell for cell in nb.cells if "secret_of_the_figure" in cell.source]
    nb.cells[0].metadata.pop("slideshow")
    path = save(nb, lab.root, "00_figure")
    page = browser.new_page()
    page.goto(lab.at(f"lab/tree/{path.name}") + "&reset", timeout=120_000)
    image = page.locator(".jp-OutputArea-output img")
    image.first.wait_for(timeout=120_000)
    assert image.evaluate_all("all => all.map(i => [i.alt, i.width > 300])") == [["A rising line.", True]]
    page.close()


def test_default_jupyterlab_theme_asks_for_web_fonts(browser, lab):
    """Why every deck sets ``rise.theme``: planted by leaving it out."""
    path = save(deck(rise=None), lab.root, "00_default")
    assert any("fonts." in url for url in present_live(browser, lab, path.name)[1])
