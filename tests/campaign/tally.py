"""What a campaign counts: tried and survived per kind, and what did not survive, in words.

CAMPAIGN_RECORD=1 make test-long        # the counts also go into bench/results/reliability.json
python -m tests.campaign.tally          # README's lines out of it
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

RECORD = Path(__file__).resolve().parents[2] / "bench" / "results" / "reliability.json"
# Of many kinds each: one line in README.
MERGED = ("--resume adapt", "another seed", "bad number", "bad row", "odd parameters")
BESIDE = "nothing written"  # counted once a campaign, not a try of its own


class Tally:
    """``count(kind, fault)``: ``fault`` None means survived; ``check()`` prints the table and fails on any fault."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()
        self.notes: dict[str, Counter[str]] = {}
        self.faults: list[str] = []

    def note(self, kind: str, what: str) -> None:
        """Something about a try that is worth counting, such as where it happened."""
        self.notes.setdefault(kind, Counter())[what] += 1

    def count(self, kind: str, fault: str | None) -> None:
        self.tried[kind] += 1
        if fault is None:
            self.survived[kind] += 1
        else:
            self.faults.append(f"{kind}: {fault}")

    def check(self) -> None:
        width = max(map(len, self.tried), default=0)
        for kind in sorted(self.tried):
            notes = ", ".join(f"{what} {count}" for what, count in sorted(self.notes.get(kind, {}).items()))
            print(f"CAMPAIGN {kind:{width}}  tried {self.tried[kind]:4}  survived {self.survived[kind]:4}  {notes}")
        if os.environ.get("CAMPAIGN_RECORD"):
            self.record()
        assert self.tried and not self.faults, "\n".join(self.faults)

    def record(self) -> None:
        """Put the counts of these kinds, with the date and the machine, into ``RECORD``; the other kinds stay.

        Done by ``check`` where the variable CAMPAIGN_RECORD is set.
        """
        from bench.record import processor, write

        known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        known = {name: entry for name, entry in known.items() if not any(k.startswith(f"{name}:") for k in self.tried)}
        for kind in self.tried.keys() - {BESIDE}:
            known[kind] = {
                "tried": self.tried[kind],
                "survived": self.survived[kind],
                "date": time.strftime("%Y-%m-%d"),
                "machine": processor(),
            } | ({"notes": dict(self.notes[kind])} if kind in self.notes else {})
        write(RECORD, dict(sorted(known.items())))


def lines_of_readme() -> dict[str, tuple[int, int]]:
    """What ``RECORD`` says, as README shows it: name -> tried and survived."""
    lines: dict[str, tuple[int, int]] = {}
    for kind, entry in json.loads(RECORD.read_text()).items():
        name = next((name for name in MERGED if kind.startswith(name)), kind)
        tried, survived = lines.get(name, (0, 0))
        lines[name] = tried + entry["tried"], survived + entry["survived"]
    return lines


def ended(start: Callable[[], object]) -> tuple[object, str, str]:
    """How ``start`` ended, in this process: (exit code or what it raised, standard error, standard output)."""
    out, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            start()
        except SystemExit as error:
            code = error.code or 0
        except Exception as error:  # any: it is what the campaign looks for
            code = f"{type(error).__name__}: {error}"
    return code, errors.getvalue(), out.getvalue()


def sentence_of(code: object, errors: str) -> tuple[str | None, str]:
    """``(fault, sentence)``: a refusal is exit code 2 and one line that begins with ``error: ``, and no traceback."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    if code != 2:
        return f"exit code {code}", errors[-300:]
    if "Traceback" in errors or len(lines) != 1:
        return "no single sentence", errors[-300:]
    return (None if len(lines[0]) < 600 else "a sentence of more than 600 characters"), lines[0]


def tree(folder) -> dict[str, tuple[int, int]]:
    """Everything below ``folder`` with sizes and times, to see that nothing was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.stat()
        found[str(path)] = (stat.st_size if path.is_file() else -1, stat.st_mtime_ns if path.is_file() else 0)
    return found


if __name__ == "__main__":
    for name, (tried, survived) in lines_of_readme().items():
        print(f"| {name} | {tried} | {survived} |")
