"""Every committed notebook is the untouched result of executing its source, and none holds an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest

from course_utils.authoring import build, seal

PAIRS = build.targets()


@pytest.mark.parametrize("source", PAIRS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_is_what_its_source_gives(source: Path):
    assert not seal.disagreements(source, PAIRS[source])


def test_no_notebook_without_a_source():
    present = {*(build.ROOT / "notebooks").glob("*.ipynb"), *(build.ROOT / "slides").glob("*.ipynb")}
    assert present <= set(PAIRS.values())


# --- the checks themselves, on a lesson of four cells -----------------------------------------------------------------

TINY = """# %% [markdown]
# # A lesson
# %% tags=["parameters"]
max_steps = 3
# %%
import sys
for step in range(max_steps):
    print("step", step, flush=True)
# %% tags=["nbval-ignore-output", "strip-output"]
print("a sentence of somebody else's")
# %%
max_steps + 1
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    source, notebook = folder / "01_tiny.py", folder / "01_tiny.ipynb"
    source.write_text(TINY)
    assert build.build(source, notebook) == (4, False)
    return source, notebook


@pytest.fixture
def copy(built, tmp_path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copy(path, tmp_path)) for path in built)


def edit(notebook: Path, change) -> None:
    content = nbformat.read(notebook, as_version=4)
    change(content)
    nbformat.write(content, notebook)


def test_a_fresh_build_agrees_and_tagged_outputs_are_gone(copy):
    source, notebook = copy
    assert seal.disagreements(source, notebook) == []
    assert seal.is_current(source, notebook)
    cells = nbformat.read(notebook, as_version=4).cells
    assert cells[2].outputs[0].text == "step 0\nstep 1\nstep 2\n"
    assert cells[3].outputs == [] and cells[3].execution_count == 3
    text = notebook.read_text()
    assert "somebody else's\\n" not in text and "papermill" not in text and "iopub" not in text


def test_a_second_build_gives_the_same_bytes(copy):
    source, notebook = copy
    first = notebook.read_bytes()
    build.build(source, notebook)
    assert notebook.read_bytes() == first


def test_an_edited_source_is_noticed(copy):
    source, notebook = copy
    source.write_text(TINY.replace("max_steps + 1", "max_steps + 2"))
    found = "\n".join(seal.disagreements(source, notebook))
    assert "different cells, first at cell 4" in found and "another version" in found
    assert not seal.is_current(source, notebook)


def test_a_comment_between_cells_changes_the_hash(copy):
    source, notebook = copy
    source.write_text(TINY + "# one more line\n")
    assert seal.disagreements(source, notebook)


# --- helpers and figures are sealed, too -----------------------------------------------------------------------------

TIMED = """# %%
from course_utils.training.schedules import constant
print(constant(3))
# %% tags=["nbval-ignore-output"]
import time
assert time.time() > 0
print(time.time())
"""
SCHEDULES = build.ROOT / "course_utils" / "training" / "schedules.py"
FIGURES = build.ROOT / "course_utils" / "lessons" / "lesson_03" / "figures.py"


def edited(monkeypatch, *paths: Path) -> None:
    """As if ``paths`` held another text."""
    real = seal.text_sha256
    monkeypatch.setattr(seal, "text_sha256", lambda path: "0" * 64 if path in paths else real(path))


def texts(notebook: Path) -> list[str]:
    return ["".join(o.text for o in cell.get("outputs", [])) for cell in nbformat.read(notebook, as_version=4).cells]


@pytest.fixture
def timed(tmp_path) -> tuple[Path, Path]:
    source, notebook = tmp_path / "01_timed.py", tmp_path / "01_timed.ipynb"
    source.write_text(TIMED)
    build.build(source, notebook)
    return source, notebook


def test_a_new_colour_turns_lesson_and_deck_03_red_and_no_other(monkeypatch):
    before = {notebook for source, notebook in PAIRS.items() if not seal.disagreements(source, notebook)}
    edited(monkeypatch, FIGURES)
    red = {notebook for source, notebook in PAIRS.items() if seal.disagreements(source, notebook)}
    assert {notebook.stem for notebook in red & before} == {"03_trainer"} and len(red & before) == 2
    sentence = "03_trainer.ipynb was built with another version of course_utils/lessons/lesson_03/figures.py"
    assert all(sentence in seal.disagreements(s, n)[0] for s, n in PAIRS.items() if n in red)


def test_a_changed_helper_is_noticed_and_a_rebuild_with_the_same_results_changes_only_the_seal(timed, monkeypatch):
    source, notebook = timed
    before = texts(notebook)
    edited(monkeypatch, SCHEDULES)
    assert seal.disagreements(source, notebook) == [
        "01_timed.ipynb was built with another version of course_utils/training/schedules.py: run `make notebooks`"
    ]
    assert not seal.is_current(source, notebook)
    assert build.build(source, notebook) == (2, True)
    assert texts(notebook) == before and seal.disagreements(source, notebook) == []


def test_a_rebuild_takes_new_outputs_where_they_are_asked_for_differ_or_are_drawn_anew(timed, monkeypatch):
    source, notebook = timed
    before = texts(notebook)
    assert build.build(source, notebook, force=True) == (2, False)
    assert texts(notebook)[0] == before[0] and texts(notebook)[1] != before[1]
    source.write_text(TIMED.replace("constant(3)", "constant(3) + 1"))
    assert build.build(source, notebook) == (2, False)
    monkeypatch.setattr(seal, "changed_files", lambda *_: ["course_utils/teach/charts.py"])
    assert build.build(source, notebook) == (2, False)


def test_prose_comments_and_imports_may_change_without_new_outputs(timed):
    source, notebook = timed
    before = texts(notebook)
    changed = TIMED.replace("import constant", "import constant, make_scheduler  # a comment")
    source.write_text("# %% [markdown]\n# # A heading\n" + changed)
    assert build.build(source, notebook) == (2, True)
    assert texts(notebook)[1:] == before and seal.disagreements(source, notebook) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nb: nb.cells[4].outputs[0].data.update({"text/plain": "5"}), "output its build did not write"),
        (lambda nb: nb.cells[2].outputs.clear(), "output its build did not write"),
        (lambda nb: nb.cells[1].update(execution_count=None), "not executed once from top to bottom"),
        (lambda nb: nb.cells[4].update(execution_count=9), "not executed once from top to bottom"),
        (lambda nb: nb.cells[2].update(source="print('step 0')"), "different cells"),
        (lambda nb: nb.cells.pop(0), "different cells"),
        (lambda nb: nb.cells[2].outputs[0].update(name="stderr"), "wrote to stderr"),
        (lambda nb: nb.cells[2].outputs.append(nbformat.v4.new_output("error", ename="KeyError")), "ended in KeyError"),
        (lambda nb: nb.metadata.pop("course"), "another version"),
    ],
)
def test_a_change_by_hand_is_noticed(copy, change, message):
    source, notebook = copy
    edit(notebook, change)
    assert message in "\n".join(seal.disagreements(source, notebook))


def test_a_missing_notebook_is_noticed(copy):
    source, notebook = copy
    notebook.unlink()
    assert "missing" in seal.disagreements(source, notebook)[0]


def test_a_failing_source_leaves_the_notebook_as_it_was(copy):
    source, notebook = copy
    before = notebook.read_bytes()
    source.write_text(TINY + "# %%\nraise KeyError('planted')\n")
    with pytest.raises(Exception, match="planted") as caught:
        build.build(source, notebook)
    assert notebook.read_bytes() == before
    assert sorted(p.name for p in notebook.parent.iterdir()) == ["01_tiny.ipynb", "01_tiny.py"]
    text = build.describe_failure(caught.value)
    assert "code cell 5 failed" in text and text.rstrip().endswith("KeyError: 'planted'")


def test_an_interrupted_write_leaves_the_notebook_as_it_was(copy, monkeypatch):
    source, notebook = copy
    before = notebook.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build.build(source, notebook)
    assert notebook.read_bytes() == before
    assert sorted(p.name for p in notebook.parent.iterdir()) == ["01_tiny.ipynb", "01_tiny.py"]


def test_kernel_is_this_environment(tmp_path):
    source, notebook = tmp_path / "02_where.py", tmp_path / "02_where.ipynb"
    source.write_text("# %%\nimport sys\nprint(sys.prefix)\n")
    build.build(source, notebook)
    import sys

    assert nbformat.read(notebook, as_version=4).cells[0].outputs[0].text.strip() == sys.prefix


def test_ctrl_c_ends_with_one_sentence(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "targets", lambda: {build.ROOT / "notebooks/source/99_x.py": build.ROOT / "99_x.ipynb"})
    monkeypatch.setattr(build, "build", interrupted)
    assert build.main(["--force"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted: 99_x.ipynb is as it was"


def test_a_name_that_is_no_source_is_one_sentence(capsys):
    assert build.main(["99"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: only=['99']: no such source; allowed: ") and printed.out == ""
