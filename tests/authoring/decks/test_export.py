"""Decks without a browser: what the page holds, formulas, one clear sentence for every deck that cannot be built."""

from __future__ import annotations

import re
import subprocess
import sys

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_output

from course_utils.authoring import build
from course_utils.authoring.decks import build as slides
from course_utils.authoring.decks import deck as deck_ground
from course_utils.authoring.decks.export import LOOK_SECONDS, mathml
from tests.authoring.decks.throwaway_deck import NUM_SLIDES, RISE, code, deck, save, slide

DECKS = sorted(slides.DECKS.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture
def page(tmp_path) -> str:
    return slides.build_deck(save(deck(), tmp_path), tmp_path / "html").path.read_text()


# --- the page ---------------------------------------------------------------------------------------------------------


def test_page_is_self_contained(page):
    soup = BeautifulSoup(page, "html.parser")
    addresses = [tag.get("src") or tag.get("href") for tag in soup.select("[src], [href]")]
    assert addresses and all(address.startswith("data:") for address in addresses)
    styles = "".join(style.text for style in soup.select("style"))
    assert "@import" not in styles and not re.search(r"url\((?![\"']?data:)", styles)
    assert "reveal.js 5" in page and "RevealNotes" in page
    assert len(soup.select("script")) == 3  # reveal.js, its notes plugin, the call that starts them: no MathJax


def test_hidden_input_and_skipped_cells_stay_out(page):
    assert "secret_of_the_figure" not in page
    assert "import math" not in page
    assert 'alt="A rising line."' in page


def test_input_of_an_untagged_cell_is_shown_with_its_output(tmp_path):
    shown = code("print(6 * 7)", new_output("stream", name="stdout", text="42\n"))
    page = slides.build_deck(save(deck(slide("## Live"), shown), tmp_path), tmp_path).path.read_text()
    assert '<span class="mi">6</span>' in page and '<pre class="output">42\n</pre>' in page


def test_notes_stand_before_the_fragments_they_follow(page):
    third = page.split("<section")[3]
    assert third.index("Walk through it.") < third.index('<div class="fragment">')


def test_every_slide_is_numbered_and_named(page):
    footers = re.findall(r"<footer><span>(.*?)</span><span>(.*?)</span></footer>", page)
    assert footers == [("00 · A throwaway deck", f"{n} / {NUM_SLIDES}") for n in range(1, NUM_SLIDES + 1)]


def test_subslides_become_slides(tmp_path):
    nb = deck(slide("## Below", "subslide"), slide("Note.", "notes"))
    built = slides.build_deck(save(nb, tmp_path), tmp_path)
    assert built.num_slides == NUM_SLIDES
    assert built.path.read_text().count("<section") == built.path.read_text().count("</section>") == NUM_SLIDES


def test_index_lists_decks_built_earlier_too(tmp_path, capsys):
    for name in ("01_one", "02_two"):
        save(deck(), tmp_path, name)
        assert slides.main([name, "--decks", str(tmp_path), "--out", str(tmp_path / "html")]) == 0
    index = (tmp_path / "html" / "index.html").read_text()
    assert re.findall(r'href="(\d.*?)"', index) == ["01_one.html", "02_two.html"]
    assert f"{NUM_SLIDES} slides" in index
    assert deck_ground.course_name() in index
    assert f"02_two.html: {NUM_SLIDES} slides" in capsys.readouterr().out


def test_index_leads_to_the_lessons(tmp_path):
    out = tmp_path / "html"
    built = slides.build_deck(save(deck(), tmp_path, "01_training_loop"), out)
    index = slides.write_index([built], out).read_text()
    (lesson,) = re.findall(r'href="([^"]*)">lesson<', index)
    assert (out / lesson).resolve() == deck_ground.NOTEBOOKS / "01_training_loop.ipynb"
    index = slides.write_index([built], out, {"01_training_loop": "../lessons/01_training_loop.html"}).read_text()
    assert re.findall(r'href="([^"]*)">lesson<', index) == ["../lessons/01_training_loop.html"]


def test_a_slide_is_timed_by_its_notes(page, tmp_path):
    spoken = slide("word " * 65, "notes")
    cells = (slide("## Much to say"), spoken, slide("Then this. " * 65, "notes"))
    longer = slides.build_deck(save(deck(*cells), tmp_path), tmp_path)
    timings = [int(n) for n in re.findall(r'<section[^>]* data-timing="(\d+)"', longer.path.read_text())]
    assert timings[-1] == LOOK_SECONDS + 90, "65 and 130 words at 130 a minute"
    assert len(timings) == NUM_SLIDES and longer.minutes == round(sum(timings) / 60)


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_formulas_become_mathml_and_code_keeps_its_dollars(page):
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert body.count("<math") == 2 and body.count("<mfrac>") == 1
    assert "$HOME stays text" in body and "$$" not in body and r"\theta" not in body


def test_aligned_lines_become_a_table():
    formula = mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "block")
    assert formula.count("<mtr>") == 2 and "&amp;" not in formula


def test_function_names_keep_their_distance():
    assert '<mo lspace="0.167em" rspace="0.167em">log</mo><mi>p</mi>' in mathml(r"\log p", "inline")


@pytest.mark.parametrize("latex", [r"\frobnicate x", r"\frac{a}", r"a & b", r"\sqrt{", r"x_"])
def test_formula_that_would_print_garbage_is_refused(latex):
    with pytest.raises(ValueError, match="formula"):
        mathml(latex, "inline")


# --- errors -----------------------------------------------------------------------------------------------------------


def unexecuted(nb):
    nb.cells[0].execution_count = None


def failed(nb):
    nb.cells[0].outputs.append(new_output("error", ename="ZeroDivisionError", evalue="", traceback=[]))


def untitled(nb):
    nb.cells[1].source = "No heading"


def unknown_command(nb):
    nb.cells[3].source = r"## Math $\frobnicate$"


def notes_first(nb):
    nb.cells.insert(1, slide("Hello.", "notes"))


def nothing_to_show(nb):
    nb.cells = nb.cells[:1]


BROKEN = {
    unexecuted: "was not executed",
    failed: "stopped with ZeroDivisionError in cell 1",
    untitled: "has no title",
    unknown_command: "frobnicate",
    notes_first: "starts with notes",
    nothing_to_show: "has no slide",
}


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.__name__)
def test_broken_deck_gives_one_sentence_and_keeps_the_old_page(fault, tmp_path, capsys):
    nb = deck()
    fault(nb)
    save(nb, tmp_path)
    old = tmp_path / "html" / "00_throwaway.html"
    old.parent.mkdir()
    old.write_text("the old page")
    assert slides.main(["00", "--decks", str(tmp_path), "--out", str(old.parent)]) == 2
    error = capsys.readouterr().err
    assert BROKEN[fault] in error and error.startswith("error: ") and error.count("\n") == 1
    assert old.read_text() == "the old page" and list(old.parent.iterdir()) == [old]


def test_missing_decks_give_one_sentence(tmp_path, capsys):
    def error(*arguments: str) -> str:
        assert slides.main([*arguments, "--decks", str(tmp_path), "--out", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert "no deck in" in error()
    (tmp_path / "01_written.py").write_text("# %%\n")
    assert "deck='77' does not exist" in error("77") and "allowed: 01" in error("77")
    assert "01_written.ipynb is missing" in error("01") and "make notebooks" in error("01")
    (tmp_path / "01_written.ipynb").write_text("{ half a noteb")
    assert "not a notebook that can be read" in error("01")


def test_command_line_prints_the_sentence_without_a_traceback(tmp_path):
    nb = deck()
    unknown_command(nb)
    save(nb, tmp_path)
    command = [sys.executable, "-m", "course_utils.authoring.decks.build", "--decks", tmp_path, "--out", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr


def test_interrupted_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "deck.html"
    slides.write_whole(target, "old")
    with pytest.raises(UnicodeEncodeError):
        slides.write_whole(target, "new \ud800")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


# --- the committed decks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", DECKS, ids=lambda path: path.stem)
def test_deck_is_ready_for_jupyterlab(notebook):
    assert nbformat.read(notebook, as_version=4).metadata.get("rise") == RISE, "run `make notebooks FORCE=--force`"


def test_jupyterlab_theme_brings_its_own_fonts():
    # The other themes of jupyterlab-rise ask fonts.googleapis.com, as tests/browser shows for the default.
    assert RISE["theme"] in ("white", "black")


def test_build_puts_the_settings_into_a_deck(tmp_path):
    (tmp_path / "theme").mkdir()
    (tmp_path / "theme" / "rise.json").write_text('{"theme": "white"}')
    source = tmp_path / "01_tiny.py"
    source.write_text('# %% [markdown] slideshow={"slide_type": "slide"}\n# # 01 · Tiny\n# %%\n1 + 1\n')
    build.build(source, source.with_suffix(".ipynb"))
    assert nbformat.read(source.with_suffix(".ipynb"), as_version=4).metadata["rise"] == {"theme": "white"}
    assert slides.build_deck(source.with_suffix(".ipynb"), tmp_path).title == "01 · Tiny"
