"""A cache of Arrow tables: built once, keyed by what it was built from, atomic, checked when it is opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict

MANIFEST = "manifest.json"
_TEMPORARY = re.compile(r"\.(?P<name>.+-[0-9a-f]{12})-\w+")  # .classification-0123456789ab-x1y2z3


def cache_folder() -> Path:
    """Where the course keeps its data: ``$COURSE_CACHE``, or ``~/.cache/hf-training-course``.

    Raises:
        OSError: the path names no folder: a user or a home that does not exist, or ``::``, which ``datasets`` reads as
            the start of another path.
    """
    given = os.environ.get("COURSE_CACHE") or "~/.cache/hf-training-course"
    try:
        folder = Path(given).expanduser()
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise OSError(f"COURSE_CACHE={given!r} names no folder ({reason}); allowed: a path without ~") from None
    if "::" in str(folder):
        raise OSError(f"COURSE_CACHE={given!r} holds '::', which datasets reads as two paths; allowed: one without it")
    return folder


def cached_folder(name: str, made_from: dict, build: Callable[[Path], None]) -> Path:
    """The folder ``build`` fills, built at most once for each value of ``made_from``.

    Safe when several processes ask at once (one builds, the others wait) and when a build is interrupted: it happens
    in a temporary folder that is renamed when complete. A cache that does not match its manifest is built again. One
    that does is only read.

    Args:
        name: what is cached, part of the folder's name.
        made_from: everything the content depends on, as JSON: library versions, sizes, a format number.
        build: writes files into the empty folder it is given.

    Raises:
        OSError: the cache folder cannot be created or written, or the disk is full; nothing half-written stays.
    """
    from filelock import FileLock

    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{key}"
    if is_intact(folder):
        return folder
    if os.path.lexists(folder) and not folder.is_dir():  # not ours: found after a build of minutes, it would fail
        raise OSError(f"COURSE_CACHE: {str(folder)!r} is no folder; allowed: nothing or a folder there (delete it)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_intact(folder):
                _build(folder, build)
    except OSError as error:
        raise OSError(
            f"COURSE_CACHE={str(folder.parent)!r} could not be written ({error.strerror or error}); allowed: a "
            "writable folder with 200 MB free, for example COURSE_CACHE=/tmp/course-cache"
        ) from error
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    """Fill ``folder``, whose lock is held; a damaged one goes first: if it cannot, no minutes are lost."""
    _remove_leftovers(folder)
    temporary, damaged = (Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)) for _ in range(2))
    try:
        if folder.exists():
            print(f"The cache {folder.name} is damaged: building it again.", file=sys.stderr)
            folder.rename(damaged / "old")
        build(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {path.relative_to(temporary).as_posix(): _checksum(path) for path in files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary folders of builds that were killed: of ``folder``, and of others that nobody is building."""
    from filelock import FileLock, Timeout

    for path in folder.parent.iterdir():
        entry = _TEMPORARY.fullmatch(path.name)
        if entry is None or not path.is_dir():
            continue
        if entry["name"] == folder.name:
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            with FileLock(folder.parent / f"{entry['name']}.lock", timeout=0):
                shutil.rmtree(path, ignore_errors=True)
        except Timeout:  # somebody is at work there
            continue


def is_intact(folder: Path) -> bool:
    """True when ``folder`` holds every file of its manifest, byte for byte.

    Further files do no harm: ``Dataset.map`` keeps its results beside the table it was called on.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest) and all(_checksum(folder / name) == wanted for name, wanted in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_dataset(name: str, made_from: dict, build: Callable[[], DatasetDict]) -> DatasetDict:
    """``build()``'s splits as memory-mapped Arrow tables, built at most once for each value of ``made_from``.

    From a folder that may only be read they are read into memory: ``map`` writes beside a memory-mapped table.

    Raises:
        OSError: as ``cached_folder``.
    """
    from datasets import load_from_disk

    def save(folder: Path) -> None:
        with progress_bars_off():
            splits = build()
            splits.save_to_disk(str(folder), num_shards={split: 1 for split in splits})

    folder = cached_folder(name, made_from, save)
    return load_from_disk(str(folder), keep_in_memory=not all(os.access(path, os.W_OK) for path in _folders(folder)))


def _folders(folder: Path) -> list[Path]:
    return [folder, *(path for path in folder.iterdir() if path.is_dir())]


@contextmanager
def progress_bars_off() -> Iterator[None]:
    """Silence the bars of ``datasets`` for a while; the reading of docstrings has its own."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
