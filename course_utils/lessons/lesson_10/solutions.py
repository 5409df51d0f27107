"""Solutions of lesson 10's exercises."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from course_utils.data.instructions import Template
from course_utils.training.lora import add_lora, merge_lora

# 10 + 4 tokens and the end: a fits; b loses prompt tokens only; c cuts from the right, after the prompt; d loses the
# end token's label; e has two answers with an end token each.
solution_1 = {"a": 5, "b": 5, "c": 2, "d": 4, "e": 9}


def solution_2(rows, starts, pad_token_id):
    longest = max(map(len, rows))
    shape = (len(rows), longest)
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        input_ids[number, : len(row)] = torch.tensor(row)
        attention_mask[number, : len(row)] = 1
        labels[number, start : len(row)] = torch.tensor(row[start:])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


solution_3 = Template("Question: {question}\n\nHint: {hint}\n\nAnswer:", " {answer}", fields={"answer": "solution"})


def solution_4(x, weight, adapters):
    merged = weight.clone()
    for A, B, alpha in adapters:
        merged = merged + alpha / len(A) * B @ A
    return x @ merged.T, merged


def solution_5(model, micro_batches, learning_rate):
    add_lora(model, rank=2, alpha=4)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=learning_rate)
    prepared = []
    for batch in micro_batches:
        place = torch.arange(batch["input_ids"].shape[1])
        learnt = (place >= batch["answer_start"][:, None]) & batch["attention_mask"].bool()
        prepared.append((batch, batch["input_ids"].masked_fill(~learnt, -100)))
    count = sum(labels[:, 1:].ne(-100).sum() for _, labels in prepared)
    for batch, labels in prepared:
        logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        (loss / count).backward()
    optimizer.step()
    return merge_lora(model)
