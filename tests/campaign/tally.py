"""What a campaign counts: tried and survived per kind, and what did not survive, in words."""

from __future__ import annotations

from collections import Counter


class Tally:
    """``count(kind, fault)``: ``fault`` None means survived; ``check()`` prints the table and fails on any fault."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()
        self.faults: list[str] = []

    def count(self, kind: str, fault: str | None) -> None:
        self.tried[kind] += 1
        if fault is None:
            self.survived[kind] += 1
        else:
            self.faults.append(f"{kind}: {fault}")

    def check(self) -> None:
        width = max(map(len, self.tried), default=0)
        for kind in sorted(self.tried):
            print(f"CAMPAIGN {kind:{width}}  tried {self.tried[kind]:4}  survived {self.survived[kind]:4}")
        assert self.tried and not self.faults, "\n".join(self.faults)


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
