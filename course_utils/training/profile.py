"""A profiler trace taken, summed up by operator, and read back as a timeline (lesson 09).

``torch.profiler`` notes when each operator began and ended, https://docs.pytorch.org/docs/stable/profiler.html . The
file it exports is the Chrome trace format, which https://ui.perfetto.dev opens without uploading it anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Operator(NamedTuple):
    """All calls of one operator: seconds in itself, without the operators it called, and how many calls."""

    name: str
    seconds: float
    calls: int


class Event(NamedTuple):
    """Something that ran from ``start`` for ``seconds``; ``kind``: ``operator``, ``span`` or ``kernel`` (on a GPU)."""

    name: str
    kind: str
    start: float
    seconds: float

    @property
    def end(self) -> float:
        return self.start + self.seconds


class Trace(NamedTuple):
    """What a profiled call did: operators with the slowest first, events in order of time from 0, the file."""

    operators: list[Operator]
    events: list[Event]
    file: Path

    def spans(self) -> list[Event]:
        """What the program marked with ``torch.profiler.record_function``."""
        return [event for event in self.events if event.kind == "span"]


_KINDS = {"cpu_op": "operator", "user_annotation": "span", "kernel": "kernel"}


def record(function: Callable[[], Any], file: str | Path, warmup: int = 1) -> Trace:
    """Call ``function`` under the profiler and export the trace to ``file`` (JSON, for Perfetto).

    Args:
        function: usually one training step with its parts marked by ``record_function``.
        file: where the trace goes; its folder exists.
        warmup: calls before, unprofiled.

    Raises:
        ValueError: ``warmup`` below 0.
    """
    from torch.profiler import ProfilerActivity, profile

    if warmup < 0:
        raise ValueError(f"warmup={warmup} is out of range; allowed: a whole number >= 0")
    for _ in range(warmup):
        function()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with _quiet_stderr(), profile(activities=activities) as profiler:
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with _quiet_stderr():
        profiler.export_chrome_trace(str(file))
    events = read(file)
    marked = {event.name for event in events if event.kind == "span"}
    operators = [
        Operator(entry.key, entry.self_cpu_time_total / 1e6, entry.count)
        for entry in profiler.key_averages()
        if entry.key not in marked and not entry.key.startswith(("ProfilerStep", "[memory]"))
    ]
    return Trace(sorted(operators, key=lambda one: -one.seconds), events, Path(file))


def read(file: str | Path) -> list[Event]:
    """The events of an exported trace, times in seconds from the first one."""
    with open(file) as stream:
        raw = [e for e in json.load(stream)["traceEvents"] if e.get("ph") == "X" and e.get("cat") in _KINDS]
    if not raw:
        return []
    first = min(event["ts"] for event in raw)
    found = [Event(e["name"], _KINDS[e["cat"]], (e["ts"] - first) / 1e6, e["dur"] / 1e6) for e in raw]
    return sorted(found, key=lambda event: (event.start, -event.seconds))


def busy_seconds(events: Sequence[Event], start: float, end: float, kind: str = "operator") -> float:
    """Seconds between ``start`` and ``end`` in which at least one event of ``kind`` ran; nested ones count once."""
    busy, reached = 0.0, start
    for event in sorted(events, key=lambda event: event.start):
        if event.kind == kind and event.end > reached and event.start < end:
            busy += min(event.end, end) - max(event.start, reached)
            reached = min(event.end, end)
    return busy


def gaps(events: Sequence[Event], start: float, end: float, shortest: float = 0.0) -> list[tuple[float, float]]:
    """Stretches of at least ``shortest`` seconds between ``start`` and ``end`` in which no operator ran."""
    found, reached = [], start
    for event in sorted(events, key=lambda event: event.start):
        if event.kind != "operator" or event.end <= reached or event.start >= end:
            continue
        if event.start - reached > shortest:
            found.append((reached, event.start))
        reached = max(reached, event.end)
    return [*found, (reached, end)] if end - reached > shortest else found


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's C++ library writes lines about itself to file descriptor 2, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
