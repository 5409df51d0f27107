"""Wrong answers to lesson 06's exercises, each with words of the hint it must get."""

import torch
from torch.nn import functional as F

from course_utils.lessons.lesson_06.solutions import (
    solution_1,
    solution_2,
    solution_3,
    solution_4,
    solution_5,
    solution_6,
)
from course_utils.training.evaluation import macro_f1


def planted(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
    """The class that the notebook shows."""
    outputs = model(inputs["input_ids"])
    weight = trainer.class_weights.float()
    loss = F.cross_entropy(outputs["logits"], inputs["labels"], weight=weight)
    loss = loss / trainer.args.gradient_accumulation_steps
    return (loss, outputs) if return_outputs else loss


def weighted_mean(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
    return planted(trainer, model, inputs) * trainer.args.gradient_accumulation_steps


def float64_weights(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
    return F.cross_entropy(model(inputs["input_ids"])["logits"], inputs["labels"], weight=trainer.class_weights)


def scaled(factor):
    def answer(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
        return solution_2(trainer, model, inputs, False, num_items_in_batch) * factor(trainer, model, inputs)

    return answer


def unweighted(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
    logits = model(inputs["input_ids"])["logits"]
    return F.cross_entropy(logits, inputs["labels"], reduction="sum") / num_items_in_batch


def no_pair(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
    return solution_2(trainer, model, inputs, False, num_items_in_batch)


def counts_ignored(logits, labels, gamma):
    return solution_3(logits, labels.clamp(min=0), gamma)


def picks_ignored(logits, labels, gamma):
    log_p = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -((1 - log_p.exp()) ** gamma) * log_p


def p_to_gamma(logits, labels, gamma):
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (-losses).exp() ** gamma * losses


def log_of_softmax(logits, labels, gamma):
    p = logits.softmax(-1)[torch.arange(len(labels)), labels]
    return -((1 - p) ** gamma) * torch.log(p + 1e-3)


def adds_prior(logits, labels, prior, taus):
    return max(taus, key=lambda t: macro_f1((logits + t * prior).argmax(-1), labels, logits.shape[-1]))


def by_accuracy(logits, labels, prior, taus):
    return max(taus, key=lambda t: ((logits - t * prior).argmax(-1) == labels).float().mean().item())


def score_of_tau(logits, labels, prior, taus):
    best = solution_4(logits, labels, prior, taus)
    return macro_f1((logits - best * prior).argmax(-1), labels, logits.shape[-1])


def unshifted(logits, labels, relevance, total):
    return (relevance * F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")).sum() / total


def early_relevance(logits, labels, relevance, total):
    return solution_5(logits, labels, relevance.roll(1, 1), total)


def own_relevance(logits, labels, relevance, total):
    return solution_5(logits, labels, relevance, relevance[:, 1:][labels[:, 1:] != -100].sum())


def with_(change):
    """solution_6 with a changed loss function."""

    def answer(counts, gamma):
        right = solution_6(counts, gamma)
        return lambda outputs, labels, num_items_in_batch=None: change(right, outputs, labels, num_items_in_batch)

    return answer


def weights_of(make):
    def answer(counts, gamma):
        right, uniform = make(counts), solution_6(torch.ones(len(counts)), gamma)

        def loss(outputs, labels, num_items_in_batch=None):
            total = 0
            for c, w in enumerate(right):
                only = torch.where(labels == c, labels, -100)
                total = total + w * uniform(outputs, only, 1)
            return total / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)

        return loss

    return answer


def in_float64(right, outputs, labels, items):
    return right({"logits": outputs["logits"].double()}, labels, items).double()


WRONG = {
    "06.1": [
        (solution_1 | {"a": 1}, "divide by k on top of it"),
        (solution_1 | {"b": 1}, "averages over them once more"),
        (solution_1 | {"c": 1}, "what does the factor do"),
        (solution_1 | {"d": 8}, "only if average_tokens_across_devices"),
        ({}, "a dictionary of four numbers"),
        ({"a": 0.125}, "has no number yet"),
        ([0.125, 0.25, 4, 2], "a dictionary of four numbers"),
    ],
    "06.2": [
        (planted, "micro-batch's own weights"),
        (weighted_mean, "micro-batch's own weights"),
        (float64_weights, "raised an exception"),
        (unweighted, "class weights are gone"),
        (scaled(lambda t, m, i: 1 / t.args.gradient_accumulation_steps), "Divided by the accumulation steps"),
        (scaled(lambda t, m, i: 6 / i["labels"].ne(-100).sum().clamp(min=1)), "micro-batch's own labels"),
        (scaled(lambda t, m, i: 1 / t.accelerator.num_processes), "Right on one process"),
        (scaled(lambda t, m, i: 1 if m.training else 1 / t.accelerator.num_processes), "losses are averaged"),
        (no_pair, "wants a pair"),
        (lambda *a, **k: 1.0, "a torch tensor"),
    ],
    "06.3": [
        (lambda x, y, g: -solution_3(x, y, g), "The sign"),
        (lambda x, y, g: solution_3(x, y, 0.0), "That is cross-entropy"),
        (lambda x, y, g: solution_3(x, y, g).mean(), "a loss for each row"),
        (p_to_gamma, "favours the rows that are right"),
        (lambda x, y, g: (1 - x.softmax(-1).max(-1).values) ** g * F.cross_entropy(x, y, reduction="none"),
         "not of the largest"),
        (log_of_softmax, "by hand, for the first row"),
        (counts_ignored, "A row labelled -100"),
        (picks_ignored, "raised an exception"),
        (lambda x, y, g: "loss", "a torch tensor"),
        (lambda x, y, g: x, "shape"),
    ],
    "06.4": [
        (adds_prior, "subtract it"),
        (by_accuracy, "take macro-F1"),
        (score_of_tau, "none of taus"),
        (lambda x, y, p, t: t[-1], "Score every tau"),
        (lambda x, y, p, t: "0.5", "one number out of taus"),
    ],
    "06.5": [
        (unshifted, "Not shifted"),
        (early_relevance, "shift it too"),
        (own_relevance, "do not add up"),
        (lambda x, y, r, n: solution_5(x, y, torch.ones_like(r), n), "relevance is not in it"),
        (lambda x, y, r, n: solution_5(x, y, r, (y[:, 1:] != -100).sum()), "number of targets"),
        (lambda x, y, r, n: solution_5(x, y, r, 1.0), "Not divided yet"),
        (lambda x, y, r, n: solution_5(x, y, r, n).item(), "a torch tensor"),
    ],
    "06.6": [
        (with_(lambda right, o, y, n: right(o, y)), "The mean of each micro-batch"),
        (weights_of(lambda c: torch.ones(len(c))), "All classes weigh the same"),
        (lambda c, g: solution_6(c, 0.0), "the focal factor is missing"),
        (weights_of(lambda c: 1 / c), "make the loss tiny"),
        (weights_of(lambda c: (1 / c) / (1 / c).sum() * len(c)), "Scaled to a sum of C"),
        (weights_of(lambda c: c / c.sum() * len(c)), "Upside down"),
        (with_(lambda right, o, y, n: right(o, y, len(y) if n is None else n)), "Without num_items_in_batch"),
        (with_(in_float64), "float64"),
        (lambda c, g: solution_6(c, g)({"logits": torch.zeros(1, len(c))}, torch.tensor([0])), "the inner function"),
    ],
}  # fmt: skip
