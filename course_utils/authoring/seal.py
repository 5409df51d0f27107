"""The seal of a built notebook: what it was built from, and that nobody changed its outputs since.

Its metadata hold hashes of the source, of every project file that the source's code uses (``closure``), and of the
outputs. ``disagreements`` names what breaks it: an edited source, a helper or figure that changed since, or an output
changed by hand.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from course_utils.authoring import mould
from course_utils.authoring.closure import ROOT, files_used

DRAWING = ("figures.py", "figure.py", "charts.py")  # where these changed, pictures that no test compares are drawn anew


def cells_of(source: Path) -> Any:
    """The notebook that ``source`` stands for, not executed: minutes computed, deeper sections folded."""
    import jupytext

    notebook = jupytext.read(source)
    mould.apply(notebook.cells)
    return notebook


def text_sha256(path: Path) -> str:
    """Hash of a text file; line ends do not count."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def files_sha256(source: Path) -> dict[str, str]:
    """The project files that the code of ``source`` uses, by path, with the first digits of their hashes."""
    used = files_used(source) | ({presentation(source)} & set(source.parent.glob("theme/*")))
    # relpath: a source that lies elsewhere (a test's) has its own theme beside it
    return {Path(os.path.relpath(path, ROOT)).as_posix(): text_sha256(path)[:12] for path in sorted(used)}


def presentation(source: Path) -> Path:
    """How JupyterLab presents a deck; a lesson has no such file."""
    return source.parent / "theme" / "rise.json"


def outputs_sha256(notebook: Any) -> str:
    """Hash of all outputs and execution counts of a notebook."""
    parts = [[c.execution_count, c.outputs] for c in notebook.cells if c.cell_type == "code"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def new_seal(source: Path, notebook: Any) -> dict[str, Any]:
    """What seals ``notebook``, an executed one, to the present state of the project."""
    hashes = {"source_sha256": text_sha256(source), "outputs_sha256": outputs_sha256(notebook)}
    return hashes | {"files": files_sha256(source)}


def is_current(source: Path, notebook: Path) -> bool:
    """True when ``notebook`` was built from the present text of ``source`` and of every file that it uses."""
    return notebook.exists() and not _broken_seal(source, notebook, seal_of(read(notebook)))


def _broken_seal(source: Path, notebook: Path, seal: dict[str, Any]) -> list[str]:
    """What changed since ``notebook`` was built, one sentence each."""
    found = []
    if seal.get("source_sha256") != text_sha256(source):
        found.append(f"{notebook.name} was built from another version of {source.name}: run `make notebooks`")
    for path in changed_files(source, seal):
        found.append(f"{notebook.name} was built with another version of {path}: run `make notebooks`")
    return found


def changed_files(source: Path, seal: dict[str, Any]) -> list[str]:
    """Files that ``source`` uses now or used when it was sealed, and that are not what they were then."""
    then, now = seal.get("files", {}), files_sha256(source)
    return sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))


def disagreements(source: Path, notebook: Path) -> list[str]:
    """What speaks against ``notebook`` being the untouched result of ``source``, one sentence each; empty is good."""
    if not notebook.exists():
        return [f"{notebook.name} is missing: run `make notebooks`"]
    built, found = read(notebook), []
    wanted = [(c.cell_type, c.source) for c in cells_of(source).cells]
    present = [(c.cell_type, c.source) for c in built.cells]
    differing = [i for i, pair in enumerate(zip(wanted, present, strict=False)) if pair[0] != pair[1]]
    if differing or len(wanted) != len(present):
        where = f"first at cell {differing[0]}" if differing else f"{len(wanted)} and {len(present)} cells"
        found.append(f"{notebook.name} and {source.name} hold different cells, {where}: run `make notebooks`")
    found += _broken_seal(source, notebook, seal_of(built))
    if seal_of(built).get("outputs_sha256") != outputs_sha256(built):
        found.append(f"{notebook.name} holds an output its build did not write: run `make notebooks FORCE=--force`")
    counts = [c.execution_count for c in built.cells if c.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"{notebook.name} was not executed once from top to bottom: execution counts {counts}")
    for index, output in ((i, o) for i, c in enumerate(built.cells) for o in c.get("outputs", [])):
        if output.output_type == "error":
            found.append(f"{notebook.name} cell {index} ended in {output.ename}")
        if output.get("name") == "stderr":
            found.append(f"{notebook.name} cell {index} wrote to stderr: {output.text.strip()[:200]}")
    return found


def keep_outputs(result: Any, present: Any, source: Path) -> bool:
    """Put the outputs of ``present`` into ``result`` if both have the same code and agree wherever they are compared.

    What a cell tagged nbval-ignore-output shows depends on the machine and the hour. It stays too, unless a file that
    draws has changed: a new colour must arrive in such a picture.
    """
    fresh, old = ([c for c in notebook.cells if c.cell_type == "code"] for notebook in (result, present))
    drawn_anew = any(path.endswith(DRAWING) for path in changed_files(source, seal_of(present)))
    compared = [(cell, was) for cell, was in zip(fresh, old, strict=False) if "nbval-ignore-output" not in tags(cell)]
    same_code = [(_code(c.source), tags(c)) for c in fresh] == [(_code(c.source), tags(c)) for c in old]
    if not same_code or drawn_anew or any(cell.outputs != was.outputs for cell, was in compared):
        return False
    for cell, was in zip(fresh, old, strict=True):
        cell.outputs = was.outputs
    return True


def _code(source: str) -> str:
    """A cell's code without comments and imports: where a name comes from may change, and nothing else with it."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic
        return source
    return "\n".join(ast.unparse(node) for node in body if not isinstance(node, ast.Import | ast.ImportFrom))


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


def seal_of(notebook: Any) -> dict[str, Any]:
    return notebook.metadata.get("course", {})
