"""Checkers of lesson 02: label masking, span corruption, a length-grouped batch sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.lessons.lesson_02 import solutions
from course_utils.teach.exercise import Wrong, exercise


def _plain(value: Any) -> Any:
    """Tensors and tuples as lists, for comparison and for printing."""
    if isinstance(value, Tensor):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _require(got: Any, expected: Any, given: str, suspects: Sequence[tuple[Any, str]], hint: str) -> None:
    """Raise ``Wrong`` unless ``got`` is ``expected``; a known wrong result in ``suspects`` gets its own hint."""
    got, expected = _plain(got), _plain(expected)
    if got != expected:
        hint = next((why for value, why in suspects if got == _plain(value)), hint)
        raise Wrong(given=given, expected=str(expected), got=str(got), hint=hint)


@exercise(
    "02.1",
    "Label masking",
    hints=(
        "Start from a clone of input_ids. Two things become -100: what attention_mask marks as padding, and each row's "
        "first prompt_lengths[row] tokens.",
    ),
)
def check_label_masking(answer: Callable) -> None:
    # Token 0 is the padding id, and also the second row's last real token (as with padding = end of text).
    ids = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    for lengths in (torch.tensor([2, 1]), torch.tensor([0, 3])):
        inputs = ids.clone(), mask.clone(), lengths.clone()
        got = answer(*inputs)
        expected = solutions.solution_1(ids, mask, lengths)
        prompt_only = solutions.solution_1(ids, torch.ones_like(mask), lengths)
        padding_only = solutions.solution_1(ids, mask, torch.zeros_like(lengths))
        late = "Off by one: the model shifts the labels itself, so mask the prompt's own positions, no more, no less."
        _require(
            got,
            expected,
            f"input_ids={ids.tolist()}, attention_mask={mask.tolist()}, prompt_lengths={lengths.tolist()}",
            [
                (ids, "Nothing is masked: every position of the result is still a target."),
                (prompt_only, "Padding is still a target: the model would be trained to predict it."),
                (padding_only, "The prompt is still a target: the model would be trained to repeat the question."),
                (expected.masked_fill(ids == 0, -100), "Find padding by attention_mask: its id is a real token too."),
                (
                    prompt_only.masked_fill(ids == 0, -100),
                    "Find padding by attention_mask: its id is a real token too.",
                ),
                (expected.masked_fill(expected == -100, 0), "0 is a token id: what is no target must be -100."),
                (solutions.solution_1(ids, mask, lengths + 1), late),
                (solutions.solution_1(ids, mask, (lengths - 1).clamp(min=0)), late),
            ],
            "Labels have the shape of input_ids: a real answer token keeps its id, all the rest is -100.",
        )
        if not torch.equal(inputs[0], ids):
            raise Wrong(
                given=f"input_ids={ids.tolist()}",
                expected="input_ids unchanged",
                got=str(inputs[0].tolist()),
                hint="You wrote into input_ids: work on a clone, or the model never sees the prompt.",
            )


@exercise(
    "02.2",
    "Span corruption",
    hints=(
        "Walk through the spans with a position. Input: the text up to the span, then a sentinel. "
        "Target: the sentinel, "
        "then the span. After the loop: the rest of the text, and one closing sentinel.",
    ),
)
def check_span_corruption(answer: Callable) -> None:
    cases = [
        (list(range(10, 20)), [(2, 4), (8, 9)], [100, 101, 102, 103]),
        (list(range(30, 36)), [(0, 1), (4, 6)], [7, 8, 9]),
        ([1, 2, 3], [(1, 2)], [50, 51]),
    ]
    for ids, spans, sentinels in cases:
        inputs, targets = solutions.solution_2(ids, spans, sentinels)
        first = [sentinels[0] if token in sentinels else token for token in inputs]
        hidden = {place for start, stop in spans for place in range(start, stop)}
        each = [sentinels[0] if place in hidden else token for place, token in enumerate(ids)]
        got = _plain(answer(list(ids), list(spans), list(sentinels)))
        pair = got if isinstance(got, list) and len(got) == 2 else [None, None]
        given = f"ids={ids}, spans={spans}, sentinels={sentinels}"
        _require(
            pair[0],
            inputs,
            given,
            [
                (ids, "The input still holds the hidden tokens: the answer stands in the question."),
                (inputs[: inputs.index(sentinels[len(spans) - 1]) + 1], "What follows the last span is missing."),
                (first, "Each span needs its own sentinel, or the target cannot say which gap it fills."),
                (each, "A span leaves one sentinel behind, however long it was."),
                (None, "Return a pair: (inputs, targets)."),
            ],
            "Input: kept tokens in order, each span replaced by the next sentinel.",
        )
        _require(
            pair[1],
            targets,
            given,
            [
                (targets[:-1], "The closing sentinel is missing: it tells the model that nothing follows."),
                (ids, "The target repeats the whole text: only the hidden tokens belong there."),
                ([t for t in targets if t not in sentinels], "Say in front of each span which sentinel it stands for."),
            ],
            "Target: for each span its sentinel, then its tokens; at the end the next sentinel.",
        )


@exercise(
    "02.3",
    "A length-grouped batch sampler",
    hints=(
        "Cut order into pieces of batch_size * megabatch indices; sort each piece by length, "
        "longest first; cut it into "
        "batches. Do not sort across pieces.",
    ),
)
def check_length_grouping(answer: Callable) -> None:
    lengths = [9, 2, 7, 4, 5, 8, 1, 6, 3, 10, 11]
    order = [4, 0, 8, 6, 2, 10, 1, 3, 9, 5, 7]
    for batch_size, megabatch in ((2, 2), (3, 2), (2, 1), (4, 100)):
        expected = solutions.solution_3(lengths, order, batch_size, megabatch)

        def cut(indices: list[int], size: int = batch_size) -> list[list[int]]:
            return [indices[i : i + size] for i in range(0, len(indices), size)]

        everything = cut(sorted(order, key=lambda i: lengths[i], reverse=True))
        full = [batch for batch in expected if len(batch) == batch_size]
        ascending = solutions.solution_3([-length for length in lengths], order, batch_size, megabatch)
        small = solutions.solution_3(lengths, order, batch_size, 1)
        _require(
            [list(batch) for batch in answer(list(lengths), list(order), batch_size, megabatch)],
            expected,
            f"lengths={lengths}, order={order}, batch_size={batch_size}, megabatch={megabatch}",
            [
                (cut(order), "The batches are in shuffled order: nothing is grouped by length yet."),
                (everything, "You sorted everything: the same examples would meet in every epoch. Sort megabatches."),
                (full, "The last, smaller batch is missing: its examples would never be trained on."),
                (ascending, "Longest first, please: memory then runs out early in the run, if it does."),
                (small, "Sorting inside one batch changes nothing: sort megabatch * batch_size examples together."),
                ([[lengths[i] for i in batch] for batch in expected], "Return indices, not lengths."),
            ],
            "A list of batches, each a list of indices; every index of order occurs exactly once.",
        )
