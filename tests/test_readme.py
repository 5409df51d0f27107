"""README, glossary and issue forms say what is so: links, lesson table, make targets, modules."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| (\d\d) .+? \| \[(\w+)\]\((.+?)\) \| (\d+) \| \[deck\]\((.+?)\) \| (\d+(?: / \d+)?) \|$", re.MULTILINE
)
LESSONS = sorted(path.stem for path in (ROOT / "notebooks" / "source").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("document", ["README.md", "GLOSSARY.md", "slides/README.md"])
def test_links_lead_to_files(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_table_has_every_lesson_once():
    assert [row[1] for row in ROW.findall(README)] == LESSONS


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_row_says_what_the_lesson_has(lesson):
    from course_utils.authoring import mould
    from course_utils.authoring.seal import cells_of
    from course_utils.teach import exercise

    number, name, notebook, exercises, deck, minutes = next(row for row in ROW.findall(README) if row[1] == lesson)
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
    text = re.sub(r"apt-get install [^`]*", "", README)
    used = set(re.findall(r"[`\n]make (?:[A-Z]+=\S+ )?([a-z-]+)", text))
    assert {"course", "lab", "test", "slides", "notebooks", "bench", "clean"} <= used <= set(targets)
    for module in re.findall(r"python -m (course_utils[\w.]+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_the_tree_is_the_one_that_is_there():
    lines = re.search(r"```\nREADME\.md.*?```", README, re.DOTALL)[0].splitlines()[1:-1]
    inside, beside = (
        {line.split()[0].rstrip("/") for line in lines if line.startswith("  ") == inner} for inner in (1, 0)
    )
    assert all((ROOT / name).exists() or "NN" in name for name in beside)
    rooms = {path.name for path in (ROOT / "course_utils").iterdir() if not path.name.startswith("__")}
    assert {name.replace("lessons/lesson_NN", "lessons") for name in inside} == rooms - {"lazy.py"}


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
    assert container["postCreateCommand"] == "make setup"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")
