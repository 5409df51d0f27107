"""Is a folder the same one on all machines? Who prepares data must know: once for the job, or once on each machine.

with args.main_process_first(local=not seen_by_all(cache)):
    rows = ...  # one process fills the cache, the others read it
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import torch


def seen_by_all(folder: str | Path) -> bool:
    """Whether a file that rank 0 writes into ``folder`` is there for every rank; every rank must call it.

    A folder that rank 0 cannot write to is seen by nobody.
    """
    distributed = torch.distributed
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return True
    name = [_mark(Path(folder)) if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(name, src=0)
    seen = [False] * distributed.get_world_size()
    distributed.all_gather_object(seen, name[0] is not None and (Path(folder) / name[0]).exists())
    if distributed.get_rank() == 0 and name[0] is not None:
        with contextlib.suppress(OSError):
            (Path(folder) / name[0]).unlink()
    return all(seen)


def _mark(folder: Path) -> str | None:
    """A new name, because a network's disk may remember for seconds that an old one was not there."""
    name = f".seen-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError:
        return None
    return name
