"""Checkpoints that survive being interrupted at any moment, and resume a run bitwise (lesson 01).

A checkpoint is a folder ``step-00000100`` with

    model.safetensors    weights, no pickle
    state.pt             optimizer, scheduler, position in the data, random number generators (the three global ones,
                         and those that collators, data sets and the like own), step
    manifest.json        size and SHA-256 of the two files above

It is written under a temporary name and renamed when every byte is on the disk. Renaming a folder is atomic (POSIX
rename), and nothing is ever deleted from a folder with the final name: one that has to go is first renamed to a hidden
name. So a folder called ``step-...`` is complete at every moment. A run killed in the middle of a save leaves the
previous checkpoint as the newest one; what else it leaves behind is hidden, and the next finished save removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from course_utils.training.generators import NotRestorable, load_generators, save_generators
from course_utils.training.optimizer_state import check_optimizer_state, check_scheduler_state

WEIGHTS, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"
_NAME = re.compile(r"step-(\d{8})")
_LEFTOVERS = ".step-*-*"  # .step-00000100.tmp-<pid>: not finished; .step-00000100.old-<pid>: replaced


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or cannot be made; one sentence that names it and says what to do."""


def save_checkpoint(
    folder: str | Path,
    step: int,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any = None,
    batches: Any = None,
    loss_function: Any = None,
) -> Path:
    """Write everything a run needs to go on as if it had never stopped.

    Args:
        folder: the run's folder; the checkpoint becomes ``folder/step-00000100``. One process saves into it.
        step: optimizer steps taken.
        model, optimizer, scheduler, batches: objects with a ``state_dict``; the last two may be None.
        loss_function: of which only the generators are saved, if it has any; may be None.

    Returns:
        The finished checkpoint's path.

    Raises:
        CheckpointError: an object draws from a generator whose state cannot be saved.
    """
    from safetensors.torch import save_model

    generators = save_own_generators(model, optimizer, scheduler, batches, loss_function)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_model(model, str(temporary / WEIGHTS))
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
        "batches": batches.state_dict() if batches is not None else None,
        "random": random_state(),
        "generators": generators,
    }
    torch.save(state, temporary / STATE)
    manifest = {name: _describe(temporary / name) for name in (WEIGHTS, STATE)}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
    for path in (*temporary.iterdir(), temporary):
        _flush_to_disk(path)
    if final.exists():  # the same step again, after a restart from an earlier checkpoint
        replaced = folder / f".{final.name}.old-{os.getpid()}"
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(temporary, final)
    _flush_to_disk(folder)
    for leftover in folder.glob(_LEFTOVERS):  # the replaced one, and what a killed save left behind
        shutil.rmtree(leftover, ignore_errors=True)
    return final


def save_own_generators(
    model: nn.Module, optimizer: Any, scheduler: Any = None, batches: Any = None, loss_function: Any = None
) -> dict[str, Any]:
    """The state of every generator that these objects own (``generators.save_generators``).

    Raises:
        CheckpointError: one cannot be saved.
    """
    try:
        return save_generators(_roots(model, optimizer, scheduler, batches, loss_function))
    except NotRestorable as error:
        raise CheckpointError(f"no checkpoint can be made: {error}") from None


def _roots(model: Any, optimizer: Any, scheduler: Any, batches: Any, loss_function: Any) -> dict[str, Any]:
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "batches": batches}
    return objects | {"loss_function": loss_function}


def load_checkpoint(
    checkpoint: str | Path,
    model: nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    batches: Any = None,
    loss_function: Any = None,
) -> int:
    """Put a checkpoint's state back into the given objects and the random number generators.

    Nothing is changed before the files have been compared with their manifest.

    Args:
        checkpoint: a folder that ``save_checkpoint`` returned.
        model, optimizer, scheduler, batches, loss_function: built as in the interrupted run. Without an optimizer only
            the weights are loaded and the random number generators stay as they are.

    Returns:
        Optimizer steps taken when it was saved.

    Raises:
        CheckpointError: missing or damaged, saved without something that is asked for here, or made by objects of
            another build: what was loaded by then must not be used.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    checkpoint = Path(checkpoint)
    verify_checkpoint(checkpoint)
    state = _read_state(checkpoint)
    for name, target in (("scheduler", scheduler), ("batches", batches)):
        if target is not None and state[name] is None:
            raise CheckpointError(
                f"checkpoint {checkpoint} was saved without {name} ({STATE}); resume without one, or "
                f"{_way_back(checkpoint)}"
            )
    if optimizer is not None:
        with _sentence_about(checkpoint):
            check_optimizer_state(state["optimizer"], optimizer)
            check_scheduler_state(state["scheduler"], scheduler)
    try:
        load_model(model, str(checkpoint / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint} holds another model's weights ({WEIGHTS}); build the model as the run did, or "
            f"{_way_back(checkpoint)}"
        ) from error
    if optimizer is not None:
        with _sentence_about(checkpoint):
            optimizer.load_state_dict(state["optimizer"])
            if scheduler is not None:
                scheduler.load_state_dict(state["scheduler"])
            if batches is not None:
                batches.load_state_dict(state["batches"])
            load_generators(state["generators"], _roots(model, optimizer, scheduler, batches, loss_function))
            set_random_state(state["random"])
    return state["step"]


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.pt``: tensors and plain containers (``weights_only``), never code.

    Raises:
        CheckpointError: it holds something else, although it is the file of the manifest.
    """
    with _sentence_about(checkpoint):
        state = torch.load(checkpoint / STATE, weights_only=True, map_location="cpu")
        missing = {"step", "optimizer", "scheduler", "batches", "random"} - state.keys()
        if missing or isinstance(state["step"], bool) or not isinstance(state["step"], int) or state["step"] < 0:
            raise ValueError(f"{STATE} is no state of a run (missing: {sorted(missing) or 'a step >= 0'})")
        if (named := _NAME.fullmatch(checkpoint.name)) and int(named[1]) != state["step"]:
            raise ValueError(f"{STATE} is that of step {state['step']}")
    return {"generators": {}} | state


@contextmanager
def _sentence_about(checkpoint: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes one sentence: the state was written by other objects, or by a stranger."""
    try:
        yield
    except Exception as error:  # torch, pickle and the objects' own: any of their kinds
        reason = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
        raise CheckpointError(
            f"checkpoint {checkpoint} does not fit this run: {reason} ({STATE}); build model, optimizer, scheduler and "
            f"batches as the run did, or {_way_back(checkpoint)}"
        ) from error


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest finished checkpoint in ``folder``; None when there is none. Leftovers of a killed save are ignored."""
    return next(iter(_finished(Path(folder))), None)


def _finished(folder: Path) -> list[Path]:
    """All checkpoints with a final name, the newest first."""
    names = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return [folder / name for name in sorted(names, reverse=True)]


def verify_checkpoint(checkpoint: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: the folder, the manifest or a file is missing, or a file differs; it names the next older
            complete checkpoint.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"checkpoint {checkpoint} does not exist; look for step-* folders beside it")
    if fault := _fault_of(checkpoint):
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: {fault}; {_way_back(checkpoint)}")


def _fault_of(checkpoint: Path) -> str | None:
    """What is damaged, or None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        for name in (WEIGHTS, STATE):
            if _describe(checkpoint / name) != manifest[name]:
                return f"{name} differs from its manifest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST} is not readable"
    return None


def _way_back(checkpoint: Path) -> str:
    """What to do without this checkpoint: the end of a sentence."""
    before = (path for path in _finished(checkpoint.parent) if path.name < checkpoint.name)
    older = next((path for path in before if _fault_of(path) is None), None)
    if older is None:
        return "no older one beside it is complete: delete the folder and start anew"
    return f"delete the folder and resume from {older.name}, the next older complete one"


def random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators as tensors and plain containers."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Undo what was drawn since ``random_state`` returned ``state``."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush_to_disk(path: Path) -> None:
    """fsync: the rename must not reach the disk before the data does."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
