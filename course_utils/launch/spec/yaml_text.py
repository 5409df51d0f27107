"""YAML as people mean it, read safely: no key twice, no octal or base-60 numbers, no bomb of aliases.

PyYAML reads ``010`` as 8, ``1:30`` as 90, and of two equal keys the last one, all without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from course_utils.errors import SpecError

MOST_NODES = 20_000  # values of one file, aliases written out
MOST_CHARACTERS = 2_000_000
MOST_LEVELS = 60
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` with YAML 1.2's whole numbers."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:int"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, list("-+0123456789"))


def load_yaml(text: str, name: str, duplicates: list[tuple[str, int, int]] | None = None) -> Any:
    """The first document of ``text``; ``name`` begins the error's sentence.

    Args:
        duplicates: gets (key, first line, second line) of every key that stands twice; None: the first one is an error.

    Raises:
        SpecError: no YAML, a key that stands twice, or more than ``MOST_NODES`` values with aliases written out.
    """
    if len(text) > MOST_CHARACTERS:
        raise SpecError(f"{name} is too long ({len(text):,} characters); allowed: {MOST_CHARACTERS:,}")
    try:
        loader = _Loader(text)
        try:
            node = next(iter(_documents(loader)), None)
            if node is None:
                return None
            found: list[tuple[str, int, int]] = []
            _size(node, {}, 0, name, found)
            if found and duplicates is None:
                key, first, second = found[0]
                raise SpecError(f"{name}: {key!r} stands twice (lines {first} and {second}); allowed: once")
            if duplicates is not None:
                duplicates += found
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        if isinstance(error, SpecError):
            raise
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise SpecError(f"{name} is no YAML ({message})") from None


def _documents(loader: _Loader) -> Any:
    while loader.check_node():
        yield loader.get_node()


def _size(node: yaml.Node, sizes: dict[int, int], level: int, name: str, found: list[tuple[str, int, int]]) -> int:
    """Values below ``node``, aliases written out; duplicates are noted in ``found``."""
    if level > MOST_LEVELS:
        raise SpecError(f"{name} is nested more than {MOST_LEVELS} levels deep, or contains itself")
    if id(node) in sizes:
        return sizes[id(node)]
    total = 1
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    found.append((key.value, seen[key.value], line))
                seen[key.value] = line
            total += _size(key, sizes, level + 1, name, found) + _size(value, sizes, level + 1, name, found)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            total += _size(value, sizes, level + 1, name, found)
    if total > MOST_NODES:
        raise SpecError(f"{name} holds more than {MOST_NODES:,} values with its aliases written out")
    sizes[id(node)] = total
    return total
