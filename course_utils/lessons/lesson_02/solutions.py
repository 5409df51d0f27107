"""Solutions of lesson 02's exercises."""

from torch import Tensor


def solution_1(input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
    """Label masking: only what the model should learn to write stays a target; the rest becomes -100."""
    labels = input_ids.clone()  # a copy: the inputs must still show the model the prompt
    labels[attention_mask == 0] = -100  # by the mask, not by the padding id: that id may also be a real token
    for row, length in zip(labels, prompt_lengths.tolist(), strict=True):
        row[:length] = -100
    return labels


def solution_2(ids: list[int], spans: list[tuple[int, int]], sentinels: list[int]) -> tuple[list[int], list[int]]:
    """Span corruption: each span leaves one sentinel behind; the target says what each sentinel stood for."""
    inputs, targets, position = [], [], 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        inputs += ids[position:start] + [sentinel]
        targets += [sentinel] + ids[start:stop]
        position = stop
    inputs += ids[position:]  # what follows the last span
    targets += [sentinels[len(spans)]]  # "nothing follows"
    return inputs, targets


def solution_3(lengths: list[int], order: list[int], batch_size: int, megabatch: int) -> list[list[int]]:
    """Length grouping: sort inside megabatches only, so that the shuffle survives on the large scale."""
    batches, size = [], batch_size * megabatch
    for start in range(0, len(order), size):
        group = sorted(order[start : start + size], key=lambda i: lengths[i], reverse=True)
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return batches
