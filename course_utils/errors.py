"""The one error of ``course_utils.launch``: a sentence that names the field, its value and what is allowed."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError


class SpecError(ValueError):
    """A spec cannot be used as it is; the message is one sentence: field, value, allowed."""


def out_of_range(field: str, value: Any, allowed: str) -> SpecError:
    """``nodes=0 is out of range; allowed: a whole number >= 1``, as an error to raise."""
    return SpecError(f"{field}={value!r} is out of range; allowed: {allowed}")


def sentence(error: ValidationError) -> str:
    """The first complaint of pydantic in the course's wording."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    value, kind, context = first.get("input"), first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{field}={value!r} is not a field of the spec; allowed: see `python -m course_utils.launch --help`"
    if kind == "missing":
        return f"{field} is missing; it has no default"
    if kind == "literal_error":
        return f"{field}={value!r} is not known; allowed: {context['expected']}"
    limits = {"greater_than_equal": "a number >= {ge}", "greater_than": "a number > {gt}"}
    limits |= {"less_than_equal": "a number <= {le}", "less_than": "a number < {lt}"}
    if kind in limits:
        return f"{field}={value!r} is out of range; allowed: {limits[kind].format(**context)}"
    types = {
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
    }
    types |= {"tuple_type": "a list"}
    if kind in types:
        return f"{field}={value!r} has the wrong type; allowed: {types[kind]}"
    message = str(context.get("error") or first["msg"])
    return (
        message if not field or message.startswith(field) else f"{field}={value!r}: {message[:1].lower()}{message[1:]}"
    )
