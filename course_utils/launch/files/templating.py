"""Text for other programs to read: Jinja templates whose every value passes through a quoting filter (lesson 15).

A name with spaces, quotes, ``$(...)`` or newlines must stay data. So templates print values only through a filter:
``sh`` for a shell word, ``py`` for a Python literal, ``yaml`` and ``json`` for a scalar or a structure (``inline``
is YAML on one line, ``pretty`` JSON on several), and ``comment`` for a line of prose. Everything else in a template is
our own fixed text.
"""

from __future__ import annotations

import json
import shlex
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined


def sh(value: Any) -> str:
    """One shell word, or the words of a list separated by spaces."""
    return " ".join(_word(str(word)) for word in (value if isinstance(value, list | tuple) else (value,)))


def _word(text: str) -> str:
    quoted = shlex.quote(text)
    slip = quoted == text and (
        "," in text or text.startswith("=")
    )  # shellcheck suspects one, in an array (SC2054, SC2191)
    return f"'{text}'" if slip else quoted


class _Dumper(yaml.SafeDumper):
    """YAML without aliases (the same value twice is written twice) and with one line per string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # json.dumps would be no way out: YAML reads its \\ud83d\\ude00 as two characters.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _string)


def to_yaml(value: Any, flow: bool = False) -> str:
    """YAML in the order given; a string alone is double-quoted, and no string has more than one line."""
    dumped = yaml.dump(
        value,
        Dumper=yaml.SafeDumper if isinstance(value, str) else _Dumper,
        default_style='"' if isinstance(value, str) else None,
        default_flow_style=flow,
        sort_keys=False,
        allow_unicode=True,
        width=10**9,
    )
    return dumped.strip().removesuffix("\n...")


def inline(value: Any) -> str:
    """YAML on one line, to be followed by a comment."""
    return to_yaml(value, flow=True)


def pretty(value: Any) -> str:
    """JSON with one setting a line."""
    return json.dumps(value, indent=2)


def comment(value: Any) -> str:
    """Text that stays inside one comment line: no line breaks, no control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def remark(value: Any) -> str:
    """A comment behind a line, and nothing where there is nothing to say."""
    return f"  # {comment(value)}" if value else ""


def verbatim(text: str) -> str:
    """A file of this project that needs no filling in, as it is."""
    return text.rstrip("\n")


@cache
def environment() -> Environment:
    """Jinja with the filters of this module; an undefined name in a template is an error."""
    found = Environment(
        loader=PackageLoader("course_utils.launch.files"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"sh": sh, "py": repr, "yaml": to_yaml, "inline": inline, "comment": comment, "remark": remark}
    found.filters |= {"json": json.dumps, "pretty": pretty, "verbatim": verbatim}
    return found


def fill(template: str, **values: Any) -> str:
    """The text of ``templates/<template>`` with ``values`` filled in."""
    return environment().get_template(template).render(**values)
