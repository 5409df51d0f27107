"""Every lesson and deck keeps the lesson format; each rule is shown to notice a planted fault."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from course_utils.authoring import build
from tests.lessons import rules as rules

ROOT = build.ROOT
LESSONS = [n for n in build.targets().values() if n.parent.name == "notebooks"]
DECKS = [n for n in build.targets().values() if n.parent.name == "slides"]


def read(path: Path) -> nbformat.NotebookNode:
    if not path.exists():
        pytest.fail(f"{path.name} is not built: run `make notebooks`")
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("rule", rules.LESSON_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson(lesson, rule):
    assert rule(read(lesson)) == []


@pytest.mark.parametrize("rule", rules.DECK_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("deck", DECKS, ids=lambda path: f"deck-{path.stem}")
def test_deck(deck, rule):
    assert rule(read(deck)) == []


def test_every_lesson_has_a_deck_and_every_deck_a_lesson():
    assert {path.stem for path in DECKS} == {path.stem for path in LESSONS}


def test_readme_lists_every_lesson():
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for lesson in LESSONS:
        assert any(f"notebooks/{lesson.name}" in row for row in rows), f"README's table has no row for {lesson.name}"


# --- each rule on a lesson that keeps all of them, and with one fault planted -----------------------------------------

CODE, TEXT = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
START = "from course_utils import teach\n\nteach.start(source=source, max_steps=max_steps, seed=seed, batch_size=8)"


def good_lesson() -> nbformat.NotebookNode:
    page = '<img class="figure" alt="A line." src="data:image/png;base64,AAAA">'
    image = nbformat.v4.new_output("display_data", {"text/html": page, "text/plain": "Figure: A line."})
    cells = [
        TEXT("# 01 · A lesson\nYou will be able to read. **Minutes:** 5 · **Prerequisites:** none"),
        CODE("source = 'local'\nmax_steps = 3\nseed = 0", metadata={"tags": ["parameters"]}),
        CODE(START),
        TEXT("## 1 What goes wrong"),
        CODE("show()", outputs=[image]),
        CODE("t = 2\nassert t < 3\nprint(t)", metadata={"tags": ["nbval-ignore-output"]}),
        TEXT("## Exercises"),
        CODE('teach.check("01.1", f)', outputs=[nbformat.v4.new_output("stream", text="○ 01.1: not attempted yet.\n")]),
        CODE('teach.check("01.2", g)'),
        TEXT("## Recap"),
        TEXT("## Quiz\n<details><summary>Answer</summary>\n\nYes.\n\n</details>"),
        TEXT("**Next:** lesson 02"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize("rule", rules.LESSON_RULES, ids=lambda rule: rule.__name__)
def test_a_good_lesson_passes(rule):
    assert rule(good_lesson()) == []


def printed(text: str):
    return lambda nb: nb.cells[4].outputs.append(nbformat.v4.new_output("stream", text=text))


@pytest.mark.parametrize(
    ("rule", "plant", "message"),
    [
        (rules.parameters_first, lambda nb: nb.cells[1].metadata.update(tags=[]), "not tagged parameters"),
        (rules.parameters_first, lambda nb: nb.cells[1].update(source="seed = 0"), "max_steps, source"),
        (rules.opening_call, lambda nb: nb.cells[2].update(source=START.partition("\n")[0]), "does not begin"),
        (rules.opening_call, lambda nb: nb.cells[2].update(source="import torch\n" + START), "does not begin"),
        (rules.opening_call, lambda nb: nb.cells.insert(2, CODE("import torch")), "does not begin"),
        (rules.opening_call, lambda nb: nb.cells[2].update(source=START.replace("teach.start", "start")), "not begin"),
        (rules.opening_call, lambda nb: nb.cells.pop(2), "does not begin"),
        (rules.opening_call, lambda nb: nb.cells[2].update(source="teach.start()"), "source=source, max_steps=max_"),
        (rules.opening_call, lambda nb: nb.cells[2].update(source=START.replace("=max_steps", "=3")), "max_steps=max_"),
        (rules.opening_call, lambda nb: nb.cells[2].update(source=START.replace("seed=seed", "seed=0")), "seed=seed"),
        (rules.known_tags, lambda nb: nb.cells[4].metadata.update(tags=["nbval-ignore"]), "'nbval-ignore'"),
        (rules.known_tags, lambda nb: nb.cells[4].metadata.update(tags=["nbval-skip"]), "'nbval-skip'"),
        (rules.ignored_cells_assert, lambda nb: nb.cells[5].update(source="print(2)  # assert"), "asserts nothing"),
        (rules.ignored_cells_assert, lambda nb: nb.cells[5].metadata.update(tags=["strip-output"]), "without nbval"),
        (rules.compared_share, lambda nb: [c.metadata.update(tags=["nbval-ignore-output"]) for c in nb.cells], "0% of"),
        (rules.short_cells, lambda nb: [c.update(source="x = 1\n" * 11) for c in nb.cells], "has 11 lines"),
        (rules.sections, lambda nb: nb.cells.pop(3), "what goes wrong"),
        (rules.sections, lambda nb: nb.cells.pop(6), "exercises"),
        (rules.sections, lambda nb: nb.cells.pop(9), "recap"),
        (rules.sections, lambda nb: nb.cells.pop(10), "quiz"),
        (rules.sections, lambda nb: nb.cells.pop(0), "title"),
        (rules.sections, lambda nb: nb.cells[10].update(source="## Quiz\n<details>"), "not closed"),
        (rules.exercises_checked, lambda nb: nb.cells.pop(7), "fewer than two"),
        (
            rules.images_have_alt_text,
            lambda nb: nb.cells[4].outputs[0].data.update({"text/html": "<img>"}),
            "alternative text",
        ),
        (
            rules.images_have_alt_text,
            lambda nb: nb.cells[4].outputs[0].data.update({"image/png": "x"}),
            "alternative text",
        ),
        (rules.images_have_alt_text, lambda nb: nb.cells[3].update(source="![](a.png)"), "alternative text"),
        (rules.quiet_outputs, printed(" 42%|████      | 42/100 [00:01<00:02, 25.3it/s]"), "progress bar"),
        (rules.quiet_outputs, printed("<stdin>:1: FutureWarning: old"), "warning"),
        (rules.quiet_outputs, printed("saved to /tmp/tmpabc/checkpoint-3"), "path of the machine"),
        (rules.quiet_outputs, printed("('/home/me/.cache')"), "path of the machine"),
        (rules.quiet_outputs, printed("<object at 0x7f00aa11bb22>"), "address in memory"),
        (rules.quiet_outputs, printed("<progress value='3' max='3'></progress>"), "progress table"),
    ],
)
def test_a_planted_fault_is_noticed(rule, plant, message):
    lesson = good_lesson()
    plant(lesson)
    assert message in "\n".join(rule(lesson))


def test_the_trainers_own_table_may_stand_where_outputs_are_not_compared():
    lesson = good_lesson()
    table = nbformat.v4.new_output("display_data", {"text/html": "<progress value='3' max='3'></progress>"})
    lesson.cells[5].outputs.append(table)
    assert rules.quiet_outputs(lesson) == []
    lesson.cells[5].outputs.append(nbformat.v4.new_output("stream", text="  3%|#  | 1/30 [00:01<00:02, 9.1it/s]"))
    assert "a progress bar" in rules.quiet_outputs(lesson)[0]


def test_urls_and_words_are_no_paths():
    lesson = good_lesson()
    printed("https://example.org/home/a and input/work/x, 3/tmp\nTensor of shape (2, 3)")(lesson)
    assert rules.quiet_outputs(lesson) == []
