"""Which checkpoint of a Trainer run is safe to continue from (lesson 15).

A job can be killed while it saves, and several ranks write into one checkpoint folder: that the folder exists, or that
rank 0 finished its part, says nothing. So a last file is written when all ranks are done: the manifest, with the length
and the SHA-256 of every file and what the checkpoint was made with. A checkpoint that differs from it is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

COMPLETE = "complete"  # the manifest in a checkpoint-<step> folder, written last
READERS = 8  # files whose checksums are computed at once; hashlib lets other threads run meanwhile
Facts = dict[str, Any]


class MarkComplete(TrainerCallback):
    """Write the manifest into a checkpoint once every rank has written its part of it.

    Weights saved alone (``save_only_model``) get none: nothing can go on from them.

    Args:
        facts: called on every rank at each save, so that it may count over the ranks: what the checkpoint was made
            with, as JSON.
    """

    def __init__(self, facts: Callable[[], Facts] = dict) -> None:
        self.facts = facts

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        facts = self.facts()
        barrier()
        if args.should_save and not args.save_only_model:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", facts)


def mark_complete(checkpoint: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of all files, under another name first: it is there whole or not at all."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    with ThreadPoolExecutor(READERS) as pool:
        sums = list(pool.map(_checksum, paths))
    files = {
        path.relative_to(checkpoint).as_posix(): [path.stat().st_size, checksum]
        for path, checksum in zip(paths, sums, strict=True)
    }
    content = {"files": files, "facts": dict(facts or {})}
    unfinished = checkpoint / f".{COMPLETE}.tmp"
    unfinished.write_text(json.dumps(content | {"sha256": _checksum_of(content)}))
    unfinished.replace(checkpoint / COMPLETE)


def read_facts(checkpoint: Path) -> Facts:
    """What ``mark_complete`` was told about this checkpoint.

    Raises:
        ValueError: the manifest cannot be read, or is not as it was written.
        OSError: there is none.
    """
    return _read(checkpoint)["facts"]


def _read(checkpoint: Path) -> dict[str, Any]:
    content = json.loads((checkpoint / COMPLETE).read_text())
    if not isinstance(content, dict) or content.pop("sha256", None) != _checksum_of(content):
        raise ValueError(f"{checkpoint / COMPLETE} differs from its own checksum")
    files, facts = content.get("files"), content.get("facts")
    listed = isinstance(files, dict) and files and all(isinstance(e, list) and len(e) == 2 for e in files.values())
    outside = listed and any(name.startswith("/") or ".." in name.split("/") for name in files)
    if not listed or outside or not isinstance(facts, dict):
        raise ValueError(f"{checkpoint / COMPLETE} lists no files")
    return content


def fault_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, as the end of a sentence that begins with its name; None: it is whole."""
    try:
        content = _read(checkpoint)
    except FileNotFoundError:
        return f"was never marked complete (no file {COMPLETE!r}: killed while it was saved, or another program's)"
    except (OSError, ValueError, RecursionError):
        return f"is damaged: its manifest {COMPLETE!r} cannot be read"
    files, step = content["files"], _step(checkpoint)
    if step is not None and content["facts"].get("step", step) != step:
        return f"is damaged: its manifest {COMPLETE!r} is that of step {content['facts']['step']}"
    paths = {name: checkpoint / name for name in files}
    for name, (size, _) in files.items():  # cheap, and the most frequent damage
        if not paths[name].is_file():
            return f"is damaged: {name} is missing"
        if (found := paths[name].stat().st_size) != size:
            return f"is damaged: {name} has {found} of {size} bytes"
    try:
        with ThreadPoolExecutor(READERS) as pool:
            sums = dict(zip(files, pool.map(_checksum, paths.values()), strict=True))
    except OSError as error:
        return f"is damaged: {error.filename or error} cannot be read"
    return next(
        (f"is damaged: {name} differs from its checksum" for name in files if sums[name] != files[name][1]), None
    )


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest is there and every file that it lists is as it was saved."""
    return fault_of(checkpoint) is None


class NothingLeft(Exception):
    """The checkpoint that was loaded is the run's last step."""


class StopIfDone(TrainerCallback):
    """Raise ``NothingLeft`` before a step beyond the last: a Trainer resumed at ``max_steps`` would take one more."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            raise NothingLeft


def _marked(output_dir: str | Path, below: float = float("inf")) -> list[Path]:
    """The marked ``checkpoint-<step>`` folders with a step less than ``below``, the newest first."""
    steps = {}
    for marker in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}"):
        if (step := _step(marker.parent)) is not None and step < below:
            steps[step] = marker.parent
    return [steps[step] for step in sorted(steps, reverse=True)]


def _step(checkpoint: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else None


def last_complete_checkpoint(output_dir: str | Path, below: float = float("inf")) -> Path | None:
    """The ``checkpoint-<step>`` folder with the highest step (< ``below``) that is whole; None where there is none."""
    return next(filter(is_complete, _marked(output_dir, below)), None)


def choose_checkpoint(output_dir: str | Path, check: Callable[[Path], None] = lambda checkpoint: None) -> Path | None:
    """``last_complete_checkpoint``; newer ones are named with their fault, and damaged ones lose their mark.

    Args:
        check: called with the one that is chosen, before anything is written; it may raise ``ValueError``.

    Raises:
        ValueError: there are marked checkpoints, and every one is damaged; or what ``check`` raises.
    """
    faults: dict[Path, str] = {}
    chosen = None
    for checkpoint in _marked(output_dir):
        if (fault := fault_of(checkpoint)) is None:
            chosen = checkpoint
            break
        faults[checkpoint] = fault
    if chosen is None and faults:
        newest, fault = next(iter(faults.items()))
        raise ValueError(
            f"{newest} {fault}, and no older complete checkpoint is left; allowed: --resume false, to begin anew"
        )
    if chosen is not None:
        check(chosen)
    for damaged in faults:  # it is written anew, and must not look complete meanwhile
        (damaged / COMPLETE).unlink()
    after = -1 if chosen is None else _step(chosen)
    for path in Path(output_dir).glob("checkpoint-*"):
        if (_step(path) or -1) > after and path not in faults and not (path / COMPLETE).exists():
            faults[path] = fault_of(path)
    for path, fault in faults.items():
        print(f"{path} {fault}; the run {f'goes on from {chosen.name}' if chosen else 'begins anew'}", flush=True)
    return chosen


def check_checkpoint(checkpoint: str | Path) -> Path:
    """``checkpoint`` if it is whole.

    Raises:
        ValueError: it is not; the sentence names the fault and the next older complete checkpoint.
    """
    path = Path(checkpoint)
    if not path.is_dir():
        raise ValueError(
            f"resume_from_checkpoint={str(checkpoint)!r} is no folder; allowed: a checkpoint-<step> folder"
        )
    if fault := fault_of(path):
        raise ValueError(f"resume_from_checkpoint={str(checkpoint)!r} {fault}; allowed: {way_back(path)}")
    return path


def way_back(checkpoint: Path) -> str:
    """What to take instead of ``checkpoint``: the end of a sentence."""
    step = _step(checkpoint)
    older = last_complete_checkpoint(checkpoint.parent, step) if step is not None else None
    return f"the next older complete one, {older}" if older else "a complete one; no older one is beside it"


def agreed_checkpoint(
    output_dir: str | Path, given: str | None = None, check: Callable[[Path], None] = lambda checkpoint: None
) -> Path | None:
    """Where to go on, as rank 0 sees it, on every rank: network file systems show files late.

    Args:
        given: this checkpoint, instead of the newest complete one of ``output_dir``.
        check: called on rank 0 with the checkpoint; it raises ``ValueError`` if this run cannot go on from it.

    Raises:
        ValueError: as ``choose_checkpoint``, ``check_checkpoint`` and ``check`` say; on every rank.
        FileNotFoundError: this rank does not see the checkpoint rank 0 chose: ``output_dir`` is not shared.
    """
    chosen: list[tuple[str, str]] = [("", "")]
    if int(os.environ.get("RANK", 0)) == 0:
        try:
            path = check_checkpoint(given) if given else choose_checkpoint(output_dir, check)
            if given:
                check(path)
            chosen = [(str(path or ""), "")]
        except (ValueError, OSError) as error:
            chosen = [("", str(error))]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(chosen, src=0)
    path, refusal = chosen[0]
    if refusal:
        raise ValueError(refusal)
    if not path:
        return None
    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"output_dir={str(output_dir)!r} has no {Path(path).name} on this machine, but on "
            "that of rank 0; allowed: a folder that all machines share"
        )
    return Path(path)


def forget_checkpoints(args: TrainingArguments) -> None:
    """Take the marks away: a new run in the same folder must not be continued from an old run's checkpoint."""
    if args.should_save:
        for marker in Path(args.output_dir).glob(f"checkpoint-*/{COMPLETE}"):
            marker.unlink()
    barrier()


def barrier() -> None:
    """Wait for all ranks, if there are several."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
