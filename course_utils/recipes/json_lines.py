"""Rows from a file of JSON lines, each checked once and named by file, row and column; and files written whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from course_utils.data.cache import progress_bars_off

if TYPE_CHECKING:
    from datasets import Dataset

Columns = Sequence[set[str]]  # alternatives: a row has all columns of one of them
NO_ROOM = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)  # a cache that cannot be written


def rows_of(path: str | Path, name: str, columns: Columns) -> Iterator[dict[str, Any]]:
    """The rows of a file, with the columns of the first alternative that its first row has; blank lines are skipped.

    A file that begins with ``[`` is one JSON array of rows.

    Args:
        path: taken as it is: brackets and asterisks are characters like others.
        name: what asked for it, such as ``"train_file"``, for the sentence.
        columns: such as ``({"text"}, {"prompt", "completion"})``; ``label`` may be a whole number, all others are text.

    Raises:
        ValueError: no row, or one that is no UTF-8, no JSON, no object, lacks a column or has a value of another kind.
        OSError: the file cannot be read.
    """
    file, wanted = f"{name}={str(path)!r}", None
    for number, row in _read(Path(path), file):
        place = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{place} is {_shown(row)}; allowed: an object with {words_for(columns)}")
        wanted = wanted or next((needed for needed in columns if needed <= row.keys()), None)
        if wanted is None or not wanted <= row.keys():
            missing = " and no ".join(sorted((wanted or columns[0]) - row.keys()))
            has = _shown(sorted(row)).replace('"', "'")
            raise ValueError(f"{place} has no {missing}, but the columns {has}; allowed: {words_for(columns)}")
        yield {column: checked(row[column], column, place) for column in sorted(wanted)}
    if wanted is None:
        raise ValueError(f"{file} has no rows; allowed: at least one")


def _read(path: Path, file: str) -> Iterator[tuple[int, Any]]:
    """(row number from 1, value), as the lines of the file are counted."""
    with path.open("rb") as stream:
        start = stream.read(100).lstrip(b"\xef\xbb\xbf \t\r\n")
        stream.seek(0)
        if start.startswith(b"["):
            with contextlib.suppress(ValueError):  # else a line is named, as in any file
                yield from enumerate(_parse(stream.read(), file), 1)
                return
            stream.seek(0)
        for number, line in enumerate(stream, 1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, _parse(line, f"{file}, row {number}")


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no UTF-8 (byte {error.start}); allowed: text in UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise ValueError(f"{place} is no JSON ({reason}); allowed: one object a line") from error


def checked(value: Any, column: str, place: str) -> str:
    """``value`` as text that can be written; ``place`` names file and row.

    Raises:
        ValueError: it is no text (nor, in the column ``label``, a whole number), or holds half a character.
    """
    if column == "label" and isinstance(value, (int, bool)):
        value = str(value)
    if not isinstance(value, str):
        kinds = "text or a whole number" if column == "label" else "text"
        raise ValueError(f"{place} has {column}={_shown(value)}; allowed: {kinds}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{place} has half a character (a lone surrogate) in {column}; allowed: Unicode text"
        ) from None
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A stream to write; once the block is left without an error it is ``path``, every byte on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def words_for(columns: Columns) -> str:
    return " or ".join(" + ".join(sorted(needed, reverse=True)) for needed in columns)


def read_table(path: str | Path, name: str, columns: Columns) -> Dataset:
    """``rows_of`` as a table on the disk, made once for each content of the file; in memory where the cache is closed.

    Raises:
        ValueError, OSError: as ``rows_of``.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    with Path(path).open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    words = tuple(" ".join(sorted(needed)) for needed in columns)  # a list would be taken for shards
    made_from = {"path": str(path), "name": name, "columns": words, "content": content}
    try:
        with progress_bars_off():
            return Dataset.from_generator(_generate, gen_kwargs=made_from)
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        if not (isinstance(cause, OSError) and cause.errno in NO_ROOM):
            raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
    return Dataset.from_list(list(_generate(**made_from)))


def _generate(path: str, name: str, columns: tuple[str, ...], content: str) -> Iterator[dict[str, Any]]:
    """As ``datasets`` calls it: its cache is found again by these arguments."""
    yield from rows_of(path, name, [set(needed.split()) for needed in columns])
