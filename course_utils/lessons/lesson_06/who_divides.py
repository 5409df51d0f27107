"""Who divides the loss: ways to give the Trainer one, each run for one step and compared with the full batch.

Notebook and tests call ``survey`` in this process and, through ``run_ranks``, in two.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback

from course_utils.models.bag import BagClassifier
from course_utils.training import losses
from course_utils.training.losses import cross_entropy, for_trainer
from course_utils.training.settings import logged, quiet_trainer

ROWS, LENGTH, VOCABULARY, CLASSES = 16, 6, 40, 5  # rows of one optimizer step, however they are divided


class PlainModel(BagClassifier):
    """Returns a mean; forward has no **kwargs."""


class DeafModel(BagClassifier):
    """Takes num_items_in_batch and ignores it: ModernBertForSequenceClassification in transformers 5.23."""

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        return super().forward(input_ids, attention_mask, labels)


class HonouringModel(BagClassifier):
    """Divides its sum by num_items_in_batch, as causal language models do."""

    def forward(self, input_ids, attention_mask=None, labels=None, num_items_in_batch=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask)
        if labels is not None:
            outputs["loss"] = cross_entropy(outputs.logits, labels, num_items_in_batch)
        return outputs


class ModelWithConfig(BagClassifier):
    """label_smoothing_factor wants to know the model's problem type."""

    config = SimpleNamespace(problem_type=None)


def mean_function(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A compute_loss_func that ignores the third argument."""
    return F.cross_entropy(outputs["logits"], labels)


class OverrideMean(Trainer):
    """What many examples show: the mean of the micro-batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["input_ids"])
        loss = F.cross_entropy(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class OverrideMeanDeclared(OverrideMean):
    """The same, and it says that its loss is a micro-batch's mean."""

    loss_is_scaled_for_ga = False


class OverrideDividesTwice(OverrideMeanDeclared):
    """Divides by the number of micro-batches, which the Trainer does as well."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


class OverrideSum(Trainer):
    """Sum / labels of the window on all ranks; DistributedDataParallel then divides by the ranks once more."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # have the labels counted, whatever the model accepts

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["input_ids"])
        loss = cross_entropy(outputs["logits"], inputs["labels"], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class OverrideExact(OverrideSum):
    """The same, times the number of processes: in evaluation too, where their losses are averaged."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class SmoothTwice(Trainer):
    """Smooths what the Trainer may have smoothed already."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        to_all = -outputs["logits"].log_softmax(-1).mean()
        loss = (1 - self.args.label_smoothing_factor) * loss + self.args.label_smoothing_factor * to_all
        return (loss, outputs) if return_outputs else loss


class Way(NamedTuple):
    """One way to give the Trainer a loss: the model, the Trainer, and what ``compute_loss_func`` is."""

    model: type[nn.Module]
    trainer: type[Trainer] = Trainer
    function: Callable | None = None


WAYS = {
    "model: mean, no **kwargs": Way(PlainModel),
    "model: mean, **kwargs ignored": Way(DeafModel),
    "model: sum / num_items": Way(HonouringModel),
    "function: mean": Way(PlainModel, function=mean_function),
    "function: sum / num_items": Way(PlainModel, function=for_trainer(cross_entropy)),
    "override: mean, plain model": Way(PlainModel, OverrideMean),
    "override: mean, **kwargs model": Way(DeafModel, OverrideMean),
    "override: mean, flag False": Way(DeafModel, OverrideMeanDeclared),
    "override: mean / k, flag False": Way(DeafModel, OverrideDividesTwice),
    "override: sum / num_items": Way(PlainModel, OverrideSum),
    "override: the same x processes": Way(PlainModel, OverrideExact),
}


def rows(ragged: bool = False) -> list[dict[str, Tensor]]:
    """16 rows of random token ids (L,) with a label; ``ragged``: 9 of them have none (-100), unevenly spread."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    if ragged:
        labels[torch.tensor([1, 2, 3, 5, 7, 10, 11, 13, 14])] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def full_batch(ragged: bool = False, loss: Callable = cross_entropy) -> tuple[float, Tensor]:
    """Loss and gradient of all rows at once, in plain torch: what every way ought to give."""
    batch = {name: torch.stack([row[name] for row in rows(ragged)]) for name in ("input_ids", "labels")}
    model = fresh(PlainModel)
    value = loss(model(batch["input_ids"]).logits, batch["labels"])
    value.backward()
    return value.item(), gradient(model)


def fresh(model: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model(VOCABULARY, CLASSES, width=8)


def gradient(model: nn.Module) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])


class _KeepGradient(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradient = gradient(model).clone()


def one_step(way: Way, accumulation: int, ragged: bool = False, **settings: Any) -> tuple[float, Tensor]:
    """The logged loss and the gradient of one optimizer step over all rows, on however many processes there are."""
    keep = _KeepGradient()
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            fresh(way.model),
            folder,
            rows(ragged),
            trainer_class=way.trainer,
            compute_loss_func=way.function,
            callbacks=[keep],
            max_steps=1,
            logging_steps=1,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_grad_norm=0.0,
            use_cpu=True,
            per_device_train_batch_size=ROWS // accumulation // int(os.environ.get("WORLD_SIZE", "1")),
            **settings,
        )
        trainer.train()
    return logged(trainer, "loss")[0][1], keep.gradient


def evaluated(way: Way) -> float:
    """``eval_loss`` of all rows on however many processes there are / the full batch's loss."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            fresh(way.model),
            folder,
            rows(),
            trainer_class=way.trainer,
            compute_loss_func=way.function,
            eval_dataset=rows(),
            use_cpu=True,
            per_device_eval_batch_size=4,
        )
        return trainer.evaluate()["eval_loss"] / full_batch()[0]


def compare(way: Way, accumulation: int, ragged: bool = False, **settings: Any) -> dict[str, float]:
    """One step against the full batch.

    Returns:
        ``loss``: the logged one / the full batch's; ``gradient``: the factor of the full batch's gradient that fits
        best; ``off``: what it leaves unexplained, relative to the full batch's gradient.
    """
    value, vector = one_step(way, accumulation, ragged, **settings)
    expected, target = full_batch(ragged)
    factor = (vector @ target / (target @ target)).item()
    off = ((vector - factor * target).norm() / target.norm()).item()
    return {"loss": value / expected, "gradient": factor, "off": off}


def survey(accumulations: list[int], ragged: bool = False) -> dict[str, list[dict[str, float]]]:
    """``compare`` of every way at each number of micro-batches."""
    return {name: [compare(way, k, ragged) for k in accumulations] for name, way in WAYS.items()}


def all_losses() -> dict[str, Callable]:
    """Every loss of ``course_utils.training.losses`` that a batch of rows and labels is enough for."""
    weights = torch.linspace(0.2, 2, CLASSES)
    teacher = torch.linspace(-1, 1, CLASSES)
    return {
        "cross_entropy": cross_entropy,
        "weighted": _with(losses.weighted_cross_entropy, class_weights=weights),
        "focal": _with(losses.focal_loss, gamma=2.0, class_weights=weights),
        "smoothing": _with(losses.label_smoothing, epsilon=0.1),
        "logit_adjusted": _with(losses.logit_adjusted, log_prior=(weights / weights.sum()).log()),
        "distillation": _with(losses.distillation, before_labels=teacher),
    }


def _with(loss: Callable, before_labels: Tensor | None = None, **settings: Any) -> Callable:
    def call(logits, labels, num_items_in_batch=None):
        between = [] if before_labels is None else [before_labels.expand_as(logits)]
        return loss(logits, *between, labels, num_items_in_batch=num_items_in_batch, **settings)

    return call


def worst_of_losses(accumulations: list[int]) -> dict[str, float]:
    """Loss -> largest relative distance of its gradient from the full batch's, over both doors, on ragged rows."""
    found = {}
    for name, loss in all_losses().items():
        target = full_batch(True, loss)[1]
        for way in (Way(PlainModel, function=for_trainer(loss)), Way(PlainModel, _override_with(loss))):
            for accumulation in accumulations:
                vector = one_step(way, accumulation, ragged=True)[1]
                distance = ((vector - target).norm() / target.norm()).item()
                found[name] = max(found.get(name, 0.0), distance)
    return found


def _override_with(loss: Callable) -> type[Trainer]:
    class Override(OverrideSum):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(inputs["input_ids"])
            value = loss(outputs["logits"], inputs["labels"], num_items_in_batch=num_items_in_batch)
            value = value * self.accelerator.num_processes
            return (value, outputs) if return_outputs else value

    return Override


def on_ranks(accumulations: list[int]) -> dict[str, Any]:
    """What the notebook asks two processes: the survey of equal rows, the worst of the losses, and ``eval_loss``."""
    torch.set_num_threads(1)
    measured = ("override: sum / num_items", "override: the same x processes")
    evaluations = {name: evaluated(WAYS[name]) for name in measured}
    return {"ways": survey(accumulations), "losses": worst_of_losses(accumulations), "evaluation": evaluations}
