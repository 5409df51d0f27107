"""JupyterLab on copies of the lessons, with a start page: ``make lab``.

    python -m course_utils.authoring.lab                 # copies what is missing into work/, opens JupyterLab there
    python -m course_utils.authoring.lab --new 03        # first puts the course's newer lesson 03 beside your copy
    python -m course_utils.authoring.lab --copy-only     # the copies alone, for another editor
    python -m course_utils.authoring.lab --port 9000     # every other option goes to JupyterLab

No file under git is edited and no copy of yours is overwritten: where the course has a newer lesson, that is said here
and on the start page. A copy that you never changed is replaced by the newer one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from course_utils.teach import record, solved, start_page

ROOT = solved.ROOT
SETTINGS = Path(__file__).resolve().parent / "jupyterlab"  # overrides.json and custom.css, ours; yours still win
COPIED = ("GLOSSARY.md", "notebooks/[0-9][0-9]_*.ipynb", "slides/[0-9][0-9]_*.ipynb", "slides/rise.css")
WORKSPACE = Path(".lab") / "workspaces" / "default-37a8.jupyterlab-workspace"  # the name that JupyterLab looks for
LAYOUT = {"left": {"collapsed": False, "visible": True, "current": "@jupyterlab/toc:plugin"}}


def main(arguments: list[str] | None = None) -> int:
    """Copy, write the start page, become JupyterLab; exit code 2 with one sentence where that cannot be."""
    parser = argparse.ArgumentParser(description="JupyterLab on copies of the lessons in work/.", allow_abbrev=False)
    parser.add_argument("--new", metavar="NN", help="put the newer version of lesson NN (or of all) beside your copy")
    parser.add_argument("--folder", type=Path, default=ROOT / "work", help="where your copies are; default: work/")
    parser.add_argument("--copy-only", action="store_true", help="copy and write the start page, start nothing")
    options, others = parser.parse_known_args(arguments)
    folder = options.folder.resolve()
    numbers = [path.name[:2] for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    if options.new not in (None, "all", *numbers):
        print(f"error: new={options.new}: no such lesson; allowed: all, {', '.join(numbers)}", file=sys.stderr)
        return 2
    if (folder / "course_utils").is_dir():
        print(f"error: folder={folder}: this is the course itself; allowed: a folder for your copies", file=sys.stderr)
        return 2
    try:
        prepare(ROOT, folder, options.new)
    except OSError as error:
        print(f"error: {error.filename or folder} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    print(f"your copies of the lessons: {folder}", flush=True)
    if not options.copy_only:
        command = jupyterlab(folder, others)
        os.execve(command[0], command, environment(folder))  # the same process: ^C and the exit code are JupyterLab's
    return 0


def prepare(root: Path, folder: Path, new: str | None = None) -> None:
    """Bring the copies in ``folder`` up to date without losing anything, and write the start page; a line per event.

    Args:
        root: the course.
        new: a lesson's number, or ``"all"``: its newer version is put beside a copy that was changed.
    """
    state_file = folder / start_page.STATE
    copied = json.loads(state_file.read_text(encoding="utf-8"))["copied"] if state_file.exists() else {}
    newer = []
    for source in sorted(path for pattern in COPIED for path in root.glob(pattern)):
        name = source.relative_to(root).as_posix()
        copy, latest = folder / name, version(source)
        before = copied.get(name) or {"version": version(copy), "sha256": None}
        if not copy.exists():
            copied[name] = put(source, copy)
        elif before["version"] == latest:
            copied[name] = before
        elif sha256(copy) == before["sha256"]:
            copied[name] = put(source, copy)
            print(f"{name}: replaced by the newer version (you had not changed it)")
        elif new == "all" or (new and copy.name.startswith(f"{new}_")):
            beside = free_name(copy)
            put(source, beside)
            copied[name] = before | {"version": latest}
            print(f"{name}: yours stays; the newer version is {beside.relative_to(folder)}")
        else:
            newer.append(name)
            copied[name] = before
            print(f"{name}: the course has a newer version; `make lab NEW={copy.name[:2]}` puts it beside yours")
    save(state_file, {"copied": copied, "newer": newer})
    if not (folder / WORKSPACE).exists():
        save(folder / WORKSPACE, {"data": {"layout-restorer:data": LAYOUT}, "metadata": {"id": "default"}})
    start_page.write(folder)


def version(path: Path) -> str | None:
    """What tells one version of a file from another: for a lesson or a deck the hash of its source, in its seal.

    A notebook keeps its seal when a learner runs and saves it. ``None``: there is no such file.
    """
    if not path.exists():
        return None
    if path.suffix == ".ipynb":
        try:
            return json.loads(path.read_text(encoding="utf-8"))["metadata"]["course"]["source_sha256"]
        except (ValueError, KeyError, TypeError):  # not one of ours, or damaged: then its bytes
            pass
    return sha256(path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(source: Path, copy: Path) -> dict[str, Any]:
    """Copy in one step; returns what to remember of the copy."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, copy)
    return {"version": version(copy), "sha256": sha256(copy)}


def free_name(copy: Path) -> Path:
    """``03_trainer_2.ipynb`` beside ``03_trainer.ipynb``, or the next number that is free."""
    names = (copy.with_name(f"{copy.stem}_{number}{copy.suffix}") for number in range(2, 1000))
    return next(name for name in names if not name.exists())


def save(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def jupyterlab(folder: Path, others: list[str]) -> list[str]:
    """The command that serves ``folder``; ``others`` are JupyterLab's own options and come last."""
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}"]
    command += [f"--LabApp.default_url=/lab/tree/{start_page.NAME}", f"--LabApp.app_settings_dir={SETTINGS}"]
    command += ["--LabApp.custom_css=True", f"--ServerApp.tornado_settings=static_custom_path={SETTINGS}"]
    if os.geteuid() == 0:  # in a container
        command += ["--allow-root"]
    return command + others


def environment(folder: Path) -> dict[str, str]:
    """This process's, with where progress is kept and with a workspace (open tabs, side bar) of this folder's own."""
    own = {record.FILE: str(folder / solved.NAME), record.SERVER: str(os.getpid())}
    return {**os.environ, **own, "JUPYTERLAB_WORKSPACES_DIR": str((folder / WORKSPACE).parent)}


if __name__ == "__main__":
    sys.exit(main())
