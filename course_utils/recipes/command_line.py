"""What the recipes' command lines share: one sentence and exit code 2 for what cannot be used, and flags' ranges."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn


def refuse(sentence: object) -> NoReturn:
    """End the program: what was given is the user's to repair, so there is no traceback."""
    print(f"error: {' '.join(str(sentence).split())}", file=sys.stderr, flush=True)
    raise SystemExit(2)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        refuse(message)


def from_to(lowest: float, highest: float = math.inf, kind: type = int) -> Callable[[str], float]:
    """A flag's ``type``: reads a finite number of ``kind`` in ``[lowest, highest]``; argparse names the flag."""
    numbers = "a whole number" if kind is int else "a number"
    allowed = f"{numbers} >= {lowest}" if highest == math.inf else f"{numbers} from {lowest} to {highest}"

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (lowest <= value <= highest and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is out of range; allowed: {allowed}")
        return value

    return read


@contextlib.contextmanager
def from_folder_or_hub(name: str, kind: str) -> Iterator[None]:
    """Around whatever loads ``name``: a folder is read as it is, the hub is probed first (``hub.from_hub``).

    Args:
        kind: ``"model"`` or ``"dataset"``.

    Raises:
        ConnectionError: ``name`` is no folder and the hub is out of reach, or has no ``name``.
    """
    from course_utils.hub import from_hub

    with contextlib.nullcontext() if Path(name).is_dir() else from_hub(name, kind):
        yield
