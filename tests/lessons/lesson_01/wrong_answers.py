"""Wrong answers to lesson 01's exercises, each with words of the hint it must get."""

import math

import torch


def cosine(shape):
    def schedule(step, warmup_steps, max_steps):
        if step < warmup_steps:
            return step / warmup_steps
        return shape((step - warmup_steps) / (max_steps - warmup_steps))

    return schedule


def in_place(p, d, lr, wd):
    p *= 1 - lr * wd
    return p - lr * d


WRONG = {
    "01.1": [
        (lambda m, v, t, b1, b2: (m, v), "unchanged"),
        (lambda m, v, t, b1, b2: (m / (1 - b1), v / (1 - b2)), "to the power of step"),
        (lambda m, v, t, b1, b2: (m * (1 - b1**t), v * (1 - b2**t)), "divide, not multiply"),
        (lambda m, v, t, b1, b2: (m / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))), "counts from 1"),
        (lambda m, v, t, b1, b2: m / (1 - b1**t), "Return (m_hat, v_hat)"),
        (lambda m, v, t, b1, b2: (m.div_(1 - b1**t), v.div_(1 - b2**t)), "in place"),
        (lambda m, v, t, b1, b2: m.nothing, "raised an exception"),
    ],
    "01.2": [
        (lambda p, d, lr, wd: p - lr * d, "not decayed at all"),
        (lambda p, d, lr, wd: p - lr * d - wd * p, "scaled by the learning rate"),
        (lambda p, d, lr, wd: p - lr * torch.sign(d + wd * p), "L2 regularisation"),
        (lambda p, d, lr, wd: (p - lr * d) * (1 - lr * wd), "old weight"),
        (lambda p, d, lr, wd: p + lr * wd * p - lr * d, "wrong sign"),
        (in_place, "in place"),
    ],
    "01.3": [
        (
            lambda s, n: sum(x / max(1, c) for x, c in zip(s, n, strict=True)) / len(n),
            "mean of the micro-batches' means",
        ),
        (lambda s, n: sum(s) / len(s), "not of micro-batches"),
        (lambda s, n: sum(s), "This is the sum"),
        (lambda s, n: sum(x.item() for x in s) / sum(n), "cut the graph"),
        (lambda s, n: "nothing", "Add up all sums"),
    ],
    "01.4": [
        (lambda s, w, t: 0.5 * (1 + math.cos(math.pi * s / t)), "no warm-up"),
        (cosine(lambda x: 1 - x), "straight line"),
        (cosine(lambda x: math.cos(math.pi * x)), "add 1 and halve"),
        (cosine(lambda x: math.cos(math.pi / 2 * x)), "quarter wave"),
        (cosine(lambda x: 0.5 * (1 + math.cos(2 * math.pi * x))), "Half a wave"),
        (lambda s, w, t: s / w if s < w else 0.5 * (1 + math.cos(math.pi * s / t)), "starts anew"),
    ],
}
