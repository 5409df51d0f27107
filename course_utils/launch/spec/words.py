"""Flags among the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def value_of(words: Sequence[str], name: str) -> str | None:
    """The last value of a flag, written ``--name=value`` or ``--name value``; None: it is not among the words."""
    found = None
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        if flag == name:
            found = value if equals else following
    return found
