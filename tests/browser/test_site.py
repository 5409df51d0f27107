"""The course as a web page, built from two lessons: every promise of ``make site`` looked up on the page itself.

The whole site, with its reference pages, is built and walked through in ``make test-long``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from course_utils.authoring.contrast import pale_text
from course_utils.authoring.decks.deck import ROOT
from course_utils.authoring.site import links
from course_utils.authoring.site.build import build_site
from course_utils.authoring.site.lessons import read_lessons

WIDTHS = (390, 1280, 1920)
LESSON = "lessons/01_training_loop.html"
SECOND = "lessons/02_batches.html"
CUT = """[...document.querySelectorAll('.bd-sidebar-secondary')]
    .filter(bar => bar.offsetWidth && bar.scrollWidth > bar.clientWidth).map(bar => bar.className)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of lessons 01 and 02, without the reference."""
    out = tmp_path_factory.mktemp("site") / "built"
    build_site(["01", "02"], out, with_api=False)
    return out


def soup(site: Path, page: str) -> BeautifulSoup:
    return BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser")


def pages(site: Path) -> list[str]:
    """Every page that Sphinx made."""
    found = (path.relative_to(site) for path in sorted(site.rglob("*.html")))
    return [str(path) for path in found if path.parts[0] not in ("_static", "slides")]


# --- what is on the pages ---------------------------------------------------------------------------------------------


def test_every_link_leads_somewhere(site):
    assert links.problems(site) == []


def test_the_landing_page_has_map_lessons_and_decks(site):
    page = soup(site, "index.html")
    drawn = page.select_one("svg.course-map")
    assert [a["href"] for a in drawn.select("a")] == [LESSON, SECOND]
    assert "02 after 01" in drawn.title.text
    assert page.select_one(f'a[href="{LESSON}"] img.figure')["alt"]
    assert page.select_one('a[href="slides/01_training_loop.html"]').text == "play"
    assert soup(site, "slides/index.html").select_one(f'a[href="../{LESSON}"]')


@pytest.mark.parametrize("page", [LESSON, SECOND])
def test_a_lesson_is_shown_as_it_was_executed(site, page):
    shown, name = soup(site, page), Path(page).stem
    (lesson,) = read_lessons([name])
    printed = [o.text for c in lesson.notebook.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    text = " ".join(shown.select_one("article").text.split())
    assert len(printed) > 40 and all(" ".join(part.split()) in text for part in printed)
    assert (site / "notebooks" / f"{name}.ipynb").read_bytes() == lesson.path.read_bytes()
    assert (site / "_sources" / "lessons" / f"{name}.ipynb").read_bytes() == lesson.path.read_bytes()
    assert shown.select_one(f'.lesson-toolbar a[href="../notebooks/{name}.ipynb"]')
    assert shown.select_one(f'.lesson-toolbar a[href="../slides/{name}.html"]')


def test_pages_lead_on_and_back(site):
    assert soup(site, LESSON).select_one("a.right-next")["href"] == Path(SECOND).name
    assert soup(site, SECOND).select_one("a.left-prev")["href"] == Path(LESSON).name
    assert soup(site, SECOND).select_one(f'article p a[href="{Path(LESSON).name}"]'), "prerequisites"


def test_every_picture_has_alternative_text(site):
    for page in pages(site):
        for image in soup(site, page).select("img"):
            assert len(image.get("alt", "")) > 20, (page, image)
    assert "No description has been provided" not in "".join((site / page).read_text() for page in pages(site))


@pytest.mark.parametrize("page", [LESSON, SECOND])
def test_deeper_sections_and_answers_are_folded(site, page):
    shown = soup(site, page)
    deeper = [h for h in shown.select("h2, h3, h4") if h.text.startswith("Deeper")]
    assert deeper and all(h.parent.name == "summary" and "open" not in h.parent.parent.attrs for h in deeper)
    outside = [c for c in shown.select("details.deeper > *") if c.name in ("h2", "h3")]
    assert outside == []
    answers = [d for d in shown.select("details:not(.deeper)") if d.summary.text == "Answer"]
    assert len(answers) == 3 and all("open" not in d.attrs and d.text.strip() != "Answer" for d in answers)


def test_a_displayed_source_is_highlighted_by_the_theme(site):
    assert "def" in {span.text for span in soup(site, LESSON).select(".cell_output .highlight-python span.k")}
    assert not [style for style in soup(site, LESSON).select("article style") if "output_html" in style.text]


def test_formulas_are_mathml(site):
    shown = soup(site, LESSON)
    assert len(shown.select("math")) > 10
    assert not re.search(r"\\(frac|beta|sqrt)", shown.select_one("article").text)


def test_terms_lead_to_the_section_that_introduces_them(site):
    page = soup(site, "glossary.html")
    assert page.select_one('a[href*="02_batches.html#"]')
    goal = page.find("a", string="clipping by global norm")["href"]
    section = soup(site, LESSON).find(id=goal.partition("#")[2])
    assert "Clipping" in section.find(["h2", "h3"]).text


def test_exercises_state_their_task_and_fold_hints_and_solution(site):
    page = soup(site, "exercises.html")
    section = next(h.parent for h in page.select("h3") if h.text.startswith("01.2"))
    assert "A third shape: a straight warm-up" in section.text
    assert 'teach.check("01.2"' in section.text
    folds = section.select("details")
    assert [fold.summary.text for fold in folds] == ["Hint 1", "Hint 2", "Solution"]
    assert "def " in folds[-1].text and not any("open" in fold.attrs for fold in folds)
    goal = section.find("a", string="in the lesson")["href"]
    assert soup(site, LESSON).find(id=goal.partition("#")[2]).h3.text.startswith("Exercise 01.2")


# --- what a browser does with them ------------------------------------------------------------------------------------


@pytest.fixture
def visit(site, browser):
    """Open a page of the site from file://; what it asks of the network or the console says is collected."""
    opened, faults = [], []

    def visit(page: str, width: int = 1280, theme: str = "light", from_file: bool = False):
        tab = browser.new_page()
        opened.append(tab)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.route(re.compile("^https?:"), lambda route: route.abort())
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(r.url))
        # Search shows its results and then fetches their first lines, which a browser only does from a server.
        if not from_file:
            tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto((site / page.partition("#")[0]).as_uri() + page[page.find("#") :] * ("#" in page))
        tab.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        return tab

    yield visit
    for tab in opened:
        tab.close()
    assert faults == []


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", LESSON, "exercises.html", "glossary.html", "decks.html"])
def test_a_page_asks_nothing_of_the_network_and_can_be_read(visit, page, theme):
    tab = visit(page, theme=theme)
    tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"wider than {width} pixels"
        assert tab.evaluate(CUT) == [], f"cut at {width} pixels"
    assert pale_text(tab) == []
    card = "getComputedStyle(document.querySelector('img.figure')).backgroundColor"
    if page == LESSON and theme == "dark":
        assert tab.evaluate(card) == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_pale_text_is_seen(visit):
    tab = visit(LESSON)
    tab.evaluate("document.querySelector('article p').style.color = '#8a8a8a'")
    assert [text.rpartition("(")[2] for text in pale_text(tab)] == ["3.45)"]


@pytest.mark.browser
def test_search_finds_a_lesson(visit):
    tab = visit("search.html", from_file=True)
    tab.goto(tab.url + "?q=clipping")
    tab.wait_for_selector("#search-results li a")
    assert any("01_training_loop" in a.get_attribute("href") for a in tab.query_selector_all("#search-results li a"))


@pytest.mark.browser
def test_a_link_into_a_folded_section_opens_it(visit, site):
    heading = soup(site, LESSON).select_one("details.deeper > summary > h3").parent.parent.parent
    tab = visit(f"{LESSON}#{heading['id']}")
    assert tab.evaluate("id => document.getElementById(id).querySelector('details').open", heading["id"])
    assert tab.evaluate("document.querySelectorAll('details[open]').length") == 1


@pytest.mark.browser
def test_a_deck_plays_from_the_site(visit):
    tab = visit(LESSON)
    tab.get_by_role("link", name="Play the slides").click()
    tab.wait_for_function("window.Reveal && Reveal.isReady()")
    tab.keyboard.press("Space")
    assert tab.evaluate("Reveal.getIndices().h") == 1


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.browser
def test_the_whole_site_can_be_read(browser, tmp_path):
    build_site([], tmp_path / "site")
    site, faults = tmp_path / "site", []
    assert "api/course_utils.training.html" in pages(site)
    tab = browser.new_page()
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(r.url))
    for page in pages(site):
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.goto((site / page).as_uri())
        faults += [f"{page}: {bar} is cut" for bar in tab.evaluate(CUT)]
        tab.set_viewport_size({"width": 390, "height": 900})
        tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        if tab.evaluate("document.documentElement.scrollWidth") > 390:
            faults.append(f"{page} is wider than 390 pixels")
        for theme in ("light", "dark"):
            tab.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
            faults += [f"{page}, {theme}: {text}" for text in pale_text(tab)]
        faults += [f"{page}: {image}" for image in soup(site, page).select("img:not([alt])")]
    tab.close()
    assert faults == []


def test_make_site_and_the_workflow_build_it():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^site:.*\n\t@\$\(RUN\) course_utils\.authoring\.site\.build$", text, re.MULTILINE)
    assert "make site" in (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
