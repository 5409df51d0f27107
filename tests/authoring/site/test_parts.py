"""The parts of the site without Sphinx: the map, the links, what a lesson's page changes, one sentence for bad input.

What a built site shows is looked up in tests/browser/test_site.py.
"""

from __future__ import annotations

import base64
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.authoring.site import api, build, course_map, glossary, links
from course_utils.authoring.site.extension import tidy_docstring
from course_utils.authoring.site.lessons import (
    SiteError,
    name_lessons,
    page_notebook,
    read_lesson,
    read_lessons,
    rewrite_links,
    toolbar,
)
from course_utils.authoring.site.sections import find_term, sections

OPENING = "# {number} · A title\n\nWhat it is about,\nin two lines.\n\n**Minutes:** 5 · **Prerequisites:** {needs}."
PNG = base64.b64encode(b"\x89PNG a picture").decode()


@pytest.fixture
def lesson(tmp_path):
    """Make a lesson from cells that follow its opening."""

    def lesson(*cells, number: str = "01", needs: str = "none"):
        opening = new_markdown_cell(OPENING.format(number=number, needs=needs))
        path = tmp_path / f"{number}_name.ipynb"
        nbformat.write(new_notebook(cells=[opening, *cells]), path)
        return read_lesson(path)

    return lesson


def executed(source: str, **data: str):
    return new_code_cell(source, outputs=[new_output("display_data", data=data)], execution_count=1)


# --- the map ----------------------------------------------------------------------------------------------------------

NEEDS = {"01": (), "02": ("01",), "03": ("01", "02"), "04": ("01", "03"), "05": ("03",), "06": ("04", "05", "99")}


def test_a_lesson_is_drawn_below_what_it_builds_on():
    assert course_map.levels(NEEDS) == {"01": 0, "02": 1, "03": 2, "04": 3, "05": 3, "06": 4}
    at = course_map.places(NEEDS)
    assert len(set(at.values())) == len(NEEDS), "two boxes in one place"
    assert at["06"][0] == (at["04"][0] + at["05"][0]) / 2


def test_an_arrow_only_where_no_lesson_stands_between():
    assert course_map.arrows(NEEDS) == [
        ("01", "02"),
        ("02", "03"),
        ("03", "04"),
        ("03", "05"),
        ("04", "06"),
        ("05", "06"),
    ]


def test_lessons_that_need_each_other_are_named():
    with pytest.raises(ValueError, match="lessons 01 and 02 and 01 need each other; allowed: no circle"):
        course_map.levels({"01": ("02",), "02": ("01",)})


def test_the_map_of_the_course_has_every_lesson_and_overlaps_nowhere():
    lessons = read_lessons([])
    drawn = course_map.draw(lessons)
    boxes = [tuple(map(int, box)) for box in re.findall(r'<rect x="(\d+)" y="(\d+)"', drawn)]
    assert len(boxes) == len(lessons) == len(re.findall("<a href=", drawn))
    for i, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:i]:
            assert abs(x - other_x) >= course_map.WIDTH or abs(y - other_y) >= course_map.HEIGHT
    longest = max(map(len, re.findall(r'<text x="\d+" y="\d+">(.*?)</text>', drawn)))
    assert longest <= 18, "a line that is longer than its box"


# --- a lesson's page --------------------------------------------------------------------------------------------------


def test_a_lesson_is_read(lesson):
    found = lesson(executed('teach.check("01.2", answer)'), needs="lessons 02 (loops in 3.11), 03 and 0.04")
    assert (found.number, found.title, found.summary) == ("01", "A title", "What it is about, in two lines.")
    assert (found.needs, found.exercises) == (("02", "03"), ("01.2",))


def test_a_figure_becomes_a_file_and_a_source_code(lesson, tmp_path):
    page = f'<img class="figure" width="820" alt="Two bars." src="data:image/png;base64,{PNG}">'
    source = {"text/html": "<style></style>", "text/latex": r"\begin{Verbatim}", "text/plain": "def f():\n    pass\n"}
    found = lesson(executed("draw()", **{"text/html": page}), executed("show(f)", **source))
    rewritten = page_notebook(found, [found], tmp_path / "figures", {"01_name"})
    shown = rewritten.cells[1].outputs[0].data["text/html"]
    assert 'alt="Two bars." src="../figures/01/001_0.png"' in shown and "base64" not in shown
    assert (tmp_path / "figures/01/001_0.png").read_bytes() == base64.b64decode(PNG)
    assert rewritten.cells[2].outputs[0].data == {"text/markdown": "````python\ndef f():\n    pass\n````"}
    assert "base64" in found.notebook.cells[1].outputs[0].data["text/html"], "the notebook to download stays whole"


def test_links_lead_to_pages_and_what_is_missing_becomes_text(lesson):
    here = lesson()
    text = "[terms](../GLOSSARY.md) [next](01_name.ipynb#a) [no](99_gone.ipynb) [web](https://a.b/c) "
    text += "[deck](../slides/01_name.ipynb) [no deck](../slides/02_b.ipynb) `[x](y.py)`"
    assert rewrite_links(text, [here], {"01_name"}) == (
        "[terms](../glossary.md) [next](01_name.ipynb#a) no [web](https://a.b/c) "
        '<a href="../slides/01_name.html">deck</a> no deck `[x](y.py)`'
    )


def test_colab_is_offered_where_the_repository_is_known(lesson):
    assert "colab" not in toolbar(lesson(), set())
    link = 'href="https://colab.research.google.com/github/me/course/blob/main/notebooks/01_name.ipynb"'
    assert link in toolbar(lesson(), set(), "https://github.com/me/course")


def test_lesson_numbers_become_links_where_lessons_are_named(lesson):
    first, second = lesson(number="01"), lesson(number="02")
    text = "In lesson 01.\n\n**Next:** lesson 01, 0.01 and 02, 99, [after 01: x](01_name.ipynb)."
    assert name_lessons(text, second, [first, second]) == (
        "In lesson 01.\n\n**Next:** lesson [01](01_name.ipynb), 0.01 and 02, 99, [after 01: x](01_name.ipynb)."
    )


def test_a_term_is_found_where_it_is_introduced(lesson):
    text = ("## First\n\nA `window` and the clipping.", "## Second\n\nThis is **Clipping by norm**.", "## Second\n\nx")
    found = lesson(*map(new_markdown_cell, text))
    assert [section.anchor for section in sections(found)][1:] == ["first", "second", "second-1"]
    assert find_term(found, "clipping").anchor == "second"
    assert find_term(found, "window").anchor == "first"
    assert find_term(found, "gone") is None
    table = "# Terms\n\n## The loop (01)\n\n| term | meaning |\n|---|---|\n| clipping | a limit |\n| gone | x |\n"
    page = glossary.page(table, [found])
    assert '| <span id="term-clipping"></span>[clipping](lessons/01_name.ipynb#second) | a limit |' in page
    assert "[gone](lessons/01_name.ipynb) | x |" in page and "| term | meaning |" in page


# --- links, docstrings, bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="gone.html">', "leads to gone.html, which is not there"),
        ('<a href="b.html#gone">', "leads to b.html#gone: the page has no such anchor"),
        ('<img src="https://a.b/c.png">', "loads https://a.b/c.png from elsewhere"),
        ('<script src="//a.b/c.js">', "loads //a.b/c.js from elsewhere"),
        ('<a href="https://a.b"></a><a href="b.html#here"></a><a href="#me" id="me"></a><img src="data:,">', ""),
    ],
)
def test_a_broken_link_is_seen(text, fault, tmp_path):
    (tmp_path / "a.html").write_text(text)
    (tmp_path / "b.html").write_text('<p id="here">')
    assert links.problems(tmp_path) == ([f"a.html: {fault}"] if fault else [])


def test_a_style_sheet_that_loads_from_elsewhere_is_seen(tmp_path):
    text = '/* url(https://c.d) */ @import "https://a.b/font.css"; p { background: url(x.png) }'
    (tmp_path / "a.css").write_text(text)
    assert links.problems(tmp_path) == ["a.css: loads https://a.b/font.css from elsewhere"]


def test_docstrings_for_people_become_sound_restructuredtext():
    from docutils.core import publish_doctree
    from docutils.utils import Reporter

    lines = ["Of |x| and eval_ and *args, ``a|b``; \\n.", "", "    python -m course --flag \\", "        more", "End."]
    tidy_docstring(None, "module", "m", None, None, lines)
    tree = publish_doctree("\n".join(lines), settings_overrides={"report_level": Reporter.SEVERE_LEVEL + 1})
    assert "Of |x| and eval_ and *args, a|b; \\n." in tree.astext()
    assert "python -m course --flag \\\n    more" in tree.astext()
    assert "system_message" not in tree.pformat()


def test_the_reference_has_every_package_but_lessons_and_authoring():
    found = api.modules()
    assert "course_utils.training.optim" in found["course_utils.training"]
    assert found["course_utils"][0] == "course_utils" and "course_utils.errors" in found["course_utils"]
    assert not [package for package in found if "lessons" in package or "authoring" in package]


def test_bad_input_gives_one_sentence(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for arguments, sentence in {
        ("99",): "error: lesson='99' does not exist in .*; allowed: 01, 02, ",
        ("01", "--out", str(tmp_path / "mine")): "error: out=.*mine holds files that are not a site; allowed: a new ",
    }.items():
        assert build.main(list(arguments)) == 2
        assert re.match(sentence, capsys.readouterr().err)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_lesson_without_a_title_or_a_run_is_refused(lesson, tmp_path):
    with pytest.raises(SiteError, match="code cell 2 has no result"):
        lesson(new_code_cell("x = 1"))
    nbformat.write(new_notebook(cells=[new_markdown_cell("No title")]), tmp_path / "02_b.ipynb")
    with pytest.raises(SiteError, match="02_b.ipynb has no title; allowed: a first cell with '# NN · Title'"):
        read_lesson(tmp_path / "02_b.ipynb")


def test_a_warning_of_sphinx_stops_the_build(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text("# A page\n\n[a link](gone.md) and $\\nosuchcommand$\n")
    with pytest.raises(SiteError, match="Sphinx warns:") as caught:
        build.run_sphinx(tmp_path / "source", tmp_path / "site", tmp_path / "trees")
    assert "gone.md" in str(caught.value) and "nosuchcommand" in str(caught.value)
