"""Wrong answers to lesson 09's exercises, each with words of the hint it must get."""

from statistics import mean, median

import torch

from course_utils.data.packing import PackedCollator, pack_documents
from course_utils.lessons.lesson_09.solutions import solution_1, solution_2, solution_3, solution_4, solution_5


def timing(count=None, skip=True, waits=True, middle=median):
    """Exercise 09.1's planted function, with some of its faults repaired."""

    def answer(step, batches, clock, wait, warmup):
        rates = []
        for batch in batches:
            if waits:
                wait()
            began = clock()
            step(batch)
            if waits:
                wait()
            tokens = int((batch["labels"][:, 1:] != -100).sum()) if count is None else count(batch)
            rates.append(tokens / max(clock() - began, 1e-12))
        return middle(rates[warmup if skip else 0 :])

    return answer


def positions(batch):
    return batch["input_ids"].numel()


def skips_steps(step, batches, clock, wait, warmup):
    return solution_1(step, batches[warmup:], clock, wait, 0)


def scaled(change):
    def answer(weights, gradient, scale, good, interval, lr):
        return change(solution_2(weights, gradient, scale, good, interval, lr), weights, gradient, scale, good, lr)

    return answer


def only_inf(weights, gradient, scale, good, interval, lr):
    gradient = gradient.float() / scale
    if torch.isinf(gradient).any():
        return weights, scale / 2, 0
    good += 1
    return (weights - lr * gradient, *((scale * 2, 0) if good == interval else (scale, good)))


def in_fp16(weights, gradient, scale, good, interval, lr):
    found = solution_2(weights, gradient, scale, good, interval, lr)
    if not torch.isfinite(gradient).all():
        return found
    return weights - lr * (gradient / scale).float(), *found[1:]


def steps_anyway(weights, gradient, scale, good, interval, lr):
    found = solution_2(weights, gradient, scale, good, interval, lr)
    return weights - lr * gradient.float() / scale, *found[1:]


def count_stays(weights, gradient, scale, good, interval, lr):
    w, s, g = solution_2(weights, gradient, scale, good, interval, lr)
    return w, s, good if s < scale else g


def keeps_counting(weights, gradient, scale, good, interval, lr):
    w, s, g = solution_2(weights, gradient, scale, good, interval, lr)
    return w, s, good + 1 if s > scale else g


def mfu(change):
    def answer(layers, hidden, intermediate, vocabulary, length, tokens, seconds, peak):
        matrices = layers * (4 * hidden**2 + 3 * hidden * intermediate)
        flops = change(matrices, vocabulary * hidden, 12 * layers * hidden * length)
        return flops * tokens / seconds / peak

    return answer


def fast(dtype=torch.bfloat16, autocast=True, end=lambda loss: loss.detach(), clear=True, **change):
    """Exercise 09.5's solution with something else."""

    def answer(model, optimizer, documents, row_length):
        batch = PackedCollator(dtype=dtype)(pack_documents(documents, row_length))
        batch |= {name: make(batch) for name, make in change.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        if clear:
            optimizer.zero_grad()
        return end(loss)

    return answer


def running(batch):
    return torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])


def causal(batch):
    length = batch["input_ids"].shape[1]
    mask = torch.zeros(len(batch["input_ids"]), 1, length, length, dtype=torch.bfloat16)
    return mask.masked_fill(torch.ones(length, length).tril() == 0, torch.finfo(torch.bfloat16).min)


def all_targets(batch):
    return batch["input_ids"]


def half_weights(model, optimizer, documents, row_length):
    model.bfloat16()
    return fast()(model, optimizer, documents, row_length)


def one_by_one(share):
    def answer(model, optimizer, documents, row_length):
        targets = sum(len(document) - 1 for document in documents)
        total = 0
        for document in documents:
            ids = torch.tensor([document])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss * share(document, documents, targets)
            loss.backward()
            total = total + loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return answer


def step_each(model, optimizer, documents, row_length):
    return torch.stack([solution_5(model, optimizer, [d], row_length) for d in documents]).mean()


WRONG = {
    "09.1": [
        (timing(positions, False, False, mean), "Nothing is repaired yet"),
        (timing(positions), "Padding is counted"),
        (timing(lambda b: int((b["labels"] != -100).sum())), "predicted by nothing"),
        (timing(skip=False), "leave warmup of them out"),
        (timing(waits=False), "wait() before reading it"),
        (timing(middle=mean), "take the median"),
        (skips_steps, "Every batch is trained on"),
        (lambda *a: "fast", "as a number"),
    ],
    "09.2": [
        (scaled(lambda found, w, g, s, n, lr: (w - lr * g.float(), *found[1:])), "scale times too large"),
        (steps_anyway, "leave the whole step out"),
        (only_inf, "leave the whole step out"),
        (in_fp16, "go to fp32 first"),
        (scaled(lambda found, w, g, s, n, lr: (2 * w - found[0], *found[1:])), "The sign"),
        (scaled(lambda found, w, g, s, n, lr: (found[0], s, found[2])), "the scale is halved"),
        (scaled(lambda found, w, g, s, n, lr: (found[0], min(s, found[1]), found[2])), "the scale doubles now"),
        (count_stays, "starts the count"),
        (keeps_counting, "grow at every step"),
        (lambda *a: 1.0, "Three results"),
    ],
    "09.3": [
        (lambda rows, fixed, per_row, budget: solution_3(rows, 0, per_row, budget), "does not fit"),
        (lambda rows, fixed, per_row, budget: ((budget - fixed) // per_row, 1), "another training run"),
        (lambda rows, fixed, per_row, budget: (1, rows), "a larger micro-batch does too"),
        (lambda rows, fixed, per_row, budget: 4, "Return (micro_batch, accumulation)"),
        (lambda rows, fixed, per_row, budget: [8.0, 8.0], "Return (micro_batch, accumulation)"),
    ],
    "09.4": [
        (lambda *a: 100 * solution_4(*a), "not per cent"),
        (mfu(lambda m, o, s: 6 * (m + o) + s), "half of the tokens"),
        (mfu(lambda m, o, s: 6 * (m + o)), "attention scores are missing"),
        (mfu(lambda m, o, s: 2 * (m + o) + s / 6), "Forward only"),
        (mfu(lambda m, o, s: 6 * m + s / 2), "output layer is a matrix"),
        (mfu(lambda m, o, s: 6 * (m + 2 * o) + s / 2), "no multiplication"),
        (mfu(lambda m, o, s: 8 * (m + o) + s / 2), "what checkpointing repeats"),
        (lambda *a: solution_4(*a) / a[5], "Operations of one token"),
        (lambda *a: "0.4", "as a number"),
    ],
    "09.5": [
        (fast(end=lambda loss: loss.item()), "return it as a tensor"),
        (fast(end=lambda loss: loss), "still holds its graph"),
        (half_weights, "small updates stall"),
        (step_each, "one optimizer step"),
        (fast(torch.float32, autocast=False), "computed in fp32"),
        (fast(clear=False), "still there"),
        (fast(attention_mask=causal), "do documents see each other"),
        (fast(labels=all_targets), "do documents see each other"),
        (one_by_one(lambda d, all_, n: 1 / len(all_)), "mean of the documents' means"),
        (one_by_one(lambda d, all_, n: 1.0), "another one than"),
        (one_by_one(lambda d, all_, n: len(d) - 1), "wrong length"),
        (fast(end=lambda loss: 2 * loss.detach()), "return the mean loss"),
        (lambda *a: torch.tensor(1.0), "one optimizer step"),
    ],
}  # fmt: skip
