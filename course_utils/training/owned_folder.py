"""One run at a time in an output folder: a lock that its owner's death opens (lesson 15).

Two runs in one folder mix their checkpoints. That happens when a launcher was killed and its ranks were not, or when a
job is submitted twice. The lock is the kernel's (flock), so a dead owner never has to be cleared away; the file says
who holds it and since when, for the sentence that the second run ends with.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LOCK = ".owner"
PATIENCE = 10.0  # seconds that a restarted run waits: the workers of a killed rank keep its files open for 5


@contextmanager
def owned_folder(folder: str | Path, rank: int | None = None, patience: float = PATIENCE) -> Iterator[None]:
    """Hold ``folder``, made if it is not there; rank 0 does it for the whole run. Left empty, it is removed again.

    Args:
        rank: None: from the environment variable RANK, else 0.
        patience: seconds to wait for an owner that is about to end.

    Raises:
        ValueError: another process holds it, or ``folder`` is a file.
        OSError: it cannot be made or written.
    """
    folder, rank = Path(folder), int(os.environ.get("RANK", 0)) if rank is None else rank
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={str(folder)!r} is a file; allowed: a folder, or a new name")
    if rank != 0:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # innermost first
    folder.mkdir(parents=True, exist_ok=True)
    handle = _take(folder, time.monotonic() + patience)
    try:
        yield
    finally:
        if handle is not None:
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it sees that it has gone
            os.close(handle)
        with contextlib.suppress(OSError):  # not empty: the run left something
            for place in made:
                place.rmdir()


def _take(folder: Path, deadline: float) -> int | None:
    """The open, locked file; None on a file system that has no locks."""
    while True:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 1000, 0)
            os.close(handle)
            if time.monotonic() > deadline:
                raise ValueError(_refusal(folder, owner)) from None
            time.sleep(0.2)
            continue
        except OSError as error:
            os.close(handle)
            print(
                f"output_dir={str(folder)!r} cannot be locked ({error.strerror}): start no second run in it", flush=True
            )
            return None
        if _is(folder / LOCK, handle):
            os.ftruncate(handle, 0)
            os.pwrite(handle, _me().encode(), 0)
            return handle
        os.close(handle)  # its owner removed it between our two calls


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _me() -> str:
    started = psutil.Process().create_time()
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})


def _refusal(folder: Path, owner: bytes) -> str:
    try:
        who = json.loads(owner)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["started"]))
        name = f"process {who['pid']} on {who['host']}, started {since}"
    except (ValueError, KeyError, TypeError):  # it has just begun and not signed yet
        name = "another process"
    return (
        f"output_dir={str(folder)!r} is in use by {name}; allowed: another folder, or this one when that run has ended"
    )
