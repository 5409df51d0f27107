"""Prepare instruction data once, for any number of ranks: JSON lines with the columns prompt and completion.

The course's rows, or a hub data set whose columns are called otherwise:

    python -m course_utils.recipes.prepare_data --folder data/which
    python -m course_utils.recipes.prepare_data --folder data/dolly --dataset_name databricks/databricks-dolly-15k \\
        --prompt $'{question}\\n\\n{passage}\\n\\nAnswer:' --answer ' {reply}' \\
        --fields question=instruction passage=context reply=response
    torchrun --standalone --nproc-per-node 2 -m course_utils.recipes.prepare_data --folder data/which

Rank 0 writes, the others wait, with a time limit. Each file appears under its final name only when it is whole; the
marker DONE.json, with rows and checksums, comes last. A folder whose marker matches its files and the settings is left
alone; anything else (a crash in between, other settings) is written anew. ``finetune --task causal_lm --train_file
data/which/train.jsonl`` reads the files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from course_utils.data.instructions import Template

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
        ValueError: no row at all, or a row lacks a column of the template.
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)  # from here on nobody may take the old files for the new ones
    if set(splits) == {"train"}:
        splits = divide(splits["train"], template)
    files = {}
    for split, rows in splits.items():
        lines = []
        for row in rows:
            prompt, completion = template.render(row)
            if completion.strip():
                lines.append(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False))
        if split == "train" and not lines:
            raise ValueError("the training split has no row with an answer; allowed: at least one")
        _write(folder / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))
        files[split] = {"rows": len(lines), "sha256": _checksum(folder / f"{split}.jsonl")}
    _write(folder / MARKER, json.dumps({"settings": settings, "files": files}, indent=1))


def split_of(text: str, bounds: Mapping[str, float] = SHARES) -> str:
    """The split of a row, from a hash of its prompt: the same on every machine, and equal prompts stay together."""
    place = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    return next(split for split, bound in bounds.items() if place < bound)


def divide(rows: Iterable[Mapping[str, Any]], template: Template) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of a data set without splits -> train, validation, test."""
    splits: dict[str, list] = {name: [] for name in SHARES}
    for row in rows:
        splits[split_of(template.render(row)[0])].append(row)
    return splits


def _write(path: Path, text: str) -> None:
    """Whole or not there: written under another name, forced to the disk, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(arguments: argparse.Namespace) -> Mapping[str, Iterable]:
    if not arguments.dataset_name:
        from course_utils.data import load_instructions

        return load_instructions(arguments.source)
    from datasets import load_dataset

    from course_utils.hub import require_hub

    if not Path(arguments.dataset_name).is_dir():
        require_hub()
    return load_dataset(arguments.dataset_name)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        SystemExit: a flag that is not known.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the files go; seen by all ranks")
    parser.add_argument("--source", choices=("local", "hub"), default="local", help="the course's instructions")
    parser.add_argument("--dataset_name", help="a hub data set, or a folder with one, in place of --source")
    parser.add_argument("--prompt", default=Template().prompt, help="template of the prompt, fields in braces")
    parser.add_argument("--answer", default=Template().answer, help="template of the answer")
    parser.add_argument("--fields", nargs="*", default=[], metavar="FIELD=COLUMN", help="columns called otherwise")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that ranks other than 0 wait")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Path]:
    """Prepare, and print a line for each file on rank 0."""
    options = parse(arguments)
    try:
        fields = dict(pair.split("=", 1) for pair in options.fields)
        template = Template(options.prompt, options.answer, fields)
        settings = {"source": options.source, "dataset_name": options.dataset_name}
        files = prepare(options.folder, lambda: _load(options), template, settings, timeout=options.timeout)
    except (ValueError, OSError) as error:  # TimeoutError and ConnectionError are OSErrors
        raise SystemExit(f"error: {error}") from error
    if int(os.environ.get("RANK", 0)) == 0:
        counts = json.loads((Path(options.folder) / MARKER).read_text())["files"]
        for split, path in files.items():
            print(f"{path}: {counts[split]['rows']} rows")
    return files


if __name__ == "__main__":
    main()
