"""Text for other programs to read: Jinja templates whose every value passes through a quoting filter (lesson 15).

A name with spaces, quotes, ``$(...)`` or newlines must stay data. So templates print values only through a filter:
``sh`` for a shell word, ``py`` for a Python literal, ``yaml`` and ``json`` for a scalar or a whole structure, and
``comment`` for a line of prose. Everything else in a template is our own fixed text.
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
    return shlex.join(map(str, value)) if isinstance(value, list | tuple) else shlex.quote(str(value))


def to_yaml(value: Any) -> str:
    """YAML without aliases, in the order given; a string scalar is double-quoted and stays on one line."""
    if isinstance(value, str):
        return json.dumps(value)  # JSON strings are YAML strings
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=False, width=10**9).strip()


def comment(value: Any) -> str:
    """Text that stays inside one comment line."""
    return " ".join(str(value).split())


@cache
def environment() -> Environment:
    """Jinja with the filters of this module; an undefined name in a template is an error."""
    found = Environment(
        loader=PackageLoader("course_utils.launch"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"sh": sh, "py": repr, "yaml": to_yaml, "json": json.dumps, "comment": comment}
    return found


def fill(template: str, **values: Any) -> str:
    """The text of ``templates/<template>`` with ``values`` filled in."""
    return environment().get_template(template).render(**values)
