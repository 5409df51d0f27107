"""Prepare instruction data once, for any number of ranks: JSON lines with the columns prompt and completion.

The course's rows, or a hub data set whose columns are called otherwise:

    python -m course_utils.recipes.prepare_data --folder data/which
    python -m course_utils.recipes.prepare_data --folder data/dolly --dataset_name databricks/databricks-dolly-15k \\
        --prompt $'{question}\\n\\n{passage}\\n\\nAnswer:' --answer ' {reply}' \\
        --fields question=instruction passage=context reply=response
    torchrun --standalone --nproc-per-node 2 -m course_utils.recipes.prepare_data --folder data/which

Rank 0 writes, the others wait, with a time limit. Each file appears under its final name only when all are whole; the
marker DONE.json, with rows and checksums, comes last. A folder whose marker matches its files and the settings is left
alone; anything else (a crash in between, other settings) is written anew. ``finetune --task causal_lm --train_file
data/which/train.jsonl`` reads the files. What cannot be used, a flag or a row, ends the program with one sentence and
exit code 2, and the folder is as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from course_utils.data.instructions import Template
from course_utils.recipes.command_line import Parser, folder_to_write, from_folder_or_hub, from_to, refuse, refusing
from course_utils.recipes.json_lines import checked, whole_file

MARKER = "DONE.json"
SHARES = {"train": 0.8, "validation": 0.9, "test": 1.0}  # upper bounds of a row's hash
POLL = 0.2  # seconds between two looks of a waiting rank


def prepare(
    folder: str | Path,
    load: Callable[[], Mapping[str, Iterable[Mapping[str, Any]]]],
    template: Template,
    settings: Mapping[str, Any] | None = None,
    *,
    rank: int | None = None,
    timeout: float = 600,
) -> dict[str, Path]:
    """The files of ``folder``, split -> path, written by rank 0 if they are not there yet.

    Args:
        folder: seen by all ranks.
        load: called on rank 0 only: split -> rows. A single split "train" is divided into three by ``split_of``.
        template: rows -> prompt and completion.
        settings: whatever else the rows depend on, as JSON; it is compared with the marker.
        rank: None: from the environment variable RANK, else 0.
        timeout: seconds that the other ranks wait.

    Raises:
        TimeoutError: rank 0 did not finish in time; it may have crashed.
        ValueError: no row at all, or one that lacks a column of the template or holds something else than text, named
            by split and number. The folder is as it was.
    """
    folder, rank = Path(folder), int(os.environ.get("RANK", 0)) if rank is None else rank
    wanted = json.loads(json.dumps({"prompt": template.prompt, "answer": template.answer, **(settings or {})}))
    wanted["fields"] = dict(template.fields)
    if rank == 0:
        if finished(folder, wanted) is None:
            _write_all(folder, load(), template, wanted)
        return finished(folder, wanted)
    deadline = time.monotonic() + timeout
    while (files := finished(folder, wanted)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"rank {rank} waited {timeout:g} s for {folder / MARKER}; look at rank 0's output, or allow more time"
            )
        time.sleep(POLL)
    return files


def finished(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path] | None:
    """Split -> file if the marker is there, names these ``settings``, and every file is as it says; else None."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        if marker["settings"] != settings:
            return None
        files = {split: folder / f"{split}.jsonl" for split in marker["files"]}
        same = all(_checksum(path) == marker["files"][split]["sha256"] for split, path in files.items())
        return files if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_all(folder: Path, splits: Mapping[str, Iterable[Mapping]], template: Template, settings: dict) -> None:
    """Every split's file under another name, then all under their own, then the marker."""
    counts = Counter()
    with _no_empty_folder(folder), contextlib.ExitStack() as files:
        for leftover in folder.glob(".*.jsonl.*.tmp"):  # of a killed rank 0
            leftover.unlink(missing_ok=True)
        names = list(SHARES if set(splits) == {"train"} else splits)
        streams = {split: files.enter_context(whole_file(folder / f"{split}.jsonl")) for split in names}
        for split, prompt, completion in rendered(splits, template):
            row = {"prompt": prompt, "completion": completion}
            streams[split].write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[split] += 1
        if not counts["train"]:
            raise ValueError("the train split has no row with an answer; allowed: at least one")
        (folder / MARKER).unlink(missing_ok=True)  # from here on nobody may take the old files for the new ones
    made = {name: {"rows": counts[name], "sha256": _checksum(folder / f"{name}.jsonl")} for name in names}
    with whole_file(folder / MARKER) as stream:
        stream.write(json.dumps({"settings": settings, "files": made}, indent=1))


def rendered(splits: Mapping[str, Iterable[Mapping]], template: Template) -> Iterator[tuple[str, str, str]]:
    """``(split, prompt, completion)`` of every row that has an answer; a single split "train" is divided in three.

    Raises:
        ValueError: a row cannot be rendered; the sentence names split, row (from 1) and column.
    """
    is_divided = set(splits) == {"train"}
    for split, rows in splits.items():
        for number, row in enumerate(rows, 1):
            place = f"the {split} split, row {number},"
            try:
                prompt, completion = template.render(row)
            except ValueError as error:
                raise ValueError(f"{place} {str(error).removeprefix('the row ')}") from error
            if completion.strip():
                prompt, completion = checked(prompt, "prompt", place), checked(completion, "completion", place)
                yield (split_of(prompt) if is_divided else split), prompt, completion


def split_of(text: str, bounds: Mapping[str, float] = SHARES) -> str:
    """The split of a row, from a hash of its prompt: the same on every machine, and equal prompts stay together."""
    place = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    return next(split for split, bound in bounds.items() if place < bound)


@contextlib.contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Make ``folder``; after an error it goes again if it was not there."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # innermost first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: somebody else's file
            for place in made:
                place.rmdir()
        raise


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(options: argparse.Namespace) -> Mapping[str, Iterable]:
    if not options.dataset_name:
        from course_utils.data import load_instructions

        return load_instructions(options.source)
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        with from_folder_or_hub(options.dataset_name, "dataset"):
            return load_dataset(options.dataset_name)
    except DatasetGenerationError as error:
        reason = error.__cause__ or error
        raise ValueError(f"dataset_name={options.dataset_name!r} cannot be read: {reason}") from error


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with ``template`` made of its flags; one that cannot be used ends the program."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--folder", required=True, type=folder_to_write, help="where the files go; seen by all ranks")
    add("--source", choices=("local", "hub"), default="local", help="the course's instructions")
    add("--dataset_name", help="a hub data set, or a folder with one, in place of --source")
    add("--prompt", default=Template().prompt, help="template of the prompt, fields in braces")
    add("--answer", default=Template().answer, help="template of the answer")
    add("--fields", nargs="*", default=[], metavar="FIELD=COLUMN", help="columns called otherwise")
    add("--timeout", type=from_to(0, kind=float), default=600, help="seconds that ranks other than 0 wait")
    options = parser.parse_args(arguments)
    if options.dataset_name is not None:
        _check_name(options)
    with refusing():
        options.template = Template(options.prompt, options.answer, _fields(options.fields))
    if unread := sorted(options.template.fields.keys() - options.template.names):
        allowed = ", ".join(sorted(options.template.names))
        refuse(f"argument --fields: {unread[0]!r} is a field of neither template; allowed: {allowed}")
    return options


def _check_name(options: argparse.Namespace) -> None:
    name = options.dataset_name
    if options.source != "local":
        refuse(f"argument --dataset_name: {name!r} contradicts --source {options.source}; allowed: one of them")
    is_path = name.startswith(("/", ".", "~"))
    if not name.strip() or "\0" in name or (is_path and not Path(name).is_dir()):
        refuse(f"argument --dataset_name: {name!r} is no folder; allowed: a folder with a data set, or a hub name")
    if set(name) & set("*?[]"):
        refuse(f"argument --dataset_name: {name!r} would be read as a pattern; allowed: a name without *, ? and []")


def _fields(pairs: list[str]) -> dict[str, str]:
    fields = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column) or name in fields:
            raise ValueError(f"argument --fields: {pair!r} is no FIELD=COLUMN; allowed: such as question=instruction")
        fields[name] = column
    return fields


def main(arguments: list[str] | None = None) -> dict[str, Path]:
    """Prepare, and print a line for each file on rank 0."""
    options = parse(arguments)
    settings = {"source": options.source, "dataset_name": options.dataset_name}
    with refusing():  # TimeoutError and ConnectionError are OSErrors
        files = prepare(options.folder, lambda: _load(options), options.template, settings, timeout=options.timeout)
    if int(os.environ.get("RANK", 0)) == 0:
        counts = json.loads((options.folder / MARKER).read_text())["files"]
        for split, path in files.items():
            print(f"{path}: {counts[split]['rows']} rows")
    return files


if __name__ == "__main__":
    main()
