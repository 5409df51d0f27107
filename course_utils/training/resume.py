"""Which checkpoint of a Trainer run is safe to continue from (lesson 15).

A job can be killed while it saves, and several ranks write into one checkpoint folder: that the folder exists, or that
rank 0 finished its part, says nothing. So a last file is written when all ranks are done. It says how long every file
was, since a machine that fails can also lose the end of a file that was written: such a checkpoint is passed over.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

COMPLETE = "complete"  # the marker in a checkpoint-<step> folder: {file: bytes}; an empty one says nothing of files


class MarkComplete(TrainerCallback):
    """Put the marker into a checkpoint once every rank has written its part of it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        barrier()
        if args.should_save:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def mark_complete(checkpoint: Path) -> None:
    """Write the marker with the sizes of all files, under another name first: it is there whole or not at all."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE]
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    unfinished = checkpoint / f".{COMPLETE}.tmp"
    unfinished.write_text(json.dumps(sizes))
    unfinished.replace(checkpoint / COMPLETE)


def is_complete(checkpoint: Path) -> bool:
    """Whether the marker is there and every file that it lists has its length."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text() or "{}")
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


class NothingLeft(Exception):
    """The checkpoint that was loaded is the run's last step."""


class StopIfDone(TrainerCallback):
    """Raise ``NothingLeft`` before a step beyond the last: a Trainer resumed at ``max_steps`` would take one more."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            raise NothingLeft


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The ``checkpoint-<step>`` folder with the highest step that ``is_complete``; None where there is none."""
    found = {}
    for marker in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}"):
        if match := re.fullmatch(r"checkpoint-(\d+)", marker.parent.name):
            found[int(match[1])] = marker.parent
    return next((found[step] for step in sorted(found, reverse=True) if is_complete(found[step])), None)


def agreed_checkpoint(output_dir: str | Path) -> Path | None:
    """``last_complete_checkpoint`` as rank 0 sees it, on every rank: network file systems show files late.

    Raises:
        FileNotFoundError: this rank does not see the checkpoint rank 0 chose: ``output_dir`` is not shared.
    """
    chosen = [str(last_complete_checkpoint(output_dir) or "")]
    if int(os.environ.get("RANK", 0)) == 0:  # a damaged one is written anew: until that is done it is not complete
        for marker in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}"):
            if not is_complete(marker.parent):
                marker.unlink()
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(chosen, src=0)
    if not chosen[0]:
        return None
    if not Path(chosen[0]).is_dir():
        raise FileNotFoundError(
            f"output_dir={str(output_dir)!r} has no {Path(chosen[0]).name} on this machine, but on "
            "that of rank 0; allowed: a folder that all machines share"
        )
    return Path(chosen[0])


def forget_checkpoints(args: TrainingArguments) -> None:
    """Take the markers away: a new run in the same folder must not be continued from an old run's checkpoint."""
    if args.should_save:
        for marker in Path(args.output_dir).glob(f"checkpoint-*/{COMPLETE}"):
            marker.unlink()
    barrier()


def barrier() -> None:
    """Wait for all ranks, if there are several."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
