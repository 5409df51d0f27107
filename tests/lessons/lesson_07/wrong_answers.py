"""Wrong answers to lesson 07's exercises, each with words of the hint it must get."""

from pathlib import Path

import torch
from transformers import Trainer

from course_utils.lessons.lesson_07.broken import LEVELS_FILE, BrokenTrainer
from course_utils.lessons.lesson_07.solutions import solution_2, solution_3, solution_4, solution_5


def wider(rows):
    batch = solution_2([*rows, {"points": torch.zeros(64, 3), "label": 0}])
    return {name: value[:-1] for name, value in batch.items()}


def changed(**changes):
    def collate(rows):
        batch = solution_2(rows)
        return batch | {name: change(batch) for name, change in changes.items()}

    return collate


def with_label(rows):
    batch = solution_2(rows)
    return {"points": batch["points"], "mask": batch["mask"], "label": batch["labels"]}


def contains(model):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [p for n, p in named if "quantiles" not in n], [p for n, p in named if "quantiles" in n]


def frozen_too(model):
    named = list(model.named_parameters())
    is_auxiliary = [n.split(".")[-1] == "quantiles" for n, _ in named]
    return [p for (_, p), a in zip(named, is_auxiliary, strict=True) if not a], solution_3(model)[1]


def both(model):
    return [p for p in model.parameters() if p.requires_grad], solution_3(model)[1]


def first_only(model):
    return solution_3(model)[0], solution_3(model)[1][:1]


def changed_backward(place, change):
    def backward(grad, x, threshold, leak):
        found = list(solution_4(grad, x, threshold, leak))
        found[place] = change(grad, x, threshold, leak)
        return tuple(found)

    return backward


def without_share(grad, x, threshold, leak):
    return (-grad * torch.sign(x))[x.abs() > threshold].sum()


class OneOwner(solution_5):
    create_optimizer = BrokenTrainer.create_optimizer


class EveryMicroBatch(solution_5):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = Trainer.training_step(self, model, inputs, num_items_in_batch)
        self.aux_optimizer.zero_grad()
        model.aux_loss().backward()
        self.aux_optimizer.step()
        self.aux_optimizer.zero_grad()
        return loss


class StepsFirst(solution_5):
    training_step = BrokenTrainer.training_step


class NotLoaded(solution_5):
    _load_optimizer_and_scheduler = Trainer._load_optimizer_and_scheduler


class StaysHidden(solution_5):
    """Forgets to show the levels again; the auxiliary loss then has no gradient."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        self.model.levels.requires_grad_(False)
        return optimizer


class NeverSteps(solution_5):
    training_step = Trainer.training_step

    def _load_optimizer_and_scheduler(self, checkpoint):
        self.aux_optimizer.load_state_dict(torch.load(Path(checkpoint) / LEVELS_FILE, weights_only=True))


WRONG = {
    "07.1": [
        ({"critical only"}, "every element twice"),
        ({"doubled"}, "nowhere the largest"),
        ({"doubled", "critical only", "moved"}, "h sees coordinates"),
        ({"doubled", "critical only", "padded"}, "a point like any other"),
        ({"doubled", "critical only", "without critical"}, "others take their place"),
        ({"permuted"}, "none of the five"),
        ("doubled", "Return a set"),
        (7, "Return a set"),
        (set(), "every element twice"),
    ],
    "07.2": [
        (changed(mask=lambda batch: ~batch["mask"]), "True on padding"),
        (changed(mask=lambda batch: torch.ones_like(batch["mask"])), "as many as the cloud has points"),
        (changed(mask=lambda batch: batch["mask"].long()), "torch.bool"),
        (with_label, "`label` becomes `labels`"),
        (wider, "Pad to the largest"),
        (changed(points=lambda batch: batch["points"].flip(1)), "behind the points"),
        (changed(labels=lambda batch: batch["labels"].flip(0)), "in the rows' order"),
        (changed(labels=lambda batch: batch["labels"].tolist()), "every value of a batch is a tensor"),
        (lambda rows: {}, "names the keys"),
    ],
    "07.3": [
        (contains, "quantiles_head is an ordinary layer"),
        (frozen_too, "A frozen parameter"),
        (both, "two optimizers move it"),
        (first_only, "auxiliary lacks second.quantiles"),
        (lambda model: solution_3(model)[::-1], "then two optimizers move it"),
        (lambda model: (iter([]), iter([])), "two lists of the model's own"),
        (lambda model: {}, "two lists of the model's own"),
    ],
    "07.4": [
        (changed_backward(1, without_share), "a factor 1 - leak"),
        (changed_backward(0, lambda g, x, t, a: torch.where(x.abs() <= t, a, 1.0)), "The chain rule"),
        (changed_backward(0, lambda g, x, t, a: torch.where(x.abs() <= t, 0.0, g)), "multiplied by leak"),
        (changed_backward(1, lambda g, x, t, a: -solution_4(g, x, t, a)[1]), "turned round"),
        (changed_backward(2, lambda g, x, t, a: torch.where(x.abs() <= t, x * g, 0).sum()), "threshold * sign(x)"),
        (
            changed_backward(1, lambda g, x, t, a: torch.where(x.abs() <= t, 0, -(1 - a) * torch.sign(x) * g)),
            "sum over",
        ),
        (lambda g, x, t, a: g, "Return three tensors"),
        (lambda g, x, t, a: {}, "Return three tensors"),
    ],
    "07.5": [
        (OneOwner, "Two optimizers own `levels`"),
        (EveryMicroBatch, "Step once per window"),
        (NotLoaded, "`levels` do not"),
        (StaysHidden, "raised an exception"),
        (NeverSteps, "never stepped"),
        (StepsFirst, "never stepped"),
        (Trainer, "Write class Repaired"),
        (3, "Write class Repaired"),
    ],
}
