"""README, glossary and issue forms say what is so: links, lesson table, make targets, modules."""

import json
import re
from pathlib import Path

import pytest

from course_utils.authoring import picture
from course_utils.teach import start_page

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = start_page.lessons(README)
LESSONS = sorted(path.stem for path in (ROOT / "notebooks" / "source").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "GLOSSARY.md", "slides/README.md"])
def test_links_lead_to_files(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_table_has_every_lesson_once():
    assert [row.name for row in ROWS] == LESSONS


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_row_says_what_the_lesson_has(lesson):
    from course_utils.authoring import mould
    from course_utils.authoring.seal import cells_of
    from course_utils.teach import exercise

    number, _, name, notebook, exercises, deck, minutes = next(row for row in ROWS if row.name == lesson)
    assert (notebook, deck) == (f"notebooks/{name}.ipynb", f"slides/{name}.ipynb")
    with pytest.raises(ValueError) as caught:
        exercise.find(f"{number}.999")
    known = str(caught.value).partition("allowed in lesson")[2].partition(": ")[2].split(", ")
    assert len(known) == int(exercises)
    path = ROOT / "notebooks" / "source" / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    core, everything = mould.sizes(cells_of(path).cells)
    assert minutes == (f"{core.minutes} / {everything.minutes}" if core != everything else f"{core.minutes}")
    assert sorted(set(re.findall(r'teach\.check\("(.+?)"', source))) == sorted(known)


def test_commands_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = re.sub(r"apt-get install [^`]*", "", README + CONTRIBUTING)
    used = set(re.findall(r"[`\n]make (?:[A-Z]+=\S+ )?([a-z-]+)", text))
    assert {"course", "lab", "test", "slides", "notebooks", "bench", "clean"} <= used <= set(targets)
    for module in re.findall(r"python -m (course_utils[\w.]+)", README + CONTRIBUTING):
        place = ROOT.joinpath(*module.split("."))
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module


def test_the_tree_is_the_one_that_is_there():
    lines = re.search(r"```\nREADME\.md.*?```", CONTRIBUTING, re.DOTALL)[0].splitlines()[1:-1]
    inside, beside = (
        {line.split()[0].rstrip("/") for line in lines if line.startswith("  ") == inner} for inner in (1, 0)
    )
    assert all((ROOT / name).exists() or "NN" in name for name in beside - {"work"})
    rooms = {path.name for path in (ROOT / "course_utils").iterdir() if not path.name.startswith("__")}
    assert {name.replace("lessons/lesson_NN", "lessons") for name in inside} == rooms - {"lazy.py"}


def test_the_picture_is_a_lessons_figure_with_its_alternative_text():
    alt, shown = re.search(r"!\[(.+?)\]\((.+?)\)", README).groups()
    assert ROOT / shown == picture.PICTURE and picture.PICTURE.read_bytes().startswith(b"\x89PNG")
    assert picture.PICTURE.stat().st_size < 100_000
    assert alt == picture.chosen()[0], "run python -m course_utils.authoring.picture and copy the text it prints"


def dead_ends(text: str, folder: Path) -> list[str]:
    """What ``text`` says of lessons that do not exist: numbers after "lesson", and links from ``folder``."""
    numbers = {name[:2] for name in LESSONS}
    said = re.findall(r"\b[Ll]essons? (\d\d)\b(?:(?:, | and | to )(\d\d)\b)*", text)
    linked = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:|#|attachment:)([^)\s]+)\)", text)]
    return [f"lesson {n}" for pair in said for n in pair if n and n not in numbers] + [
        link for link in linked if not (folder / link).exists()
    ]


@pytest.mark.parametrize("lesson", LESSONS)
def test_no_link_or_sentence_of_a_lesson_points_at_one_that_does_not_exist(lesson):
    for source in (ROOT / "notebooks" / "source" / f"{lesson}.py", ROOT / "slides" / f"{lesson}.py"):
        lines = source.read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if line.startswith("#"))
        assert dead_ends(text, ROOT / source.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "GLOSSARY.md"])
def test_no_document_points_at_a_lesson_that_does_not_exist(document):
    assert dead_ends((ROOT / document).read_text(encoding="utf-8"), ROOT) == []


def test_a_dead_end_is_noticed():
    planted = (
        "**Next:** lesson 16 goes on; see lessons 03 and 17, [here](16_next.ipynb), [there](01_training_loop.ipynb)"
    )
    assert dead_ends(planted, ROOT / "notebooks") == ["lesson 16", "lesson 17", "16_next.ipynb"]


@pytest.mark.parametrize("lesson", LESSONS[:-1])
def test_next_is_a_link_at_the_end_of_a_lesson(lesson):
    following = LESSONS[LESSONS.index(lesson) + 1]
    text = (ROOT / "notebooks" / "source" / f"{lesson}.py").read_text(encoding="utf-8")
    ends = re.findall(r"\*\*Next:\*\* \[[^\]]+\]\((.+?)\)", text)
    assert ends == [f"{following}.ipynb"]


def test_names_on_the_hub_are_those_of_the_code():
    from course_utils.hub import HUB_NAMES

    section = README.split("## Use the hub")[1].split("\n## ")[0]
    named = {name for name in re.findall(r"`([\w-]+/[\w.-]+)`", section)}
    assert named == set(HUB_NAMES.values()) - {HUB_NAMES["glue"]}


def test_issue_forms_citation_and_devcontainer_are_well_formed():
    import yaml

    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "config":
            assert {"name", "description", "body"} <= set(form)
            fields = [item for item in form["body"] if item["type"] != "markdown"]
            assert all(item["id"] and item["attributes"]["label"] for item in fields)
            assert not any(lesson in path.read_text(encoding="utf-8") for lesson in LESSONS), (
                "a list to be kept up to date"
            )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"].startswith("make setup && ")
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")
