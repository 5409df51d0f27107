"""Trainers that differ in ``compute_loss``: a relevance for each token, and a loss of several logged parts (lesson 06).

Both divide by a number of the whole window of accumulation, on all ranks, and multiply by the number of processes where
``DistributedDataParallel`` will divide by it: accumulated equals full batch on any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from course_utils.data.batches import IGNORED
from course_utils.training.losses import multi_task, relevance_weighted

RELEVANCE = "relevance"


class RelevanceTrainer(Trainer):
    """Weighs each target's cross-entropy with the batch's ``relevance``, of the labels' shape (``relevance_weighted``).

    The divisor is the sum of the relevances of the window's targets on all ranks, so a relevance that is twice as large
    everywhere trains the same model. For a causal language model logits are shifted against labels and relevance as in
    its own loss. In evaluation each batch is divided by its own relevance.

    Raises:
        ValueError: ``remove_unused_columns`` is True, which drops the column, or a batch lacks it.
    """

    loss_is_scaled_for_ga = True  # the loss is divided for the whole window here: the Trainer must not divide again

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.remove_unused_columns:
            raise ValueError("remove_unused_columns=True drops the column 'relevance'; allowed: False")

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """The window's batches, and the sum of its relevances in place of the number of its labels."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.zeros((), device=device)
        for batch in batches:
            labels, relevance = self._targets(batch)
            total += relevance.masked_fill(labels == IGNORED, 0).sum().to(total)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return batches, total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """``num_items_in_batch`` is the sum of relevances in training; in evaluation it counts labels: not used."""
        labels, relevance = self._targets(inputs)
        outputs = model(**{name: value for name, value in inputs.items() if name not in ("labels", RELEVANCE)})
        logits = outputs["logits"][..., :-1, :] if self._shifts() else outputs["logits"]
        loss = relevance_weighted(logits, labels, relevance, num_items_in_batch if model.training else None)
        loss = loss * _undo_average(self, model)
        return (loss, outputs) if return_outputs else loss

    def _targets(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Labels and relevances as the loss meets them."""
        if RELEVANCE not in batch:
            raise ValueError(f"the batch has {', '.join(batch)}; allowed: 'relevance' as well, of the labels' shape")
        labels, relevance = batch["labels"], batch[RELEVANCE]
        return (labels[..., 1:], relevance[..., 1:]) if self._shifts() else (labels, relevance)

    def _shifts(self) -> bool:
        return getattr(self.accelerator.unwrap_model(self.model), "loss_type", None) == "ForCausalLM"


class PartsTrainer(Trainer):
    """A loss that is a weighted sum of parts, each of them in the log as ``loss_<part>`` beside ``loss``.

    Args:
        parts: ``(outputs, inputs, num_items_in_batch) -> {name: scalar}``, each divided by ``num_items_in_batch``, as
            the losses of ``course_utils.training.losses`` do. ``inputs`` is the batch, labels included.
        weights: name -> factor.
        model_inputs: the names in a batch that the model is called with; the rest is for ``parts``.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        parts: Callable[..., Mapping[str, Tensor]],
        weights: Mapping[str, float],
        model_inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that the Trainer counts the window's labels for us
        self.parts, self.weights, self.model_inputs = parts, dict(weights), model_inputs
        self._sums: dict[str, Tensor] = {}
        self._summed_from_step = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The weighted sum; in training each part is also added up for the log."""
        outputs = model(**{name: inputs[name] for name in self.model_inputs if name in inputs})
        items = num_items_in_batch if model.training else None
        loss, parts = multi_task(self.parts(outputs, inputs, items), self.weights)
        if model.training:
            for name, value in parts.items():
                self._sums[name] = self._sums.get(name, 0) + value
        loss = loss * _undo_average(self, model)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each part's mean over the optimizer steps since the last log. Called on every rank."""
        steps = self.state.global_step - self._summed_from_step
        if "loss" in logs and self._sums and steps:
            # Each rank holds its share of the window's sum; with counts of its own it holds its own mean.
            reduction = "sum" if self.args.average_tokens_across_devices else "mean"
            for name, total in self._sums.items():
                logs[f"loss_{name}"] = self.accelerator.reduce(total, reduction).item() / steps
            self._sums, self._summed_from_step = {}, self.state.global_step
        super().log(logs, start_time)


def _undo_average(trainer: Trainer, model: nn.Module) -> int:
    """The number of processes whose gradients are averaged after the division by a number of all ranks; 1 otherwise."""
    divided_by_all = model.training and trainer.args.average_tokens_across_devices
    return trainer.accelerator.num_processes if divided_by_all else 1
