"""``explain``: anybody's launch files, read as the tools read them, without a spec and without executing anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from course_utils.errors import SpecError
from course_utils.launch.check.rows import quiet
from course_utils.launch.explain import (
    accelerate_yaml,
    across,
    cloud_yaml,
    deepspeed_json,
    python_file,
    recognized,
    shell_script,
    training_arguments,
)
from course_utils.launch.explain.reading import Finding, Reading, Setting, secrets, short
from course_utils.launch.spec.silent import catalogue
from course_utils.launch.spec.yaml_text import load_yaml

MOST_BYTES = 2_000_000
SHELL = (".sh", ".bash", ".sbatch", ".slurm", ".job")
ALLOWED = (
    "an accelerate, SkyPilot, TrainJob or TrainingArguments YAML, a DeepSpeed or TrainingArguments JSON, "
    "a shell script, or a Python file"
)


class Explanation(NamedTuple):
    """All settings of all files, and all findings, those that concern several files last."""

    kinds: dict[str, str]  # file -> what it was taken for
    settings: list[Setting]
    findings: list[Finding]

    def as_json(self) -> str:
        found = {"files": self.kinds, "settings": [row._asdict() for row in self.settings]}
        found["findings"] = [
            finding._asdict() | {"shows": catalogue()[finding.name].shows, "since": catalogue()[finding.name].since}
            for finding in self.findings
        ]
        return json.dumps(found, indent=2, ensure_ascii=False, default=str)


def explain(paths: Sequence[str | os.PathLike[str]], asked: Mapping[str, str] | None = None) -> Explanation:
    """Read every file of ``paths`` and what they say together.

    Args:
        asked: what the run should be: name of a fact (``micro_batch``, ``world_size``, ``precision`` ...) or of any
            setting in the table -> value.

    Raises:
        SpecError: a file cannot be read, or is none of ``ALLOWED``.
    """
    with quiet():
        readings = [read_file(Path(path)) for path in paths]
        together = across.join(readings, asked or {})
    every = [*readings, together]
    return Explanation(
        {reading.file: reading.kind for reading in readings},
        [row for reading in every for row in reading.settings],
        [finding for reading in every for finding in reading.findings],
    )


def read_file(path: Path) -> Reading:
    """One file, taken for what its name and content say."""
    name = short(str(path))
    try:
        if not path.is_file():
            raise SpecError(f"file={name!r} is no file; allowed: {ALLOWED}")
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(f"file={name!r} is larger than {MOST_BYTES:,} bytes; allowed: {ALLOWED}")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"file={name!r} cannot be read ({error.strerror}); allowed: {ALLOWED}") from None
    except (UnicodeDecodeError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"file={name!r} is no UTF-8 text; allowed: {ALLOWED}") from None
    reading = Reading(name)
    try:
        _dispatch(reading, path, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, SpecError):
            raise
        said = " ".join(str(error).split())[:160]
        raise SpecError(f"file={name!r} cannot be read ({said or type(error).__name__}); allowed: {ALLOWED}") from None
    for line, shown in secrets(text):
        reading.find("secret-in-file", line=line, shown=shown)
    return reading


def _dispatch(reading: Reading, path: Path, text: str) -> None:
    suffix = path.suffix.lower()
    if "\0" in text:
        raise SpecError(f"file={reading.file!r} is no text; allowed: {ALLOWED}")
    if suffix == ".py":
        python_file.explain(reading, text)
    elif suffix in SHELL or re.match(r"#!.*\b(ba|z|k)?sh\b", text):
        shell_script.explain(reading, text)
    elif suffix == ".json":
        _mapping(reading, _json(reading, text))
    elif suffix in (".yaml", ".yml", ""):
        duplicates: list[tuple[str, int, int]] = []
        content = load_yaml(text, f"file={reading.file!r}", duplicates)
        _mapping(reading, content)
        for key, first, second in duplicates:
            reading.find("duplicate-key", name=key, first=first, second=second)
    else:
        raise SpecError(f"file={reading.file!r} is of no kind that is known; allowed: {ALLOWED}")


def _json(reading: Reading, text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in items:
            if key in seen:
                reading.find("duplicate-key", name=key, first="?", second="?")
            seen.add(key)
        return dict(items)

    return json.loads(text, object_pairs_hook=pairs)


def _mapping(reading: Reading, content: Any) -> None:
    """A YAML or JSON mapping, by the keys it has."""
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise SpecError(f"file={reading.file!r} holds no settings by name; allowed: {ALLOWED}")
    if tool := recognized.foreign(content):
        raise SpecError(f"file={reading.file!r} is for {tool}, which has its own names; allowed: {ALLOWED}")
    if cloud_yaml.is_trainjob(content):
        cloud_yaml.trainjob(reading, content)
    elif accelerate_yaml.is_accelerate(content):
        accelerate_yaml.explain(reading, content)
    elif deepspeed_json.is_deepspeed(content):
        deepspeed_json.explain(reading, content)
    elif cloud_yaml.is_sky(content):
        cloud_yaml.sky(reading, content)
    elif recognized.is_fsdp_config(content):
        reading.kind = "fsdp_config of TrainingArguments"
        training_arguments.fsdp_config(reading, content)
    elif known := recognized.config_class(content):
        reading.kind = known
        training_arguments.judge(reading, content, known, may_be_others=True)
        if content.get("trust_remote_code") is True:
            reading.find("remote-code")
    else:
        raise SpecError(f"file={reading.file!r} is of no kind that is known; allowed: {ALLOWED}")


def table(explanation: Explanation, width: int = 46) -> str:
    """The settings, one line each, and under them the findings, one sentence each."""
    lines = [("file", "setting", "as written", "resolved to", "by")]
    lines += [tuple(str(cell) for cell in row) for row in explanation.settings]
    cut = [tuple(cell if len(cell) <= width else f"{cell[: width - 3]}..." for cell in line) for line in lines]
    widths = [max(len(line[column]) for line in cut) for column in range(5)]
    rows = ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in cut]
    found = [f"{row.kind}: {row.file}: {row.sentence} [{row.name}]" for row in explanation.findings]
    return "\n".join([*rows, "", *found, f"{len(explanation.settings)} settings, {len(found)} findings"])
