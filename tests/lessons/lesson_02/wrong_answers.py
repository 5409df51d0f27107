"""Wrong answers to lesson 02's exercises, each with words of the hint it must get."""

import torch

from course_utils.lessons.lesson_02.solutions import solution_2, solution_3, solution_4, solution_5


def by_padding_id(ids, mask, lengths):
    labels = solution_3(ids, mask, lengths)
    labels[ids == 0] = -100
    return labels


def in_place(ids, mask, lengths):
    ids.copy_(solution_3(ids, mask, lengths))
    return ids


def without_return(*args):
    solution_3(*args)


def without_tail(ids, spans, sentinels):
    inputs, targets = solution_4(ids, spans, sentinels)
    return inputs[: inputs.index(sentinels[len(spans) - 1]) + 1], targets


def one_sentinel(ids, spans, sentinels):
    inputs, targets = solution_4(ids, spans, sentinels)
    return [sentinels[0] if i in sentinels else i for i in inputs], targets


def sort_everything(lengths, order, size, megabatch):
    return solution_2(lengths, order, size, 1000)


def unstable(lengths, order, size, megabatch):
    batches = []
    for start in range(0, len(order), size * megabatch):
        group = sorted(order[start : start + size * megabatch], key=lambda i: (lengths[i], i), reverse=True)
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def reversed_ascending(lengths, order, size, megabatch):
    batches = []
    for start in range(0, len(order), size * megabatch):
        group = sorted(order[start : start + size * megabatch], key=lambda i: lengths[i])[::-1]
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def packed(**changes):
    """The right answer with some parts replaced: ``name=function(right, documents)``."""

    def answer(documents, row_length, pad_token_id):
        right = solution_5(documents, row_length, pad_token_id)
        return right | {name: change(right, documents) for name, change in changes.items()}

    return answer


def shifted(right, documents):
    tokens = [token for document in documents for token in (*document[1:], -100)]
    return torch.tensor(tokens + [-100] * (len(right["labels"]) - len(tokens)))


def padding_is_target(right, documents):
    labels = right["labels"].clone()
    labels[sum(map(len, documents)) :] = 0
    return labels


def either(right, documents):
    length = len(right["labels"])
    return right["allowed"] | torch.ones(length, length).tril().bool()


WRONG = {
    "02.1": [
        ((128, 88, 84), "counts all positions"),
        ((56, 32, 28), "That is the text"),
        ((72, 40, 28), "one batch at a time"),
        ((72, 32, 32), "Smaller batches are narrower"),
        ((72, 32), "three numbers"),
        (72, "three numbers"),
        ({}, "three numbers"),
        (("a", None, []), "its own longest row"),
    ],
    "02.2": [
        (lambda lengths, order, size, mega: solution_2([0] * len(lengths), order, size, mega), "nothing is grouped"),
        (sort_everything, "You sorted everything"),
        (lambda *a: [b for b in solution_2(*a) if len(b) == a[2]], "smaller batch is missing"),
        (lambda lengths, *a: solution_2([-x for x in lengths], *a), "Longest first"),
        (lambda lengths, order, size, mega: solution_2(lengths, order, size, 1), "one batch changes nothing"),
        (lambda *a: [[a[0][i] for i in b] for b in solution_2(*a)], "indices, not lengths"),
        (unstable, "keep their order"),
        (reversed_ascending, "keep their order"),
        (lambda *a: 3, "a list of batches"),
        ({}, "raised an exception"),
    ],
    "02.3": [
        (lambda ids, mask, lengths: ids, "Nothing is masked"),
        (lambda ids, mask, lengths: solution_3(ids, mask | 1, lengths), "Padding is still a target"),
        (lambda ids, mask, lengths: solution_3(ids, mask, lengths * 0), "prompt is still a target"),
        (by_padding_id, "by attention_mask"),
        (lambda ids, mask, lengths: solution_3(ids, mask, lengths + 1), "Off by one"),
        (lambda ids, mask, lengths: solution_3(ids, mask, lengths).clamp(min=0), "must be -100"),
        (lambda ids, mask, lengths: torch.full_like(ids, -100), "No target is left"),
        (in_place, "work on a clone"),
        (without_return, "returned None"),
        (lambda ids, mask, lengths: ids[0], "shape of input_ids"),
        (lambda ids, mask, lengths: ids.nothing, "raised an exception"),
    ],
    "02.4": [
        (lambda ids, spans, s: (ids, solution_4(ids, spans, s)[1]), "still holds the hidden tokens"),
        (lambda ids, spans, s: (solution_4(ids, spans, s)[0], solution_4(ids, spans, s)[1][:-1]), "closing sentinel"),
        (without_tail, "follows the last span"),
        (one_sentinel, "its own sentinel"),
        (lambda ids, spans, s: (solution_4(ids, spans, s)[0], ids), "repeats the whole text"),
        (lambda ids, spans, s: solution_4(ids, spans, s)[0], "Return a pair"),
    ],
    "02.5": [
        (packed(labels=shifted), "shifts them itself"),
        (packed(labels=padding_is_target), "Padding is still a target"),
        (packed(labels=lambda right, documents: right["input_ids"]), "first token is a target"),
        (packed(position_ids=lambda right, documents: torch.arange(len(right["labels"]))), "Positions run on"),
        (packed(allowed=either), "both conditions must hold"),
        (packed(allowed=lambda right, documents: ~right["allowed"]), "sees what comes after it"),
        (packed(allowed=lambda right, documents: torch.eye(len(right["labels"])).bool()), "some of that is forbidden"),
        (packed(allowed=lambda right, documents: 1), "square tensor"),
        (lambda *args: {}, "Return a dict"),
        (lambda *args: solution_5(*args)["labels"], "Return a dict"),
        ({}, "raised an exception"),
    ],
}
