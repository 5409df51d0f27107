"""Execute every lesson from start to end: ``make course``.

    python -m course_utils.authoring.run_course                 # all lessons, as they are
    python -m course_utils.authoring.run_course 01 -p max_steps 40

The executed notebooks lie in ``build/executed/``, each only once its lesson has ended. A failing lesson does not stop
the others; its error is printed last and the exit code is 1 (2 for a command line that cannot be used). CPU-seconds
stand beside seconds: far more seconds than CPU-seconds per core mean a host that is busy with something else.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from course_utils.authoring.build import ROOT, describe_failure, execute


def lessons(root: Path = ROOT) -> list[Path]:
    """The lessons' notebooks, in order."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def run(notebooks: list[Path], folder: Path, parameters: dict[str, Any] | None = None) -> dict[str, str]:
    """Execute ``notebooks`` with papermill into ``folder``, a printed line each.

    Args:
        notebooks: paths of .ipynb files; each runs in its own folder, as in JupyterLab.
        folder: created if it is missing.
        parameters: papermill parameters given to each.

    Returns:
        The error text of each failed notebook, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures = {}
    for number, notebook in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {notebook.stem:<24}", end=" ", flush=True)
        began, used = time.perf_counter(), cpu_seconds()
        try:
            with _written_at_the_end(folder / notebook.name) as unfinished:
                result = execute(notebook, unfinished, notebook.parent, parameters)
            outcome = f"{sum(cell.cell_type == 'code' for cell in result.cells):>3} cells"
        except Exception as error:  # a broken lesson must not stop the others
            failures[notebook.stem] = describe_failure(error)
            outcome = "   FAILED"
        print(f"{outcome} {time.perf_counter() - began:>5.0f} s {cpu_seconds() - used:>5.0f} CPU-s", flush=True)
    return failures


@contextmanager
def _written_at_the_end(executed: Path) -> Iterator[Path]:
    """A name to execute into, as papermill writes after every cell: ``executed`` appears when the lesson has ended.

    A lesson that failed has ended too, and what its cells said is there to be read; one that was interrupted has not.
    """
    unfinished = executed.with_name(f".{executed.stem}.{os.getpid()}.tmp.ipynb")
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of parameters' lines that it cannot read; ``refusal`` has checked ours
    try:
        yield unfinished
    except Exception:
        if unfinished.exists():
            os.replace(unfinished, executed)
        raise
    else:
        os.replace(unfinished, executed)
    finally:
        logger.setLevel(level)
        unfinished.unlink(missing_ok=True)


def cpu_seconds() -> float:
    """What all child processes that have ended used: a lesson's kernel, and what that started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def as_value(text: str) -> Any:
    """What ``papermill -p`` makes of a word of the command line: a number, True, False, None or the word itself."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return value if isinstance(value, (bool, int, float, type(None))) else text


def refusal(only: list[str], chosen: list[Path], parameters: dict[str, Any]) -> str:
    """What is wrong with the command line, in one sentence; empty where nothing is.

    Args:
        only: the words that name lessons.
        chosen: the lessons that they name.
        parameters: by name; each must be a parameter of every chosen lesson.
    """
    for word in only:
        if not any(word in (lesson.stem, lesson.stem[:2]) for lesson in lessons()):
            return f"only={word}: no such lesson; allowed: {', '.join(lesson.stem[:2] for lesson in lessons())}"
    for lesson in chosen if parameters else []:
        known = parameters_of(lesson)
        for name, value in parameters.items():
            if name not in known:
                return f"{name}={value} is no parameter of lesson {lesson.stem}; allowed: {', '.join(known)}"
    return ""


def parameters_of(lesson: Path) -> list[str]:
    """The names that a lesson's cell tagged ``parameters`` sets."""
    import nbformat

    cells = nbformat.read(lesson, as_version=4).cells
    tagged = [ast.parse(cell.source) for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    lines = [line for tree in tagged for line in tree.body if isinstance(line, ast.Assign)]
    return [target.id for line in lines for target in line.targets if isinstance(target, ast.Name)]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when every lesson ran through, 2 for a command line that cannot be used."""
    parser = argparse.ArgumentParser(description="Execute the lessons into build/executed/.")
    parser.add_argument("only", nargs="*", help="numbers such as 01, or names; all without")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="lesson parameter")
    options = parser.parse_args(arguments)
    chosen = [n for n in lessons() if not options.only or {n.stem, n.stem[:2]} & set(options.only)]
    parameters = {name: as_value(text) for name, text in options.p}
    if complaint := refusal(options.only, chosen, parameters):
        print(f"error: {complaint}", file=sys.stderr)
        return 2
    folder = ROOT / "build" / "executed"
    began, used = time.perf_counter(), cpu_seconds()
    try:
        failures = run(chosen, folder, parameters)
    except KeyboardInterrupt:
        print("\ninterrupted: the remaining lessons did not run", file=sys.stderr)
        return 130
    passed, took = (
        len(chosen) - len(failures),
        f"{time.perf_counter() - began:.0f} s ({cpu_seconds() - used:.0f} CPU-s)",
    )
    print(f"{passed} of {len(chosen)} lessons ran through in {took}: {folder}", flush=True)
    for name, text in failures.items():
        print(f"\n{name}: {text}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
