"""Build the committed notebooks from their sources: ``make notebooks``.

``notebooks/source/NN_name.py`` (py:percent) is what people edit. jupytext turns it into cells, papermill executes them,
and what differs from run to run is removed, so that building twice gives the same bytes. Decks are built the same way
from ``slides/NN_name.py``. The result carries a seal (``seal``), so that a change of anything it was built from shows.

    python -m course_utils.authoring.build              # those whose source, helpers or figures changed
    python -m course_utils.authoring.build --force 01   # lesson and deck 01 in any case, with all outputs anew

Where a rebuild gives what was there before, the old outputs stay, timings and pictures of timings too: a comment in a
helper costs a run and changes the seal, nothing else.
"""

from __future__ import annotations

import argparse
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

from course_utils.authoring import mould
from course_utils.authoring.closure import ROOT
from course_utils.authoring.seal import cells_of, is_current, keep_outputs, new_seal, presentation, read, tags

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def targets(root: Path = ROOT) -> dict[Path, Path]:
    """Every source file and the notebook that is built from it, lessons first."""
    found = {}
    for source in sorted((root / "notebooks" / "source").glob("[0-9][0-9]_*.py")):
        found[source] = root / "notebooks" / f"{source.stem}.ipynb"
    for source in sorted((root / "slides").glob("[0-9][0-9]_*.py")):
        found[source] = source.with_suffix(".ipynb")
    return found


def build(source: Path, notebook: Path, force: bool = False) -> tuple[int, bool]:
    """Execute ``source`` and replace ``notebook`` with the result, in one step at the end.

    Args:
        force: take every output of this run; else those of the present notebook stay where the run agrees with them.

    Returns:
        The number of code cells, and whether the outputs stayed.

    Raises:
        ValueError: the lesson's core is too long (``mould``).
        papermill.exceptions.PapermillExecutionError: a cell failed; ``notebook`` is as it was.
    """
    import nbformat

    fresh = cells_of(source)
    if is_lesson(source) and (complaint := mould.too_long(fresh.cells)):
        raise ValueError(f"{source.name}: {complaint}")
    fresh.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC})
    with tempfile.TemporaryDirectory() as folder:
        unexecuted, executed = Path(folder) / "in.ipynb", Path(folder) / "out.ipynb"
        nbformat.write(fresh, unexecuted)
        result = execute(unexecuted, executed, notebook.parent)
    normalise(result)
    stays = not force and notebook.exists() and keep_outputs(result, read(notebook), source)
    if presentation(source).exists():
        result.metadata["rise"] = json.loads(presentation(source).read_text(encoding="utf-8"))
    result.metadata["course"] = new_seal(source, result)
    temporary = notebook.with_name(f".{notebook.name}.{os.getpid()}.tmp")
    try:
        nbformat.write(result, temporary)
        os.replace(temporary, notebook)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(cell.cell_type == "code" for cell in result.cells), stays


def is_lesson(source: Path) -> bool:
    """True for the source of a lesson, False for that of a deck."""
    return source.parent.name == "source"


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
        # No remark about loopback traffic on every start, and after ^C no traceback of a kernel that finds its
        # connection closed; what a cell raises is in the notebook, not in this log.
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
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
            stripped = "strip-output" in tags(cell)
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


def describe_failure(error: Exception) -> str:
    """A failed cell's error for the terminal: which cell, then its traceback; colours only where a person looks."""
    lines = getattr(error, "traceback", None)
    if isinstance(lines, list):
        text = f"code cell {error.exec_count} failed:\n{error.source.strip()}\n\n" + "\n".join(lines)
    else:
        text = f"{type(error).__name__}: {error}"
    return text if sys.stdout.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is built, 1 when a notebook failed (the others are built all the same), 2 for bad input."""
    parser = argparse.ArgumentParser(description="Build the notebooks whose source, helpers or figures changed.")
    parser.add_argument("only", nargs="*", help="numbers or names, such as 01 or slides/01_training_loop.py")
    parser.add_argument("--force", action="store_true", help="build even what did not change, with all outputs anew")
    options = parser.parse_args(arguments)
    wanted = {s: n for s, n in targets().items() if not options.only or _is_named(s, options.only)}
    if not wanted:
        print(f"error: only={options.only}: no such source; allowed: {', '.join(_names())}", file=sys.stderr)
        return 2
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
            if is_lesson(source):
                print(f"  {mould.describe(read(notebook).cells)}", flush=True)
    print(*failures, sep="\n\n", end="\n" if failures else "")
    return 1 if failures else 0


def _names() -> list[str]:
    return [str(source.relative_to(ROOT)) for source in targets()]


def _is_named(source: Path, only: list[str]) -> bool:
    path = str(source.relative_to(ROOT))
    return any(path.endswith(name) or source.name.startswith(name) or source.stem == name for name in only)


if __name__ == "__main__":
    sys.exit(main())
