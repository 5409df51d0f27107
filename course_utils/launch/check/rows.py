"""One comparison and the table of many: what the spec asks for, beside what a tool makes of a file."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One comparison: in which file, of what, what the spec asks for, what the tool makes of the file."""

    file: str
    field: str
    asked: Any
    resolved: Any

    @property
    def same(self) -> bool:
        return self.asked == self.resolved


def guarded(file: str, rows_of: Callable[..., Iterable[Row]], *arguments: Any) -> list[Row]:
    """The rows of ``rows_of(*arguments)``; a file its tool cannot read is a row that differs, not a traceback."""
    found: list[Row] = []
    try:
        found.extend(rows_of(*arguments))
    except (Exception, SystemExit) as error:
        found.append(Row(file, "can be resolved", "yes", f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log of the tools (no GPU here, names that will go away): rows and findings say what counts."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)


def table(rows: Iterable[Row], width: int = 44) -> str:
    """The rows as text, one line each; values longer than ``width`` characters are cut unless they differ."""

    def shown(value: Any, row: Row) -> str:
        text = value if isinstance(value, str) and value.isprintable() else repr(value)
        return text if len(text) <= width or not row.same else f"{text[: width - 3]}..."

    lines = [("file", "what", "asked", "resolved", "same")]
    lines += [
        (row.file, row.field, shown(row.asked, row), shown(row.resolved, row), "yes" if row.same else "NO")
        for row in rows
    ]
    widths = [min(max(len(line[column]) for line in lines), width) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines
    )
