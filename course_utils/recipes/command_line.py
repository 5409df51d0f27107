"""What the programs' command lines share: one sentence and exit code 2 for what cannot be used, and flags' types."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

LARGEST = {int: 2**31 - 1, float: 1e30}  # torch, Arrow and C go on with 32 bits, and float32 ends at 3e38


def refuse(sentence: object) -> NoReturn:
    """End the program: what was given is the user's to repair, so there is no traceback; a word of pages is cut."""
    text = re.sub(r"(\S{80})\S{300,}(\S{40})", r"\1...\2", " ".join(str(sentence).split()))
    print(f"error: {text}", file=sys.stderr, flush=True)
    raise SystemExit(2)


@contextlib.contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Around what the user's input makes fail: ValueError, OSError, ImportError or one of ``kinds`` is refused."""
    try:
        yield
    except (ValueError, OSError, ImportError, *kinds) as error:
        refuse(str(error).strip() or type(error).__name__)


def same_flags(file: Path, flags: Mapping[str, Any]) -> None:
    """End the program unless ``file``, where the folder's first start wrote its flags, holds ``flags``."""
    try:
        began = json.loads(file.read_text())
        reason = (
            "" if isinstance(began, dict) and began.keys() == flags.keys() else "does not hold this program's flags"
        )
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError):
        reason = "cannot be read"
    if reason:
        refuse(f"{file} {reason}, and says how the checkpoints beside it were made; allowed: another --folder")
    for name, value in flags.items():
        if began[name] != value:
            refuse(
                f"argument --{name}: {value} contradicts the checkpoints in {file.parent}, made with {began[name]}; "
                "allowed: the same command, or another --folder"
            )


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage of all flags; help begins with the program's docstring."""

    def __init__(self, **options: Any) -> None:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False} | options
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        refuse(message)


def from_to(lowest: float, highest: float = math.inf, kind: type = int) -> Callable[[str], float]:
    """A flag's ``type``: a number of ``kind`` in ``[lowest, highest]``, at most ``LARGEST``; argparse names it."""
    numbers = "a whole number" if kind is int else "a number"
    allowed = f"{numbers} >= {lowest}" if highest == math.inf else f"{numbers} from {lowest} to {highest}"
    most = LARGEST[kind] if highest == math.inf else highest

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= most:
            beyond = f" and <= {most}" if highest == math.inf and value > most else ""
            raise ArgumentTypeError(f"{text!r} is out of range; allowed: {allowed}{beyond}")
        return value

    return read


def folder_to_write(text: str) -> Path:
    """A flag's ``type``: a folder that is there and can be written, or can be made."""
    return _to_write(text, "a folder", "a file")


def file_to_write(text: str) -> Path:
    """A flag's ``type``: a file that can be written, whose folder may be still to make."""
    return _to_write(text, "a file", "a folder")


def _to_write(text: str, wanted: str, other: str) -> Path:
    path = Path(text)
    if not text.strip() or "\0" in text:
        raise ArgumentTypeError(f"{text!r} is no name; allowed: {wanted}, or a new name")
    try:
        if path.exists() and path.is_dir() != (wanted == "a folder"):
            raise ArgumentTypeError(f"{text!r} is {other}; allowed: {wanted}, or a new name")
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
    except OSError as error:
        raise ArgumentTypeError(f"{text!r} cannot be used ({error.strerror}); allowed: {wanted}") from error
    if path != there and not there.is_dir():
        raise ArgumentTypeError(f"{text!r} would lie in {str(there)!r}, which is a file; allowed: {wanted}")
    if not os.access(there, os.W_OK):
        raise ArgumentTypeError(f"{text!r} cannot be written; allowed: {wanted} in a folder that you may write to")
    return path


def file_of_rows(text: str) -> Path:
    """A flag's ``type``: a file of JSON lines to read (``json_lines``)."""
    if "\0" in text or not (os.path.isfile(text) and Path(text).suffix in (".json", ".jsonl")):
        raise ArgumentTypeError(f"{text!r} is no such file; allowed: a file of JSON lines (.jsonl, .json)")
    return Path(text)


def model_name(text: str) -> str:
    """A flag's ``type``: a model's folder, or what may be a name on the hub."""
    return _folder_with(text, "config.json", "a model's folder, or a hub name", needed=text.startswith(("/", ".", "~")))


def adapter_folder(text: str) -> str:
    """A flag's ``type``: a folder with LoRA adapters, as PEFT saves them."""
    return _folder_with(text, "adapter_config.json", "a folder with a LoRA adapter", needed=True)


def _folder_with(text: str, file: str, allowed: str, needed: bool) -> str:
    if not text.strip() or "\0" in text:
        raise ArgumentTypeError(f"{text!r} is no name; allowed: {allowed}")
    if (needed or os.path.exists(text)) and not os.path.isfile(os.path.join(text, file)):
        raise ArgumentTypeError(f"{text!r} has no {file}; allowed: {allowed}")
    return text


@contextlib.contextmanager
def from_folder_or_hub(name: str, kind: str) -> Iterator[None]:
    """Around whatever loads ``name``: a folder is read as it is, the hub is probed first (``hub.from_hub``).

    Args:
        kind: ``"model"`` or ``"dataset"``.

    Raises:
        ConnectionError: ``name`` is no folder and the hub is out of reach, or has no ``name``.
        ValueError: a model's folder holds damaged files, or those of another kind of model.
    """
    from course_utils.hub import from_hub

    if not Path(name).is_dir():
        with from_hub(name, kind):
            yield
        return
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever JSON, safetensors, the tokenizer or the configuration's class raises
        if kind != "model":
            raise
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise ValueError(f"{name!r} cannot be loaded ({reason}); allowed: a model's folder, all files whole") from error
