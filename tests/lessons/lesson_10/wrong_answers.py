"""Wrong answers to lesson 10's exercises, each with words of the hint it must get."""

import torch
from torch.nn import functional as F

from course_utils.data.instructions import Template
from course_utils.lessons.lesson_10.exercise_step import variant
from course_utils.lessons.lesson_10.solutions import solution_1, solution_2, solution_4, solution_5
from course_utils.training.lora import add_lora, merge_lora

QUIZ = "Question: {question}\n\nHint: {hint}\n\nAnswer:"
MAPPED = {"answer": "solution"}


def planted(model, micro_batches, learning_rate):
    """The step that the notebook shows."""
    add_lora(model, rank=2, alpha=4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    for batch in micro_batches:
        ids = batch["input_ids"]
        labels = ids.masked_fill(ids == 2, -100)
        logits = model(ids, batch["attention_mask"]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        (loss / len(micro_batches)).backward()
    optimizer.step()
    return merge_lora(model)


def faulty(**how):
    return lambda model, batches, rate: variant(model, batches, rate, **how)


def everything_trained(model, micro_batches, learning_rate):
    model = solution_5(model, micro_batches, learning_rate)
    model.model.embed_tokens.weight.data.add_(0.1)
    return model


def changed(name, change):
    def answer(rows, starts, pad):
        found = solution_2(rows, starts, pad)
        return found | {name: change(found, rows, starts, pad)}

    return answer


def in_place(x, weight, adapters):
    for A, B, alpha in adapters:
        weight += alpha / len(A) * B @ A
    return x @ weight.T, weight


def scaled(factor):
    def answer(x, weight, adapters):
        merged = weight + sum(factor(A, alpha) * B @ A for A, B, alpha in adapters)
        return x @ merged.T, merged

    return answer


WRONG = {
    "10.1": [
        (solution_1 | {"a": 4}, "end token is learnt too"),
        (solution_1 | {"a": 15}, "prompt's labels are -100"),
        (solution_1 | {"b": 2}, "cuts the prompt's middle first"),
        (solution_1 | {"c": 5}, "takes the end of the row"),
        (solution_1 | {"d": 5}, "hits the end token"),
        (solution_1 | {"e": 7}, "end token of its own"),
        (solution_1 | {"e": 5}, "not the last one only"),
        (solution_1 | {"e": "9"}, "side by side"),
        ({}, "one whole number for each letter"),
    ],
    "10.2": [
        (changed("labels", lambda f, r, s, p: f["input_ids"]), "prompt and the padding"),
        (changed("labels", lambda f, r, s, p: f["input_ids"].masked_fill(f["attention_mask"] == 0, -100)),
         "The prompt is learnt"),
        (changed("labels", lambda f, r, s, p: f["labels"].masked_fill(f["labels"] == p, -100)),
         "end token has lost its label"),
        (changed("labels", lambda f, r, s, p: F.pad(f["labels"][:, 1:], (0, 1), value=-100)), "Shifted"),
        (changed("labels", lambda f, r, s, p: f["input_ids"].masked_fill(
            torch.arange(f["labels"].shape[1]) < torch.tensor(s)[:, None], -100)), "More is learnt"),
        (changed("attention_mask", lambda f, r, s, p: f["input_ids"].ne(p).long()), "made from the tokens"),
        (changed("input_ids", lambda f, r, s, p: f["input_ids"].flip(1)), "Padding stands on the right"),
        (lambda r, s, p: solution_2(r, s, p)["labels"], "three names"),
        (lambda r, s, p: {k: v.tolist() for k, v in solution_2(r, s, p).items()}, "longest's length"),
    ],
    "10.3": [
        (Template(QUIZ, " {answer}. The end", fields=MAPPED), "nothing else"),
        (Template(QUIZ, "{answer}", fields=MAPPED), "start of the answer"),
        (Template(QUIZ, " {answer}"), "raised an exception"),
        (Template("Question: {question}\nHint: {hint}\n\nAnswer:", " {answer}", fields=MAPPED), "paragraph of its own"),
        (Template("Hint: {hint}\n\nQuestion: {question}", " {answer}", fields=MAPPED), "Without a cue"),
        (Template("{question}\n\n{hint}\n\nAnswer:", " {answer}", fields=MAPPED), "introduced by its word"),
        (Template("Question: {question}\n\nAnswer:", " {answer}", fields=MAPPED), "everything that is known"),
        (Template(QUIZ + " {solution}\n\nAnswer:", " {answer}", fields=MAPPED), "only have to copy"),
        ("Question: {question}", "Build a Template"),
    ],
    "10.4": [
        (in_place, "changed the base"),
        (scaled(lambda A, alpha: 1.0), "is missing"),
        (scaled(lambda A, alpha: alpha), "divided by the rank"),
        (scaled(lambda A, alpha: alpha / A.shape[1]), "number of rows"),
        (lambda x, w, a: (x @ w.T, solution_4(x, w, a)[1]), "the adapters are missing"),
        (lambda x, w, a: solution_4(x, w, a[-1:]), "add them up"),
        (lambda x, w, a: (solution_4(x, w, a)[0], solution_4(x, w, a)[1] - w), "the update alone"),
        (lambda x, w, a: solution_4(x, w, a)[1], "Return both"),
        (lambda x, w, a: (solution_4(x, w, a)[0], solution_4(x, w, a)[1].T), "the weight's shape"),
    ],
    "10.5": [
        (planted, "the planted step"),
        (faulty(prompt=True), "prompt is learnt"),
        (faulty(end=False), "end token is not learnt"),
        (faulty(pad=True), "Padding is learnt"),
        (faulty(shift=False), "Not shifted"),
        (faulty(per_token=False), "mean of means"),
        (faulty(merge=False), "Merge at the end"),
        (everything_trained, "Only the adapters"),
        (lambda m, b, r: m, "No step was taken"),
        (lambda m, b, r: 0.5, "Return merge_lora"),
    ],
}  # fmt: skip
