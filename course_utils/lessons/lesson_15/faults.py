"""Settings that a tool accepts and does not use, planted one at a time into good launch files (lesson 15).

A planted file is judged by what its tool resolves it to. "Nobody warned" is judged as well: while a tool reads, all
warnings and log messages are heard, those that were made quiet too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from course_utils.launch import Spec, table, write
from course_utils.launch.check import launchers
from course_utils.launch.check.rows import Row
from course_utils.launch.explain.explain import explain
from course_utils.launch.spec.silent import catalogue


class Fault(NamedTuple):
    """One edit of a good file: fields of the spec, the file, what is replaced by what, where the effect shows.

    ``entry`` is the setting's name in the catalogue of silent settings (``course_utils.launch.spec.silent``).
    """

    asked: dict[str, Any]
    file: str
    good: str
    bad: str
    shown: str
    field: str
    entry: str


MACHINES = {"model": "Qwen/Qwen3-0.6B", "nodes": 2, "gpus_per_node": 8}
KEEP, YAML, SCRIPT = {"reshard_after_forward": False}, "accelerate.yaml", "accelerate.sh"
KEY = "fsdp_reshard_after_forward"
FAULTS = {
    "FSDP2's word under FSDP1": Fault(
        KEEP | {"strategy": "fsdp1"},
        YAML,
        "fsdp_sharding_strategy:",
        f"{KEY}:",
        SCRIPT,
        "sharding strategy",
        "fsdp1-ignores-key",
    ),
    "FSDP1's word under FSDP2": Fault(
        KEEP,
        YAML,
        f"{KEY}: false",
        "fsdp_sharding_strategy: SHARD_GRAD_OP",
        SCRIPT,
        "reshard after forward",
        "fsdp2-ignores-key",
    ),
    "the version left out": Fault(
        {}, YAML, "  fsdp_version: 2", "  # fsdp_version: 2", SCRIPT, "strategy", "fsdp1-deprecated"
    ),
    "fsdp_offload_params in TrainingArguments": Fault(
        {"offload": "all"},
        "fsdp.json",
        '"cpu_offload"',
        '"fsdp_offload_params"',
        "torchrun.sh",
        "offload",
        "fsdp-config-unread",
    ),
    "rdzv_backend in the YAML": Fault(
        {},
        YAML,
        "use_cpu: false",
        "rdzv_backend: c10d\nuse_cpu: false",
        YAML,
        "settings that are ignored",
        "yaml-flag-only",
    ),
    "16 processes on 3 machines of 6 GPUs": Fault(
        {"nodes": 3, "gpus_per_node": 6},
        YAML,
        "num_processes: 18",
        "num_processes: 16",
        SCRIPT,
        "world size",
        "processes-round-down",
    ),
    "a list of layer classes": Fault(
        {}, YAML, '"Qwen3DecoderLayer"', '["Qwen3DecoderLayer"]', SCRIPT, "wrapped classes", "layer-class-list"
    ),
    "dp_shard_size without its prefix": Fault(
        {"replicas": 2},
        YAML,
        "parallelism_config_dp",
        "dp",
        SCRIPT,
        "replicate x shard x tensor x context",
        "parallelism-product",
    ),
}


def resolved(spec: Spec, folder: Path) -> tuple[list[Row], list[str]]:
    """The check's rows for the launchers' files in ``folder``, and every warning or message heard meanwhile."""
    from transformers import training_args

    heard: list[str] = []
    loud = mock.patch.object(logging.Logger, "isEnabledFor", lambda self, level: level >= logging.WARNING)
    listen = mock.patch.object(logging.Logger, "callHandlers", lambda self, said: heard.append(said.getMessage()))
    fsdp1 = mock.patch.object(training_args.logger, "warning", heard.append)  # that it is deprecated
    with warnings.catch_warnings(record=True) as caught, loud, listen, fsdp1:
        warnings.simplefilter("always")
        rows = launchers.rows(spec, folder)
    return rows, heard + [str(warning.message) for warning in caught]


@contextlib.contextmanager
def edited(spec: Spec, file: str, good: str, bad: str) -> Iterator[Path]:
    """A folder with the spec's launch files, in one of which ``good`` is replaced by ``bad``.

    Raises:
        ValueError: ``good`` does not stand in the file exactly as it should.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "launch")
        write(spec, folder)
        text = (folder / file).read_text(encoding="utf-8")
        if good not in text:
            raise ValueError(f"{good!r} does not stand in {file}")
        (folder / file).write_text(text.replace(good, bad), encoding="utf-8")
        yield folder


@functools.cache
def _usual(spec: Spec) -> frozenset[str]:
    """What the tools say about the good files."""
    with tempfile.TemporaryDirectory() as scratch:
        write(spec, Path(scratch, "launch"))
        return frozenset(resolved(spec, Path(scratch, "launch"))[1])


def plant(name: str) -> tuple[list[Row], list[str]]:
    """Plant ``FAULTS[name]``: what differs then in the file where it shows, and what any tool said that was new."""
    fault = FAULTS[name]
    spec = Spec(**MACHINES | fault.asked)
    usual = _usual(spec)
    with edited(spec, fault.file, fault.good, fault.bad) as folder:
        rows, heard = resolved(spec, folder)
    return [row for row in rows if not row.same and row.file == fault.shown], sorted(set(heard) - usual)


def gallery() -> tuple[dict[str, Row], list[str]]:
    """Every fault: the row that shows it, by the fault's name; and all that the tools said about them."""
    found, heard = {}, []
    for name, fault in FAULTS.items():
        rows, said = plant(name)
        found[name] = next(row for row in rows if row.field == fault.field)
        heard += said
    return found, heard


def stops(name: str) -> bool:
    """Whether the ranks stop over this fault, as the catalogue says; the others train on."""
    return "raise" in catalogue()[FAULTS[name].entry].shows


def gallery_table(found: dict[str, Row]) -> str:
    """Asked, in use, and whether the ranks train; a line per fault."""
    lines = [f"{'planted':42}{'asked':23}{'in use':26}the ranks"]
    for name, row in found.items():
        asked, in_use = str(row.asked), str(row.resolved)
        if row.field == "settings that are ignored":  # the row lists them
            asked, in_use = "c10d", "key ignored"
        lines.append(f"{name:42}{asked:23}{in_use:26}{'stop' if stops(name) else 'train'}")
    return "\n".join(lines)


def cures() -> str:
    """For each fault what ``explain`` says about the planted file, its cure included, and how the fault shows."""
    lines = []
    for name, fault in FAULTS.items():
        entry = catalogue()[fault.entry]
        with edited(Spec(**MACHINES | fault.asked), fault.file, fault.good, fault.bad) as folder:
            findings = explain([folder / fault.file]).findings
        # a size without its prefix is the cause, the product only what comes of it
        wanted = ("parallelism-prefix",) if fault.entry == "parallelism-product" else (fault.entry,)
        said = [one.sentence for one in findings if one.name in wanted]
        # that a file says no version is nothing to complain about; that FSDP1 comes of it is
        shows = entry.shows if said else "FSDP1, without a word from accelerate"
        lines += [f"{name} ({entry.since})", f"    {said[-1] if said else entry.sentence()}", f"    -> {shows}"]
    return "\n".join(lines)


def show(name: str) -> list[Row]:
    """Print what the fault makes of its file, and return those rows."""
    rows, heard = plant(name)
    print(table(rows))
    print("said by the tools:", "; ".join(heard) or "nothing")
    return rows
