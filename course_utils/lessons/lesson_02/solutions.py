"""Solutions of lesson 02's exercises."""

import torch
from torch import Tensor

# Text: 56 tokens. (a) 8 x 16 - 56; (b) 4 x 12 + 4 x 10 - 56; (c) 2 x 12 + 2 x 11 + 2 x 10 + 2 x 9 - 56.
solution_1 = (72, 32, 28)


def solution_2(lengths: list[int], order: list[int], batch_size: int, megabatch: int) -> list[list[int]]:
    """Length grouping: sort inside megabatches only, so that the shuffle survives on the large scale."""
    batches, size = [], batch_size * megabatch
    for start in range(0, len(order), size):
        group = sorted(order[start : start + size], key=lambda i: lengths[i], reverse=True)
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return batches


def solution_3(input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
    """Label masking: only what the model should learn to write stays a target; the rest becomes -100."""
    labels = input_ids.clone()  # a copy: the inputs must still show the model the prompt
    labels[attention_mask == 0] = -100  # by the mask, not by the padding id: that id may also be a real token
    for row, length in zip(labels, prompt_lengths.tolist(), strict=True):
        row[:length] = -100
    return labels


def solution_4(ids: list[int], spans: list[tuple[int, int]], sentinels: list[int]) -> tuple[list[int], list[int]]:
    """Span corruption: each span leaves one sentinel behind; the target says what each sentinel stood for."""
    inputs, targets, position = [], [], 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        inputs += ids[position:start] + [sentinel]
        targets += [sentinel] + ids[start:stop]
        position = stop
    inputs += ids[position:]  # what follows the last span
    targets += [sentinels[len(spans)]]  # "nothing follows"
    return inputs, targets


def solution_5(documents: list[list[int]], row_length: int, pad_token_id: int) -> dict[str, Tensor]:
    """Packing, repaired: four lines differ from the broken function."""
    ids, labels, positions, owner = [], [], [], []
    for number, document in enumerate(documents):
        ids += document
        labels += [-100] + document[1:]  # not shifted: the model does that; nothing predicts the first token
        positions += range(len(document))  # from 0 again
        owner += [number] * len(document)
    rest = row_length - len(ids)
    ids += [pad_token_id] * rest
    labels += [-100] * rest  # padding is no target
    positions += range(rest)
    owner += [-1] * rest
    owner = torch.tensor(owner)
    same = owner[:, None] == owner[None, :]  # [query, key]
    past = torch.ones(row_length, row_length).tril().bool()
    parts = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.tensor(part) for name, part in parts.items()} | {"allowed": same & past}
