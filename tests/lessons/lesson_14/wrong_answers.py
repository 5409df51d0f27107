"""Wrong answers to lesson 14's exercises, each with words of the hint it must get."""

import torch
from torch.nn import functional as F

from course_utils.lessons.lesson_14.solutions import solution_1, solution_2, solution_4, solution_5


def row_with(change):
    """solution_1 with other labels."""

    def answer(image_id, k, question, words, end_id):
        row = solution_1(image_id, k, question, words, end_id)
        return row | {"labels": change(row, k)}

    return answer


def without_end(image_id, k, question, words, end_id):
    row = solution_1(image_id, k, question, words, end_id)
    return {name: values[:-1] for name, values in row.items()}


def judges(offset, place):
    """Accuracy of another position than the answer word's."""

    def answer(logits, labels, kinds):
        last = [int((row != -100).nonzero()[-1]) for row in labels]
        right = [float(logits[r, last[r] + offset].argmax() == labels[r, last[r] + place]) for r in range(len(labels))]
        found = {"all": sum(right) / len(right)}
        for kind in set(kinds):
            of_kind = [x for x, name in zip(right, kinds, strict=True) if name == kind]
            found[kind] = sum(of_kind) / len(of_kind)
        return found

    return answer


def mean_of_kinds(logits, labels, kinds):
    found = solution_2(logits, labels, kinds)
    each = [value for name, value in found.items() if name != "all"]
    return found | {"all": sum(each) / len(each)}


def only_all(logits, labels, kinds):
    return {"all": solution_2(logits, labels, kinds)["all"]}


def counts(fits, size=lambda p: p.numel(), trained=True):
    def answer(model, parts):
        return {
            part: sum(
                size(p) for n, p in model.named_parameters() if fits(n, part) and (p.requires_grad or not trained)
            )
            for part in parts
        }

    return answer


def twice_tied(model, parts):
    named = model.named_parameters(remove_duplicate=False)
    named = [(n, p) for n, p in named if p.requires_grad]
    return {part: sum(p.numel() for n, p in named if n == part or n.startswith(part + ".")) for part in parts}


def exact(name, part):
    return name == part or name.startswith(part + ".")


def step(order="grid", divisor="weights", relevance="right"):
    """solution_5 with one change."""

    def answer(features, scores, projector, embed, decoder, ids, labels, weights, image):
        if relevance == "none":
            weights = torch.ones_like(weights)
        if relevance == "early":
            weights = weights.roll(1, 1)
        if order == "first":
            scores = -torch.arange(scores.shape[1]).float().expand_as(scores)
        if order == "worst":
            scores = -scores
        if order == "score":
            k = int((ids[0] == image).sum())
            kept = scores.topk(k, dim=-1).indices
            features = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
            scores = torch.ones(features.shape[:2])
        loss = solution_5(features, scores, projector, embed, decoder, ids, labels, weights, image)
        is_target = labels[:, 1:] != -100
        own = (weights[:, 1:] * is_target).sum()
        other = {"weights": own, "count": is_target.sum(), "all": weights[:, 1:].sum()}
        return loss * own / other[divisor]

    return answer


def unshifted(features, scores, projector, embed, decoder, ids, labels, weights, image):
    k = int((ids[0] == image).sum())
    kept = scores.topk(k, dim=-1).indices.sort(dim=-1).values
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
    logits = decoder(embed(ids).masked_scatter((ids == image)[..., None], projector(chosen)))
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (weights * losses).sum() / (weights * (labels != -100)).sum()


WRONG = {
    "14.1": [
        (row_with(lambda row, k: row["input_ids"][:k] + row["labels"][k:]), "Image tokens are labels"),
        (row_with(lambda row, k: row["labels"][1:] + [-100]), "Shifted by hand"),
        (row_with(lambda row, k: row["labels"][:-1] + [-100]), "The end is no label"),
        (row_with(lambda row, k: [-100] * k + row["input_ids"][k:]), "The question is a label"),
        (row_with(lambda row, k: row["labels"][k:]), "length of input_ids"),
        (without_end, "The end is missing"),
        (lambda *a: [1, 2], 'Return {"input_ids"'),
    ],
    "14.2": [
        (judges(-1, 0), "judges the end"),
        (judges(-1, -1), "Not shifted"),
        (mean_of_kinds, "mean over rows, not over kinds"),
        (only_all, 'A dictionary with "all"'),
        (lambda *a: 0.5, 'A dictionary with "all"'),
    ],
    "14.3": [
        (counts(exact, lambda p: 1), "Tensors were counted"),
        (counts(exact, trained=False), "frozen part was counted"),
        (counts(lambda n, part: n.startswith(part)), "tower_head begins with tower"),
        (twice_tied, "counted twice"),
        (lambda model, parts: 7, "one number for each part"),
    ],
    "14.4": [
        (solution_4 | {"gradient": 2}, "compare the two numbers"),
        (solution_4 | {"sgd step": 1}, "learning rate times the gradient"),
        (solution_4 | {"adamw step": 0.5}, "divides the gradient by its own size"),
        (solution_4 | {"clipped gradient": 0.5}, "Are both norms above it"),
        ({"gradient": 0.5}, "has no number yet"),
        ({}, "has no number yet"),
        (0.5, "a dictionary of four numbers"),
    ],
    "14.5": [
        (step(divisor="count"), "not renormalised"),
        (step(divisor="all"), "only targets count"),
        (step(relevance="none"), "The relevance is not in it"),
        (step(relevance="early"), "shift it with the labels"),
        (step(order="first"), "first k patches"),
        (step(order="worst"), "least relevant"),
        (step(order="score"), "sort the places"),
        (unshifted, "Not shifted"),
        (lambda *a: 1.0, "a tensor with one number"),
    ],
}
