"""Checkers of lesson 02: predict padding, group by length, mask labels, corrupt spans, repair a packing function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from course_utils.lessons.lesson_02 import packing_exercise, solutions
from course_utils.lessons.lesson_02.packing_exercise import plain, require
from course_utils.teach.exercise import Wrong, ask, exercise

LENGTHS = [12, 3, 5, 11, 4, 10, 2, 9]  # of exercise 02.1, as the notebook prints them


@exercise(
    "02.1",
    "How much padding?",
    kind="predict",
    hints=(
        "A batch has as many positions as rows times width. What is the width in each of the three cases?",
        "Sum the positions of all batches, then take away the tokens that are text: they are the same in all cases.",
    ),
)
def check_padding_counts(answer: Any) -> None:
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        hint = "Write prediction = (a, b, c), three numbers of padding positions."
        raise Wrong(given="prediction", expected="three numbers", got=repr(answer)[:80], hint=hint)
    real = sum(LENGTHS)
    for found, right, given in zip(
        answer,
        solutions.solution_1,
        ("(a) all padded to 16", "(b) batches of four, dynamic", "(c) batches of two, dynamic"),
        strict=True,
    ):
        if not isinstance(found, bool) and isinstance(found, int | float) and found == right:
            continue
        hint = "Each batch is as wide as its own longest row; count what is left over in every row."
        if found == right + real:
            hint = "That counts all positions. How many of them hold text?"
        elif found == real:
            hint = "That is the text. The padding is what is left of the positions."
        elif given.startswith("(b)") and found == 8 * max(LENGTHS) - real:
            hint = "That pads both batches to the longest row of all. Dynamic padding looks at one batch at a time."
        elif given.startswith("(c)") and found == solutions.solution_1[1]:
            hint = "Smaller batches are narrower: a short row shares its batch with fewer long ones. Count again."
        raise Wrong(given=given, expected="another number of padding positions", got=repr(found)[:80], hint=hint)


@exercise(
    "02.2",
    "A length-grouped batch sampler",
    hints=(
        "Three levels: order is cut into megabatches, a megabatch is sorted, then cut into batches.",
        "Step through order in strides of batch_size * megabatch. Python's sorted keeps the order of equal elements, "
        "also with reverse=True; negative keys do so too. Do not sort across pieces.",
    ),
)
def check_length_grouping(answer: Callable) -> None:
    order = [4, 0, 8, 6, 2, 10, 1, 3, 9, 5, 7]
    distinct, ties = [9, 2, 7, 4, 5, 8, 1, 6, 3, 10, 11], [5, 3, 5, 3, 5, 8, 3, 5, 3, 5, 8]
    for lengths, batch_size, megabatch in (
        (distinct, 2, 2),
        (distinct, 3, 2),
        (ties, 2, 3),
        (distinct, 2, 1),
        (ties, 4, 100),
    ):
        given = f"lengths={lengths}, order={order}, batch_size={batch_size}, megabatch={megabatch}"
        expected = solutions.solution_2(lengths, order, batch_size, megabatch)
        got = plain(ask(answer, list(lengths), list(order), batch_size, megabatch, given=given, expected=str(expected)))
        require(got, expected, given, _grouping_suspects(lengths, order, batch_size, megabatch), _grouping_hint(got))


def _grouping_hint(got: Any) -> str:
    if not isinstance(got, list) or not all(isinstance(batch, list) for batch in got):
        return "Return a list of batches, each a list of indices."
    return "Every index of order occurs once; inside a megabatch the lengths fall, and equal ones keep their order."


def _grouping_suspects(
    lengths: list[int], order: list[int], batch_size: int, megabatch: int
) -> list[tuple[list[list[int]], str]]:
    expected = solutions.solution_2(lengths, order, batch_size, megabatch)

    def cut(indices: list[int]) -> list[list[int]]:
        return [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def regrouped(key: Callable[[int], Any]) -> list[list[int]]:
        size, found = batch_size * megabatch, []
        for start in range(0, len(order), size):
            found += cut(sorted(order[start : start + size], key=key))
        return found

    stable = "Equal lengths must keep their order: sort by length alone, with a stable sort."
    place = {index: number for number, index in enumerate(order)}
    return [
        (cut(order), "The batches are in shuffled order: nothing is grouped by length yet."),
        (
            cut(sorted(order, key=lambda i: -lengths[i])),
            "You sorted everything: the same examples would meet in every epoch. Sort megabatches.",
        ),
        (
            [batch for batch in expected if len(batch) == batch_size],
            "The last, smaller batch is missing: its examples would never be trained on.",
        ),
        (
            regrouped(lambda i: lengths[i]),
            "Longest first, please: memory then runs out early in the run, if it does.",
        ),
        (
            solutions.solution_2(lengths, order, batch_size, 1),
            "Sorting inside one batch changes nothing: sort megabatch * batch_size examples together.",
        ),
        ([[lengths[i] for i in batch] for batch in expected], "Return indices, not lengths."),
        (regrouped(lambda i: (-lengths[i], -place[i])), stable),
        (regrouped(lambda i: (-lengths[i], i)), stable),
        (regrouped(lambda i: (-lengths[i], -i)), stable),
    ]


@exercise(
    "02.3",
    "Label masking",
    hints=(
        "Start from a copy of input_ids. Which two kinds of positions are no targets, and what says where they are?",
        "attention_mask says where padding is. For the prompt, compare each position's number, torch.arange(L), with "
        "the row's prompt length, or go through the rows.",
    ),
)
def check_label_masking(answer: Callable) -> None:
    # Token 0 is the padding id, and also the second row's last real token (as with padding = end of text).
    ids = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    late = "Off by one: the model shifts the labels itself, so mask the prompt's own positions, no more, no less."
    by_id = "Find padding by attention_mask: its id is a real token too."
    for lengths in (torch.tensor([2, 1]), torch.tensor([0, 3]), torch.tensor([4, 2])):
        inputs = ids.clone(), mask.clone(), lengths.clone()
        given = f"input_ids={ids.tolist()}, attention_mask={mask.tolist()}, prompt_lengths={lengths.tolist()}"
        expected = solutions.solution_3(ids, mask, lengths)
        got = ask(answer, *inputs, given=given, expected=str(expected.tolist()))
        prompt_only = solutions.solution_3(ids, torch.ones_like(mask), lengths)
        padding_only = solutions.solution_3(ids, mask, torch.zeros_like(lengths))
        everything = torch.full_like(ids, -100)
        require(
            got,
            expected,
            given,
            [
                (ids, "Nothing is masked: every position of the result is still a target."),
                (prompt_only, "Padding is still a target: the model would be trained to predict it."),
                (padding_only, "The prompt is still a target: the model would be trained to repeat the question."),
                (everything, "No target is left: the answer's tokens keep their ids."),
                (expected.masked_fill(ids == 0, -100), by_id),
                (prompt_only.masked_fill(ids == 0, -100), by_id),
                (expected.masked_fill(expected == -100, 0), "0 is a token id: what is no target must be -100."),
                (solutions.solution_3(ids, mask, lengths + 1), late),
                (solutions.solution_3(ids, mask, (lengths - 1).clamp(min=0)), late),
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
    "02.4",
    "Span corruption",
    hints=(
        "Walk through the spans and remember the position up to which the text is dealt with.",
        "At each span both lists grow: the input by the kept text before it and a sentinel, the target by the same "
        "sentinel and the span. What is still missing in each after the last span?",
    ),
)
def check_span_corruption(answer: Callable) -> None:
    cases = [
        (list(range(10, 20)), [(2, 4), (8, 9)], [100, 101, 102, 103]),
        (list(range(30, 36)), [(0, 1), (4, 6)], [7, 8, 9]),
        ([1, 2, 3], [(1, 2)], [50, 51]),
    ]
    for ids, spans, sentinels in cases:
        inputs, targets = solutions.solution_4(ids, spans, sentinels)
        first = [sentinels[0] if token in sentinels else token for token in inputs]
        hidden = {place for start, stop in spans for place in range(start, stop)}
        each = [sentinels[0] if place in hidden else token for place, token in enumerate(ids)]
        given = f"ids={ids}, spans={spans}, sentinels={sentinels}"
        got = plain(
            ask(answer, list(ids), list(spans), list(sentinels), given=given, expected=f"({inputs}, {targets})")
        )
        pair = got if isinstance(got, list) and len(got) == 2 else [None, None]
        require(
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
        require(
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
    "02.5",
    "Repair a packing function",
    kind="debug",
    hints=(
        "Run it on [[11, 12, 13], [21, 22]] with row_length 7 and compare each of the four parts with the three rules.",
        "There are four faults: one about who shifts the labels, one about where positions begin, one about what "
        "padding is to the loss, and one in the line that joins two conditions.",
    ),
)
def check_packing(answer: Callable) -> None:
    packing_exercise.check(answer)
