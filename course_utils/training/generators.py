"""Random generators that objects carry along, as plain state for a checkpoint (lesson 01).

A collator that masks, a sampler that draws, an augmentation: each may own a generator, of torch, of NumPy or of Python,
that no ``state_dict`` mentions. They are found by walking through the objects' attributes, and named by the way to
them: ``batches.collate._generator``.
"""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

Path = tuple[tuple[str, Any], ...]  # ("attribute", "collate"), ("item", 3), ("cell", 0) ... from a root on
MOST_ITEMS = 100  # of a longer list (rows of data) only so many are looked at
_KINDS = {
    "torch": torch.Generator,
    "numpy": np.random.Generator,
    "numpy (old)": np.random.RandomState,
    "python": random.Random,
}
_DATA = (torch.Tensor, np.ndarray, str, bytes, int, float, complex, bool, type(None), type, types.ModuleType)


class NotRestorable(ValueError):
    """A generator whose state cannot be saved, or put back; the message is one sentence that names it."""


def save_generators(roots: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The state of every generator that ``roots`` (name -> object) reach, by its name.

    Returns:
        name -> ``kind``, ``path`` and ``state``, all of them plain containers, numbers and tensors.

    Raises:
        NotRestorable: one lives in the workers of a ``DataLoader``, whose copies are out of reach, or has no state.
    """
    saved = {}
    for path, generator, in_workers in _walk(roots):
        name = _name(path)
        if in_workers:
            raise NotRestorable(
                f"{name} draws in a DataLoader's workers, whose state cannot be saved; allowed: num_workers=0, or "
                "draws from a seed that the row's number and the epoch decide"
            )
        kind = next(kind for kind, cls in _KINDS.items() if isinstance(generator, cls))
        try:
            state = _state(generator)
        except NotImplementedError:  # random.SystemRandom
            raise NotRestorable(
                f"{name} is a {type(generator).__name__}, which has no state to save; allowed: random.Random, "
                "numpy.random.Generator, torch.Generator"
            ) from None
        saved[name] = {"kind": kind, "path": path, "state": state}
    return saved


def load_generators(saved: dict[str, dict[str, Any]], roots: dict[str, Any]) -> None:
    """Put the states back; a generator that its owner makes at its first draw (now None) is made here.

    Raises:
        NotRestorable: an object has no such place, holds another kind, or has a generator that was not saved.
    """
    here = {_name(path): generator for path, generator, _ in _walk(roots)}
    if unknown := sorted(here.keys() - saved.keys()):
        raise NotRestorable(f"it holds no state of {unknown[0]}; allowed: objects built as the run did")
    for name, entry in saved.items():
        generator = here.get(name) or _make(name, entry, roots)
        if not isinstance(generator, _KINDS[entry["kind"]]):
            raise NotRestorable(f"{name} is a {type(generator).__name__} and was of kind {entry['kind']!r} when saved")
        _set_state(generator, entry["state"])


def _make(name: str, entry: dict[str, Any], roots: dict[str, Any]) -> Any:
    """A new generator in the place where the saved run had one and this one has None."""
    (_, root), *steps = entry["path"]
    owner = roots.get(root)
    try:
        for how, key in steps[:-1]:
            owner = _follow(owner, how, key)
        how, key = steps[-1]
        empty = how == "attribute" and getattr(owner, key) is None
    except (AttributeError, IndexError, KeyError, TypeError):
        empty = False
    if not empty:
        raise NotRestorable(f"the objects given have no generator {name}; allowed: objects built as the run did")
    generator = {
        "torch": torch.Generator,
        "numpy": lambda: np.random.Generator(getattr(np.random, entry["state"]["bit_generator"])()),
        "numpy (old)": np.random.RandomState,
        "python": random.Random,
    }[entry["kind"]]()
    object.__setattr__(owner, key, generator)
    return generator


def _walk(roots: dict[str, Any]) -> Iterator[tuple[Path, Any, bool]]:
    """Every generator once: the way to it, itself, and whether a worker process of a loader draws from a copy."""
    todo = deque(((("root", name),), value, False) for name, value in roots.items())
    seen: set[int] = set()
    keep = []  # bound methods and the like are made anew by each look: an id must not be used twice
    while todo:
        path, value, in_workers = todo.popleft()
        if isinstance(value, _DATA) or id(value) in seen:
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, tuple(_KINDS.values())):
            yield path, value, in_workers
            continue
        workers = isinstance(value, torch.utils.data.DataLoader) and value.num_workers > 0
        for how, key, part in _parts(value):
            sent = workers and key in ("dataset", "collate_fn")
            todo.append(((*path, (how, key)), part, in_workers or sent))


def _parts(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """``(how, key, part)`` of whatever an object holds: attributes, items, what a function has closed over."""
    if isinstance(value, dict):
        yield from (("item", k, part) for k, part in value.items() if isinstance(k, str | int))
    elif isinstance(value, list | tuple):
        yield from (("item", number, part) for number, part in enumerate(value[:MOST_ITEMS]))
    elif isinstance(value, functools.partial):
        yield from (("attribute", name, getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, types.MethodType):
        yield "attribute", "__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        for number, cell in enumerate(value.__closure__ or ()):
            try:
                yield "cell", number, cell.cell_contents
            except ValueError:  # a cell that is still empty
                continue
        yield "attribute", "__defaults__", value.__defaults__
        yield "attribute", "__kwdefaults__", value.__kwdefaults__
    else:
        slots = [name for cls in type(value).__mro__ for name in _names(getattr(cls, "__slots__", ()))]
        names = [*getattr(value, "__dict__", ()), *(name for name in slots if not name.startswith("__"))]
        yield from (("attribute", name, getattr(value, name)) for name in names if hasattr(value, name))


def _names(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _follow(value: Any, how: str, key: Any) -> Any:
    if how == "item":
        return value[key]
    return value.__closure__[key].cell_contents if how == "cell" else getattr(value, key)


def _name(path: Path) -> str:
    written = {"root": "{}", "attribute": ".{}", "item": "[{!r}]", "cell": ".closure[{}]"}
    return "".join(written[how].format(key) for how, key in path)


def _state(generator: Any) -> Any:
    """The state as numbers, strings, containers and tensors: what ``torch.load(weights_only=True)`` reads."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(generator.bit_generator.state)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
