"""Build the committed notebooks from their sources: ``make notebooks``.

``notebooks/source/NN_name.py`` (py:percent) is what people edit. jupytext turns it into cells, papermill executes them,
and what differs from run to run is removed, so that building twice gives the same bytes. Decks are built the same way
from ``slides/NN_name.py``. The result carries a seal in its metadata: hashes of the source, of every project file that
its code uses (``closure``), and of its outputs. ``disagreements`` breaks it: an edited source, a helper or figure that
changed since, or an output changed by hand is noticed.

    python -m course_utils.authoring.build              # those whose source, helpers or figures changed
    python -m course_utils.authoring.build --force 01   # lesson and deck 01 in any case, with all outputs anew

Where a rebuild gives what was there before, the old outputs stay, timings and pictures of timings too: a comment in a
helper costs a run and changes the seal, nothing else.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from course_utils.authoring.closure import ROOT, files_used

DRAWING = ("figures.py", "figure.py", "charts.py")  # where these changed, pictures that no test compares are drawn anew
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def targets(root: Path = ROOT) -> dict[Path, Path]:
    """Every source file and the notebook that is built from it, lessons first."""
    found = {}
    for source in sorted((root / "notebooks" / "source").glob("[0-9][0-9]_*.py")):
        found[source] = root / "notebooks" / f"{source.stem}.ipynb"
    for source in sorted((root / "slides").glob("[0-9][0-9]_*.py")):
        found[source] = source.with_suffix(".ipynb")
    return found


def text_sha256(path: Path) -> str:
    """Hash of a text file; line ends do not count."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def files_sha256(source: Path) -> dict[str, str]:
    """The project files that the code of ``source`` uses, by path, with the first digits of their hashes."""
    used = files_used(source) | ({presentation(source)} & set(source.parent.glob("theme/*")))
    return {path.relative_to(ROOT).as_posix(): text_sha256(path)[:12] for path in sorted(used)}


def presentation(source: Path) -> Path:
    """How JupyterLab presents a deck; a lesson has no such file."""
    return source.parent / "theme" / "rise.json"


def outputs_sha256(notebook: Any) -> str:
    """Hash of all outputs and execution counts of a notebook."""
    parts = [[c.execution_count, c.outputs] for c in notebook.cells if c.cell_type == "code"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def is_current(source: Path, notebook: Path) -> bool:
    """True when ``notebook`` was built from the present text of ``source`` and of every file that it uses."""
    return notebook.exists() and not _broken_seal(source, notebook, _seal(_read(notebook)))


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
    import jupytext

    if not notebook.exists():
        return [f"{notebook.name} is missing: run `make notebooks`"]
    built, found = _read(notebook), []
    wanted = [(c.cell_type, c.source) for c in jupytext.read(source).cells]
    present = [(c.cell_type, c.source) for c in built.cells]
    differing = [i for i, pair in enumerate(zip(wanted, present, strict=False)) if pair[0] != pair[1]]
    if differing or len(wanted) != len(present):
        where = f"first at cell {differing[0]}" if differing else f"{len(wanted)} and {len(present)} cells"
        found.append(f"{notebook.name} and {source.name} hold different cells, {where}: run `make notebooks`")
    found += _broken_seal(source, notebook, _seal(built))
    if _seal(built).get("outputs_sha256") != outputs_sha256(built):
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


def build(source: Path, notebook: Path, force: bool = False) -> tuple[int, bool]:
    """Execute ``source`` and replace ``notebook`` with the result, in one step at the end.

    Args:
        force: take every output of this run; else those of the present notebook stay where the run agrees with them.

    Returns:
        The number of code cells, and whether the outputs stayed.

    Raises:
        papermill.exceptions.PapermillExecutionError: a cell failed; ``notebook`` is as it was.
    """
    import jupytext
    import nbformat

    fresh = jupytext.read(source)
    fresh.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC})
    with tempfile.TemporaryDirectory() as folder:
        unexecuted, executed = Path(folder) / "in.ipynb", Path(folder) / "out.ipynb"
        nbformat.write(fresh, unexecuted)
        result = execute(unexecuted, executed, notebook.parent)
    normalise(result)
    stays = not force and notebook.exists() and keep_outputs(result, _read(notebook), source)
    if presentation(source).exists():
        result.metadata["rise"] = json.loads(presentation(source).read_text(encoding="utf-8"))
    result.metadata["course"] = {
        "source_sha256": text_sha256(source),
        "outputs_sha256": outputs_sha256(result),
        "files": files_sha256(source),
    }
    temporary = notebook.with_name(f".{notebook.name}.{os.getpid()}.tmp")
    try:
        nbformat.write(result, temporary)
        os.replace(temporary, notebook)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(cell.cell_type == "code" for cell in result.cells), stays


def keep_outputs(result: Any, present: Any, source: Path) -> bool:
    """Put the outputs of ``present`` into ``result`` if both have the same code and agree wherever they are compared.

    What a cell tagged nbval-ignore-output shows depends on the machine and the hour. It stays too, unless a file that
    draws has changed: a new colour must arrive in such a picture.
    """
    fresh, old = ([c for c in notebook.cells if c.cell_type == "code"] for notebook in (result, present))
    drawn_anew = any(path.endswith(DRAWING) for path in changed_files(source, _seal(present)))
    compared = [(cell, was) for cell, was in zip(fresh, old, strict=False) if "nbval-ignore-output" not in _tags(cell)]
    same_code = [(_code(c.source), _tags(c)) for c in fresh] == [(_code(c.source), _tags(c)) for c in old]
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


def _tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def execute(notebook: Path, executed: Path, folder: Path, parameters: dict[str, Any] | None = None) -> Any:
    """Run ``notebook`` with papermill in ``folder`` on this environment's kernel and write it to ``executed``.

    Raises:
        papermill.exceptions.PapermillExecutionError: a cell failed; ``executed`` holds the outputs up to there.
    """
    import papermill

    return papermill.execute_notebook(
        notebook,
        executed,
        parameters=parameters or {},
        kernel_name="python3",
        cwd=folder,
        progress_bar=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no remark about loopback traffic on every start
    )


def normalise(notebook: Any) -> None:
    """Remove, in place, what changes from run to run, what is this machine's, and outputs tagged ``strip-output``."""
    language = notebook.metadata.get("language_info", {})
    language.pop("version", None)
    notebook.metadata = type(notebook.metadata)({"kernelspec": KERNELSPEC, "language_info": language})
    seen = Counter()
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill adds an empty list
        # An id made of the source survives cells being inserted above it.
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        cell.id = digest if not seen[digest] else f"{digest}-{seen[digest]}"
        seen[digest] += 1
        if cell.cell_type == "code":
            stripped = "strip-output" in _tags(cell)
            cell.outputs = [] if stripped else _joined_streams(cell.outputs)


def _joined_streams(outputs: list[Any]) -> list[Any]:
    """Where the kernel cut a stream into pieces depends on timing: join neighbours of the same name."""
    joined = []
    for output in outputs:
        if joined and output.get("name") and output.get("name") == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)


def _seal(notebook: Any) -> dict[str, Any]:
    return notebook.metadata.get("course", {})


def describe_failure(error: Exception) -> str:
    """A failed cell's error for the terminal: which cell, then its traceback; colours only where a person looks."""
    lines = getattr(error, "traceback", None)
    if isinstance(lines, list):
        text = f"code cell {error.exec_count} failed:\n{error.source.strip()}\n\n" + "\n".join(lines)
    else:
        text = f"{type(error).__name__}: {error}"
    return text if sys.stdout.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is built, 1 when a notebook failed (the others are built all the same)."""
    parser = argparse.ArgumentParser(description="Build the notebooks whose source, helpers or figures changed.")
    parser.add_argument("only", nargs="*", help="numbers or names, such as 01 or slides/01_training_loop.py")
    parser.add_argument("--force", action="store_true", help="build even what did not change, with all outputs anew")
    options = parser.parse_args(arguments)
    wanted = {s: n for s, n in targets().items() if not options.only or _is_named(s, options.only)}
    if not wanted:
        print(f"only={options.only}: no such source; allowed: {', '.join(_names())}", file=sys.stderr)
        return 1
    failures = []
    for source, notebook in wanted.items():
        name = notebook.relative_to(ROOT)
        if is_current(source, notebook) and not options.force:
            print(f"{name}: unchanged")
            continue
        print(f"{name}: executing ...", end=" ", flush=True)
        began = time.perf_counter()
        try:
            cells, stays = build(source, notebook, options.force)
        except KeyboardInterrupt:
            print(f"\ninterrupted: {name} is as it was", file=sys.stderr)
            return 130
        except Exception as error:
            print("FAILED", flush=True)
            failures.append(f"{name}: {describe_failure(error)}")
        else:
            kept = "; outputs as before: only the seal changed" if stays else ""
            print(f"{cells} code cells, {time.perf_counter() - began:.0f} s{kept}", flush=True)
    print(*failures, sep="\n\n", end="\n" if failures else "")
    return 1 if failures else 0


def _names() -> list[str]:
    return [str(source.relative_to(ROOT)) for source in targets()]


def _is_named(source: Path, only: list[str]) -> bool:
    path = str(source.relative_to(ROOT))
    return any(path.endswith(name) or source.name.startswith(name) or source.stem == name for name in only)


if __name__ == "__main__":
    sys.exit(main())
