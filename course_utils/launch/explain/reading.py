"""What reading one file gives: its settings, what they say about the run, and what is wrong with them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from course_utils.launch.spec.silent import catalogue

LONGEST = 120  # characters of a value in a sentence


class Open(str):
    """A value that is not known before the file is started: its text, with the names of what it waits for."""

    names: tuple[str, ...]

    def __new__(cls, text: str, names: tuple[str, ...] = ()) -> Open:
        found = super().__new__(cls, text)
        found.names = names
        return found


class Setting(NamedTuple):
    """One line of the table."""

    file: str
    name: str
    written: Any
    resolved: Any
    tool: str


class Finding(NamedTuple):
    """One sentence, with the cure; ``name`` is the entry of the catalogue."""

    file: str
    name: str
    kind: str
    sentence: str


class Fact(NamedTuple):
    """What a file says about the run in words that all files share (``nodes``, ``micro_batch``, ``precision`` ...)."""

    file: str
    name: str
    value: Any
    setting: str
    run: str = ""  # of several runs in one script: which


@dataclass
class Reading:
    """One file: see the classes above. ``arguments`` are TrainingArguments' values found in it, for other files."""

    file: str
    kind: str = ""
    settings: list[Setting] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    run: str = ""

    def set(self, name: str, written: Any, resolved: Any, tool: str) -> None:
        self.settings.append(Setting(self.file, name, short(written), short(resolved), tool))

    def find(self, entry: str, **details: Any) -> None:
        """Note a finding once."""
        found = catalogue()[entry]
        details = {key: value if isinstance(value, int | float) else short(value) for key, value in details.items()}
        finding = Finding(self.file, entry, found.kind, found.sentence(**details))
        if finding not in self.findings:
            self.findings.append(finding)

    def know(self, name: str, value: Any, setting: str) -> None:
        """Note a fact, unless it is open."""
        if value is not None and not isinstance(value, Open):
            self.facts.append(Fact(self.file, name, value, setting, self.run))

    def fact(self, name: str) -> Any:
        """The last value of a fact in this file, of the current run; None: not said."""
        found = [fact.value for fact in self.facts if fact.name == name and fact.run in ("", self.run)]
        return found[-1] if found else None


def short(value: Any) -> Any:
    """A value as it may stand in a table: text without control characters, and not longer than ``LONGEST``."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    is_open = isinstance(value, Open)
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    text = mask(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")
    return Open(text, value.names) if is_open else text


SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{12,}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abp]-[\w-]{10,})"
)
ASSIGNED = re.compile(
    r"""(?i)\b\w*(api_?key|secret|token|password|passwd|access_key)(_id)?\b["']?\s*[=:]\s*["']?([A-Za-z0-9/+_.-]{16,})"""
)


def mask(text: str) -> str:
    """The text without what looks like a key, so that no report repeats it."""
    return SECRET.sub(lambda found: f"{found[1][:4]}...", text)


def secrets(text: str) -> list[tuple[int, str]]:
    """Lines that hold what looks like a secret, with its first characters."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = SECRET.search(line)
        if match:
            found.append((number, match[1][:4]))
            continue
        match = ASSIGNED.search(line)
        if match and re.search(r"\d", match[3]) and re.search(r"[A-Za-z]", match[3]) and "/" not in match[3]:
            found.append((number, match[3][:3]))
    return found


def number(value: Any, kind: type = int) -> Any:
    """``value`` as a number; ``Open`` stays; None where it is none."""
    if isinstance(value, Open) or value is None or isinstance(value, bool):
        return value if isinstance(value, Open) else None
    try:
        found = kind(str(value).strip())
    except (ValueError, OverflowError):
        return None
    return found if found == found and abs(found) < 10**15 else None


def truth(value: Any) -> bool | None:
    """``True`` and ``False`` as command lines and YAML write them; None: neither."""
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    return True if text in ("true", "yes", "1", "on") else False if text in ("false", "no", "0", "off") else None


def state_dict_kind(value: Any) -> str | None:
    """A spec's ``state_dict`` of an FSDP name such as ``"FULL_STATE_DICT"``; None: neither kind."""
    return {"SHARDED_STATE_DICT": "sharded", "FULL_STATE_DICT": "full"}.get(str(value).upper())
