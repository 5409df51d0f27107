"""Every committed notebook is the untouched result of executing its source, and none holds an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest

from course_utils.authoring import build

PAIRS = build.targets()


@pytest.mark.parametrize("source", PAIRS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_is_what_its_source_gives(source: Path):
    assert not build.disagreements(source, PAIRS[source])


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
    assert build.build(source, notebook) == 4
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
    assert build.disagreements(source, notebook) == []
    assert build.is_current(source, notebook)
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
    found = "\n".join(build.disagreements(source, notebook))
    assert "different cells, first at cell 4" in found and "another version" in found
    assert not build.is_current(source, notebook)


def test_a_comment_between_cells_changes_the_hash(copy):
    source, notebook = copy
    source.write_text(TINY + "# one more line\n")
    assert build.disagreements(source, notebook)


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
    assert message in "\n".join(build.disagreements(source, notebook))


def test_a_missing_notebook_is_noticed(copy):
    source, notebook = copy
    notebook.unlink()
    assert "missing" in build.disagreements(source, notebook)[0]


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
