"""The checker of exercise 02.5, and what the checkers of lesson 02 share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.lessons.lesson_02 import solutions
from course_utils.teach.exercise import Wrong, ask


def plain(value: Any) -> Any:
    """Tensors and tuples as lists, for comparison and for printing."""
    if isinstance(value, Tensor):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def require(got: Any, expected: Any, given: str, suspects: Sequence[tuple[Any, str]], hint: str) -> None:
    """Raise ``Wrong`` unless ``got`` is ``expected``; a known wrong result in ``suspects`` gets its own hint."""
    got, expected = plain(got), plain(expected)
    if got != expected:
        hint = next((why for value, why in suspects if got == plain(value)), hint)
        raise Wrong(given=given, expected=str(expected), got=str(got)[:300], hint=hint)


def check(answer: Callable) -> None:
    """Raise ``Wrong`` unless ``answer`` packs documents as ``solution_5`` does."""
    cases = [
        ([[11, 12, 13], [21, 22]], 7),
        ([[5, 6], [7, 8, 9], [4]], 6),
        ([[3, 4, 5, 6]], 6),
    ]
    for documents, row_length in cases:
        given = f"documents={documents}, row_length={row_length}, pad_token_id=0"
        right = solutions.solution_5(documents, row_length, 0)
        found = ask(answer, [list(d) for d in documents], row_length, 0, given=given, expected="a dict of four tensors")
        if not isinstance(found, dict) or set(found) != set(right):
            hint = f"Return a dict with the keys {', '.join(right)}, as the broken function does."
            raise Wrong(given=given, expected=", ".join(right), got=repr(found)[:120], hint=hint)
        real = sum(map(len, documents))
        owner = torch.tensor([n for n, document in enumerate(documents) for _ in document])
        ids, suspects = right["input_ids"], {name: [] for name in right}
        shifted = torch.tensor([t for d in documents for t in (*d[1:], -100)] + [-100] * (row_length - real))
        twice = "These labels are shifted by one place. The model shifts them itself: once is enough."
        no_ignore, padded = right["labels"].clone(), shifted.clone()
        no_ignore[real:] = padded[real:] = 0
        wrong_padding = "Padding is still a target: what stands there must be -100."
        starts = right["position_ids"][:real] == 0
        suspects["labels"] = [
            (ids, "Each document's first token is a target: the document before it would have to predict it."),
            (shifted, twice),
            (padded, twice),
            (no_ignore, wrong_padding),
            (ids.masked_fill(torch.arange(row_length) >= real, -100), "Each document's first token must be -100."),
        ]
        suspects["position_ids"] = [
            (torch.arange(row_length), "Positions run on through the row: they start again at 0 with every document.")
        ]
        for name in ("input_ids", "labels", "position_ids"):
            got = plain(found[name])
            # What stands at the positions of padding has no meaning: it is not compared.
            stop = real if name == "position_ids" else row_length
            got = got[:stop] if isinstance(got, list) else got
            expected = right[name][:stop]
            choices = [(value[:stop], why) for value, why in suspects[name]]
            require(got, expected, f"{given}: {name}", choices, f"{name} does not follow the rules of this section.")
        _check_allowed(found["allowed"], owner, starts, given)


def _check_allowed(allowed: Any, owner: Tensor, starts: Tensor, given: str) -> None:
    real = len(owner)
    shape = tuple(allowed.shape) if isinstance(allowed, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != shape[1] or shape[0] < real:
        hint = "allowed is a square tensor of True and False: [query, key]."
        raise Wrong(given=f"{given}: allowed", expected="a tensor (L, L)", got=repr(allowed)[:120], hint=hint)
    got = allowed.bool()[:real, :real]
    same, past = owner[:, None] == owner[None, :], torch.ones(real, real).tril().bool()
    if allowed.bool()[:real, real:].any() or (got & ~past).any():
        hint = "A token sees what comes after it: both conditions must hold, same document and not in the future."
        raise Wrong(given=f"{given}: allowed", expected="no look into the future", got=_marks(got), hint=hint)
    if (got & ~same).any():
        hint = "A document looks at the one before it: both conditions must hold."
        raise Wrong(given=f"{given}: allowed", expected="each document alone", got=_marks(got), hint=hint)
    if not torch.equal(got, same & past):
        hint = "A token may look at itself and at everything before it in its own document: some of that is forbidden."
        raise Wrong(given=f"{given}: allowed", expected=_marks(same & past), got=_marks(got), hint=hint)


def _marks(allowed: Tensor) -> str:
    return " ".join("".join("x" if cell else "." for cell in row) for row in allowed.tolist())
