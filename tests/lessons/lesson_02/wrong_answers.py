"""Wrong answers to lesson 02's exercises, each with words of the hint it must get."""

from course_utils.lessons.lesson_02.solutions import solution_1, solution_2, solution_3


def by_padding_id(ids, mask, lengths):
    labels = solution_1(ids, mask, lengths)
    labels[ids == 0] = -100
    return labels


def in_place(ids, mask, lengths):
    ids.copy_(solution_1(ids, mask, lengths))
    return ids


def without_tail(ids, spans, sentinels):
    inputs, targets = solution_2(ids, spans, sentinels)
    return inputs[: inputs.index(sentinels[len(spans) - 1]) + 1], targets


def one_sentinel(ids, spans, sentinels):
    inputs, targets = solution_2(ids, spans, sentinels)
    return [sentinels[0] if i in sentinels else i for i in inputs], targets


def sort_everything(lengths, order, size, megabatch):
    return solution_3(lengths, order, size, 1000)


WRONG = {
    "02.1": [
        (lambda ids, mask, lengths: ids, "Nothing is masked"),
        (lambda ids, mask, lengths: solution_1(ids, mask | 1, lengths), "Padding is still a target"),
        (lambda ids, mask, lengths: solution_1(ids, mask, lengths * 0), "prompt is still a target"),
        (by_padding_id, "by attention_mask"),
        (lambda ids, mask, lengths: solution_1(ids, mask, lengths + 1), "Off by one"),
        (lambda ids, mask, lengths: solution_1(ids, mask, lengths).clamp(min=0), "must be -100"),
        (in_place, "work on a clone"),
        (lambda ids, mask, lengths: ids[0], "shape of input_ids"),
        (lambda ids, mask, lengths: ids.nothing, "raised an exception"),
    ],
    "02.2": [
        (lambda ids, spans, s: (ids, solution_2(ids, spans, s)[1]), "still holds the hidden tokens"),
        (lambda ids, spans, s: (solution_2(ids, spans, s)[0], solution_2(ids, spans, s)[1][:-1]), "closing sentinel"),
        (without_tail, "follows the last span"),
        (one_sentinel, "its own sentinel"),
        (lambda ids, spans, s: (solution_2(ids, spans, s)[0], ids), "repeats the whole text"),
        (lambda ids, spans, s: solution_2(ids, spans, s)[0], "Return a pair"),
    ],
    "02.3": [
        (lambda lengths, order, size, mega: solution_3([0] * len(lengths), order, size, mega), "nothing is grouped"),
        (sort_everything, "You sorted everything"),
        (lambda *a: [b for b in solution_3(*a) if len(b) == a[2]], "smaller batch is missing"),
        (lambda lengths, *a: solution_3([-x for x in lengths], *a), "Longest first"),
        (lambda lengths, order, size, mega: solution_3(lengths, order, size, 1), "one batch changes nothing"),
        (lambda *a: [[a[0][i] for i in b] for b in solution_3(*a)], "indices, not lengths"),
    ],
}
