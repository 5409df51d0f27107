"""A spec from a YAML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from course_utils.errors import SpecError
from course_utils.launch.spec.spec import Spec
from course_utils.launch.spec.yaml_text import load_yaml


def read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file, not yet validated.

    Raises:
        SpecError: the file cannot be read, is no YAML, or is no mapping of fields to values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"spec={str(path)!r} cannot be read ({error.strerror}); allowed: a YAML file") from None
    except ValueError as error:  # not UTF-8, or a NUL in the path
        raise SpecError(f"spec={str(path)!r} is no YAML ({' '.join(str(error).split())})") from None
    fields = load_yaml(text, f"spec={str(path)!r}")
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise SpecError(f"spec={str(path)!r} holds no fields; allowed: lines such as `nodes: 2`")
    return fields


def read_spec(path: str | os.PathLike[str]) -> Spec:
    """The spec in a YAML file; raises SpecError as ``read_fields`` and ``Spec`` do."""
    return Spec(**read_fields(path))
