"""Wrong answers to lesson 01's exercises, each with words of the hint it must get."""

import math

import torch
from torch import nn

from course_utils.lessons.lesson_01 import planted, solutions


def plateau(fall):
    """A schedule with a right warm-up and plateau, and another fall: share of the last steps that is over -> factor."""

    def schedule(step, warmup_steps, decay_steps, max_steps):
        if step < warmup_steps:
            return step / warmup_steps
        begin = max_steps - decay_steps
        return 1.0 if step < begin else fall((step - begin) / decay_steps)

    return schedule


def evaluation(
    *, evaluate=True, graph=False, restore=True, by_batch=False, last=False, total=False, always_train=False
):
    """The solution with one line taken away."""

    def answer(model, batches):
        was_training = model.training
        if evaluate:
            model.eval()
        results, rows = [], []
        with torch.set_grad_enabled(graph):
            for batch in batches:
                outputs = model(**batch)
                hits = (outputs.logits.argmax(-1) == batch["labels"]).double().mean()
                results.append((outputs.loss.item(), hits.item()))
                rows.append(len(batch["labels"]))
        if always_train:
            model.train()
        elif restore:
            model.train(was_training)
        weights = [1 / len(rows)] * len(rows) if by_batch else [n / sum(rows) for n in rows]
        if total:
            weights = rows
        loss, accuracy = (sum(w * r[i] for w, r in zip(weights, results, strict=True)) for i in (0, 1))
        return {"loss": results[-1][0] if last else loss, "accuracy": accuracy}

    return answer


def as_in_the_notebook(model, batches):
    losses, accuracies = [], []
    for batch in batches:
        outputs = model(**batch)
        losses.append(outputs.loss.item())
        accuracies.append((outputs.logits.argmax(-1) == batch["labels"]).double().mean().item())
    model.train()
    return {"loss": sum(losses) / len(losses), "accuracy": sum(accuracies) / len(accuracies)}


def loop(bug=None, **changes):
    """The planted loop as an answer to 01.5."""

    def answer(model, batches, optimizer, scheduler, evaluate, settings):
        steps = changes.get("steps", lambda steps: steps)(settings["max_steps"])
        every = changes.get("every", lambda every: every)(settings["eval_every"])
        sizes = settings["accumulation"], steps, settings["max_norm"]
        run = planted.loop(model, batches, optimizer, scheduler, *sizes, evaluate, every, bug)
        return changes.get("result", lambda losses: losses)(run.losses)

    return answer


def one_epoch(model, batches, optimizer, scheduler, evaluate, settings):
    steps = min(settings["max_steps"], -(-len(batches) // settings["accumulation"]))
    return solutions.solution_5(model, batches, optimizer, scheduler, evaluate, settings | {"max_steps": steps})


def never_steps(model, batches, *settings):
    for batch in batches:
        nn.functional.cross_entropy(model(**batch).logits, batch["labels"]).backward()
    return [0.0]


def recount(rule):
    def answer(rows, batch_size, accumulation, epochs):
        steps = rule(rows, batch_size, accumulation)
        return {"steps_per_epoch": steps, "max_steps": epochs * steps}

    return answer


WRONG = {
    "01.1": [
        ((1000.0, 0.05, 0.34), "cancels"),
        ((1, 0, 0.34), "Not quite zero"),
        ((1, 0.1, 0.34), "the newest gradient's share"),
        ((1, 1, 0.34), "v squares"),
        ((1, 0.05, 0.33), "plain mean"),
        ((1, 0.05, 1 / 3), "plain mean"),
        ((1, 0.05, 0.4), "after the second 1"),
        ((1, 0.05, 0.26), "after the -1"),
        ((1, 0.05, 1), "Go around the cycle"),
        ((1, 1), "prediction = (a, b, c)"),
        ("a long step", "prediction = (a, b, c)"),
        ({}, "prediction = (a, b, c)"),
        ((None, 0.05, 0.34), "cancels"),
        ((float("nan"), 0.05, 0.34), "cancels"),
    ],
    "01.2": [
        (lambda s, w, d, t: min(1.0, max(0, t - s) / d), "no warm-up"),
        (lambda s, w, d, t: s / w if s < w else (t - s) / (t - w), "plateau of 1"),
        (plateau(lambda over: over), "backwards"),
        (plateau(lambda over: 1.0), "never ends"),
        (plateau(lambda over: 0.5 * (1 + math.cos(math.pi * over))), "a cosine"),
        (lambda s, w, d, t: (s + 1) / w if s < w else min(1.0, (t - s) / d), "number 0"),
        (lambda s, w, d, t: None if s < w else 1.0, "returned None"),
        (lambda s, w, d, t: s / 0, "raised an exception"),
        (lambda s, w, d, t: "one", "Rise to 1"),
        ({}, "Define a function"),
    ],
    "01.3": [
        (recount(lambda n, b, k: -(-n // b)), "counted micro-batches"),
        (recount(lambda n, b, k: n // b // k), "Rounding down"),
        (recount(lambda n, b, k: -(-n // b) // k), "drops the short last window"),
        (recount(lambda n, b, k: -(-(n // b) // k)), "short last micro-batch"),
        (recount(lambda n, b, k: -(-n // b) * k), "divide"),
        (lambda *sizes: solutions.solution_3(*sizes) | {"max_steps": 7}, "times the epochs"),
        (lambda n, b, k, e: 7, "exactly these two keys"),
        (lambda n, b, k, e: {}, "exactly these two keys"),
        ({}, "Define a function"),
    ],
    "01.4": [
        (as_in_the_notebook, "Dropout was on"),
        (evaluation(evaluate=False), "Dropout was on"),
        (evaluation(graph=True), "kept its graph"),
        (evaluation(restore=False), "another mode"),
        (evaluation(always_train=True), "another mode"),
        (evaluation(by_batch=True), "mean of the batches' means"),
        (evaluation(last=True), "last batch only"),
        (evaluation(total=True), "sum over rows"),
        (lambda model, batches: {}, "Return {"),
        (lambda model, batches: {"loss": None, "accuracy": "high"}, "divide each once"),
        (lambda model, batches: model.nothing, "raised an exception"),
        ({}, "Define a function"),
    ],
    "01.5": [
        *(
            (loop(bug), words)
            for bug, words in (
                ("loss / k", "mean of the micro-batches' means"),
                ("mean not divided", "full mean"),
                ("scheduler per micro-batch", "too fast"),
                ("scheduler inside the window", "inside the window: call it once"),
                ("no scheduler", "never changes"),
                ("zero_grad forgotten", "all steps before"),
                ("zero_grad per micro-batch", "not inside it"),
                ("last window dropped", "never reaches a step"),
                ("last window left in .grad", "mixed into the next epoch"),
                ("last window divided as if full", "count its own targets"),
                ("not clipped", "not clipped when"),
                ("clipped per micro-batch", "inside the window"),
                ("dropout stays off", "model.train()"),
            )
        ),
        (loop(every=lambda every: every + 1), "is due after every"),
        (loop(result=lambda losses: losses[-1]), "a loss per optimizer step"),
        (loop(result=lambda losses: None), "returned None"),
        (loop(steps=lambda steps: steps - 1), "max_steps times"),
        (one_epoch, "start the next one"),
        (never_steps, "never made a step"),
        (lambda *settings: [], "never made a step"),
        ({}, "Define a function"),
    ],
}
