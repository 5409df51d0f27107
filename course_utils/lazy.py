"""Package attributes that are imported when first used: only for what costs a heavy import (numpy, torch)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def attributes(package: str, where: dict[str, str]) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` (PEP 562) for ``package``: ``where`` maps each public name to its submodule.

    Raises (when called):
        AttributeError: the package has no such name.
    """

    def __getattr__(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{where[name]}"), name)

    return __getattr__
