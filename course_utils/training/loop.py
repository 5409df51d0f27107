"""The training loop, in a straight line (lesson 01).

Order of operations is that of transformers 5's ``Trainer``: gather a window of micro-batches and count its targets;
per micro-batch forward, loss, backward; clip; ``optimizer.step``; ``scheduler.step``; zero the gradients. With the same
data order and the same random state both give the same losses (tested here, shown in lesson 03).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils import progress
from course_utils.data.batches import IGNORED, Batch, to_device, windows
from course_utils.data.packing import check_mask_fits
from course_utils.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, save_own_generators


@dataclass
class LoopConfig:
    """Settings of one run; counts are in optimizer steps.

    Effective batch = per-device batch x devices x ``accumulation``.
    """

    max_steps: int
    accumulation: int = 1  # micro-batches per optimizer step
    max_grad_norm: float = 1.0  # 0 does not clip
    eval_every: int = 0  # 0 never; also after the last step otherwise
    save_every: int = 0  # 0 never; also after the last step otherwise
    folder: str | Path | None = None  # where checkpoints go
    resume: bool = False  # continue from the newest checkpoint in folder, if there is one

    def __post_init__(self):
        for name, lowest in {"max_steps": 1, "accumulation": 1, "eval_every": 0, "save_every": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}; allowed: a whole number >= {lowest}")
            if value < lowest:
                raise ValueError(f"{name}={value} is out of range; allowed: a whole number >= {lowest}")
        if not self.max_grad_norm >= 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} is out of range; allowed: a number >= 0")
        if (self.save_every or self.resume) and self.folder is None:
            raise ValueError("folder=None with save_every or resume; allowed: the folder checkpoints go to")


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    scheduler: Any = None,
    loss_function: Callable[..., Tensor] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` for ``config.max_steps`` optimizer steps and return one record per step.

    Args:
        model: called as ``model(**batch)``; its result has ``.loss``, the mean over the batch's targets.
        batches: one pass over it is an epoch; it is passed over again until ``max_steps`` is reached. To save and
            resume it needs ``state_dict`` (``ShuffledBatches`` has it).
        optimizer, scheduler: the scheduler's ``step()`` is called once per optimizer step; None keeps the rate.
        config: see ``LoopConfig``.
        loss_function: ``(outputs, labels, num_items_in_batch) -> loss`` as ``Trainer(compute_loss_func=)`` takes it; it
            divides the sum over its micro-batch by the targets of the whole window. None reweights ``model``'s mean.
        evaluate: called every ``eval_every`` steps; what it returns is added to the record as ``eval_...``.
        on_step: called with each record.

    Returns:
        Dicts with ``step`` (from 1), ``loss`` (mean per target, nats), ``grad_norm`` (before clipping) and
        ``learning_rate`` (used in this step).

    Raises:
        ValueError: ``batches`` is empty, or cannot be saved though the config asks for it; a window without a target;
            an attention mask that overrules the model's own.
        CheckpointError: the checkpoint to resume from does not fit, or an object draws from a generator that cannot be
            saved.
    """
    position = batches if hasattr(batches, "state_dict") else None
    if (config.save_every or config.resume) and position is None:
        raise ValueError(
            f"batches={type(batches).__name__} has no state_dict; allowed with checkpoints: ShuffledBatches"
        )
    step, history = 0, []
    checkpoint = latest_checkpoint(config.folder) if config.resume else None
    if checkpoint is not None:
        step = load_checkpoint(checkpoint, model, optimizer, scheduler, position, loss_function)
    if config.save_every:  # a generator that cannot be saved is named now, not after the first hours
        save_own_generators(model, optimizer, scheduler, position, loss_function)

    device = next(model.parameters()).device
    model.zero_grad()
    while step < config.max_steps:
        step_before_epoch = step
        for window in windows(batches, config.accumulation):
            # One number for the whole window: the mean over its targets is what the big batch would have given.
            num_targets = sum(count_targets(model, batch) for batch in window)
            check_window(model, window, num_targets, step + 1)
            loss = torch.zeros((), device=device)
            for batch in window:
                model.train()  # an evaluation may have switched dropout off
                micro_loss = share_of_loss(model, to_device(batch, device), num_targets, loss_function)
                micro_loss.backward()
                loss += micro_loss.detach()

            grad_norm = clip_grad_norm(model.parameters(), config.max_grad_norm or float("inf"))
            optimizer.step()
            learning_rate = optimizer.param_groups[0]["lr"]
            if scheduler is not None:
                scheduler.step()
            model.zero_grad()

            step += 1
            record = {"step": step, "loss": loss.item(), "grad_norm": grad_norm.item(), "learning_rate": learning_rate}
            if evaluate is not None and is_due(step, config.eval_every, config.max_steps):
                record |= {f"eval_{name}": value for name, value in evaluate().items()}
            history.append(record)
            progress.report(step, config.max_steps, record["loss"], window)
            if on_step is not None:
                on_step(record)
            if is_due(step, config.save_every, config.max_steps):
                save_checkpoint(config.folder, step, model, optimizer, scheduler, position, loss_function)
            if step == config.max_steps:
                break
        if step == step_before_epoch:
            raise ValueError(f"batches={type(batches).__name__} is empty; allowed: an iterable with at least one batch")
    return history


def check_window(model: nn.Module, window: list[Batch], num_targets: int, step: int) -> None:
    """Before a window is computed: does it teach anything, and do packed batches fit the model?

    Raises:
        ValueError: no target in it (its mean would be 0/0); or an explicit attention mask that overrules the model's
            own window (``check_mask_fits``).
    """
    if num_targets == 0:
        raise ValueError(
            f"step {step} has no target, all labels of its {len(window)} batches are {IGNORED}; allowed: at least one "
            "target a window (longer rows, a larger batch or more accumulation)"
        )
    mask, config = window[0].get("attention_mask"), getattr(model, "config", None)
    if step == 1 and mask is not None and mask.ndim == 4 and hasattr(config, "get_text_config"):
        check_mask_fits(mask, config)


def share_of_loss(
    model: nn.Module, batch: Batch, num_targets: int, loss_function: Callable[..., Tensor] | None = None
) -> Tensor:
    """This micro-batch's part of the window's mean loss: the sum over its targets / all targets of the window.

    ``model`` returns the mean over the micro-batch's own n targets; times n / num_targets it is that part. Dividing by
    the number of micro-batches instead gives a target in a short micro-batch more weight than one in a long one. A
    micro-batch without targets, whose mean is 0/0, has the part 0.
    """
    if loss_function is not None:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return loss_function(model(**inputs), batch["labels"], num_items_in_batch=num_targets)
    outputs, own_targets = model(**batch), count_targets(model, batch)
    if own_targets == 0:
        return outputs.logits.sum() * 0  # with a graph: other ranks wait for this one's backward pass
    return outputs.loss * (own_targets / num_targets)


def summed_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """A ``loss_function`` for classifiers: cross entropy summed over logits (..., C) / targets of the whole window.

    Give it to ``Trainer(compute_loss_func=)`` as well when you accumulate with a model that accepts
    ``num_items_in_batch`` and ignores it. ModernBertForSequenceClassification does in transformers 5.23: without this,
    the accumulated loss and gradient are k times too large.
    """
    logits = outputs.logits.flatten(0, -2)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a sum in 16 bit would lose digits
    total = nn.functional.cross_entropy(logits, labels.view(-1), ignore_index=IGNORED, reduction="sum")
    return total / num_items_in_batch


def count_targets(model: nn.Module, batch: Batch) -> int:
    """Targets in ``batch``: labels other than -100. A causal model predicts nothing at position 0: not counted."""
    labels = batch["labels"]
    if getattr(model, "loss_type", None) == "ForCausalLM":
        labels = labels[..., 1:]
    return int(labels.ne(IGNORED).sum())


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their common norm is at most ``max_norm``; their direction stays.

    Pascanu et al., "On the difficulty of training recurrent neural networks" (ICML 2013), algorithm 1; equal to
    ``torch.nn.utils.clip_grad_norm_``.

    Returns:
        The norm before clipping, a 0-d tensor.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    # min(1, .) as a tensor operation: an `if` would make the processor wait for the GPU.
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return total


def is_due(step: int, every: int, max_steps: int) -> bool:
    """True every ``every`` steps and after the last one; never when ``every`` is 0."""
    return every > 0 and (step % every == 0 or step == max_steps)
