"""Lesson 01's loop on any number of processes: ``training/loop.py`` plus the lines marked NEW (lesson 08).

``train`` equals ``course_utils.training.loop.train`` line by line, ``predict`` and ``evaluate`` those of
``course_utils.training.evaluation``; ``tests/parallel/test_accelerated.py`` compares the sources. Library:
https://huggingface.co/docs/accelerate (pages "Accelerator", "Gradient accumulation", "Checkpointing").
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from course_utils.data.batches import Batch, to_device, windows
from course_utils.training.checkpoint import _flush_to_disk, latest_checkpoint
from course_utils.training.evaluation import macro_f1
from course_utils.training.loop import LoopConfig, count_targets, is_due, share_of_loss

if TYPE_CHECKING:
    from accelerate import Accelerator


class WrongRanks(RuntimeError):
    """What runs is not what was asked for; the message is one sentence."""


def expect_ranks(accelerator: Accelerator, processes: int, model: nn.Module | None = None) -> dict[str, Any]:
    """What really runs: world size, backend, distributed type, and the wrapper of a prepared ``model``.

    Raises:
        WrongRanks: there are not ``processes`` ranks that reach each other, or the model is not wrapped for them. A
            launcher ends with exit code 0 all the same.
    """
    meets = torch.distributed.is_available() and torch.distributed.is_initialized()
    world_size = torch.distributed.get_world_size() if meets else 1
    facts = {
        "world_size": accelerator.num_processes,
        "backend": torch.distributed.get_backend() if meets else None,
        "distributed_type": accelerator.distributed_type.name,
    }
    if (accelerator.num_processes, world_size) != (processes, processes):
        raise WrongRanks(f"{processes} processes were asked for, but each trains alone; what runs: {facts}")
    if model is not None:
        facts["wrapper"] = type(model).__name__
        if processes > 1 and not hasattr(model, "no_sync"):
            raise WrongRanks(f"the model is a plain {facts['wrapper']} on {processes} processes; prepare it")
    return facts


class PreparedBatches:
    """A prepared data loader with an epoch and a position that can be saved, as ``ShuffledBatches`` has them.

    Args:
        accelerator: its ``skip_first_batches`` finds the place again.
        loader: what ``accelerator.prepare`` returned.
        sampler: the batch sampler inside, with ``set_epoch``. On several processes the prepared loader does not reach
            a batch sampler of one's own (accelerate 1.15, ``DataLoaderShard.set_epoch``): every epoch would have the
            order of the first.
    """

    def __init__(self, accelerator: Accelerator, loader: Any, sampler: Any):
        self.accelerator, self.loader, self.sampler = accelerator, loader, sampler
        self.epoch, self.batches_given = 0, 0  # batches of this rank

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.batches_given >= len(self):  # saved after the last batch of an epoch
            self.epoch, self.batches_given = self.epoch + 1, 0
        self.loader.set_epoch(self.epoch)
        self.sampler.set_epoch(self.epoch)
        rest = self.loader
        if self.batches_given:
            rest = self.accelerator.skip_first_batches(self.loader, self.batches_given)
        for batch in rest:
            self.batches_given += 1
            yield batch
        self.epoch, self.batches_given = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batches_given = state["epoch"], state["batches_given"]


def train(
    accelerator: Accelerator,  # NEW
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    scheduler: Any = None,
    loss_function: Callable[..., Tensor] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """``course_utils.training.loop.train`` on the accelerator's processes; arguments and result are explained there.

    ``model``, ``optimizer``, ``scheduler`` and the loader in ``batches`` were prepared; ``batches`` was registered for
    checkpoints. ``scheduler.step()`` is called once per optimizer step, so the accelerator needs
    ``step_scheduler_with_optimizer=False``. Its ``gradient_accumulation_steps`` stays 1: the window is divided here.
    """
    position = batches if hasattr(batches, "state_dict") else None
    if (config.save_every or config.resume) and position is None:
        raise ValueError(
            f"batches={type(batches).__name__} has no state_dict; allowed with checkpoints: PreparedBatches"  # NEW
        )
    step, history = 0, []
    checkpoint = latest_checkpoint(config.folder) if config.resume else None
    if checkpoint is not None:
        step = load_checkpoint(accelerator, checkpoint)  # NEW: every rank, its own random states

    device = next(model.parameters()).device
    model.loss_type = getattr(getattr(model, "module", model), "loss_type", None)  # NEW: DDP's wrapper hides it
    model.zero_grad()
    while step < config.max_steps:
        step_before_epoch = step
        for window in windows(batches, config.accumulation):
            # One number for the whole window: the mean over its targets is what the big batch would have given.
            num_targets = sum(count_targets(model, batch) for batch in window)
            num_targets = accelerator.reduce(torch.tensor(num_targets, device=device)).item()  # NEW: of all ranks
            loss = torch.zeros((), device=device)
            for number, batch in enumerate(window, start=1):  # NEW
                model.train()  # an evaluation may have switched dropout off
                with nullcontext() if number == len(window) else accelerator.no_sync(model):  # NEW: one exchange a step
                    micro_loss = share_of_loss(model, to_device(batch, device), num_targets, loss_function)  # NEW
                    accelerator.backward(micro_loss * accelerator.num_processes)  # NEW: DDP divides by the ranks
                loss += micro_loss.detach()
            loss = accelerator.reduce(loss)  # NEW: for the log

            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or float("inf"))  # NEW
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
            if on_step is not None:
                on_step(record)
            if is_due(step, config.save_every, config.max_steps):
                save_checkpoint(accelerator, config.folder, step)  # NEW: all ranks
            if step == config.max_steps:
                break
        if step == step_before_epoch:
            raise ValueError(f"batches={type(batches).__name__} is empty; allowed: an iterable with at least one batch")
    return history


def save_checkpoint(accelerator: Accelerator, folder: str | Path, step: int) -> Path:
    """``folder/step-00000100`` with everything that was prepared or registered, and each rank's random states.

    Every rank calls it. It is written under a hidden name and renamed when all ranks have written, as lesson 01's is:
    a run that is killed while it saves leaves the checkpoint before as the newest one.
    """
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if accelerator.is_main_process:
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in (*temporary.iterdir(), temporary):
            _flush_to_disk(path)
        if final.exists():  # the same step again, after a restart from an earlier checkpoint
            os.rename(final, folder / f".{final.name}.old")
        os.rename(temporary, final)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> int:
    """Put a checkpoint's state back into what was prepared and registered; the optimizer steps it had taken.

    Raises:
        FileNotFoundError: it was saved by fewer ranks. ``load_state`` itself would go on without random states.
    """
    states = checkpoint / f"random_states_{accelerator.process_index}.pkl"
    if not states.exists():
        raise FileNotFoundError(
            f"{states.name} is missing in {checkpoint}; allowed: as many processes as it was saved by"
        )
    accelerator.load_state(str(checkpoint))
    return int(checkpoint.name.removeprefix("step-"))


@torch.no_grad()
def predict(accelerator: Accelerator, model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits and labels of every row, each once and in the rows' order, on every rank.

    Args:
        model: prepared; called without the labels, as ``course_utils.training.evaluation.predict`` does.
        batches: a prepared loader. Where the rows do not divide, it repeats some; ``gather_for_metrics`` drops them.

    Returns:
        ``(logits (N, C), labels (N,))`` on the CPU.
    """
    was_training = model.training
    model.eval()
    logits, labels = [], []
    device = next(model.parameters()).device
    for batch in batches:
        inputs = {name: value for name, value in to_device(batch, device).items() if name != "labels"}
        outputs = model(**inputs).logits  # NEW
        outputs, truth = accelerator.gather_for_metrics((outputs, batch["labels"]))  # NEW: of all ranks
        logits.append(outputs.float().cpu())  # NEW
        labels.append(truth.cpu())  # NEW
    model.train(was_training)
    if not logits:
        raise ValueError(f"batches={type(batches).__name__} is empty; allowed: an iterable with at least one batch")
    return torch.cat(logits), torch.cat(labels)


def evaluate(accelerator: Accelerator, model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Loss (mean cross entropy per row, nats), accuracy and macro-F1 over all rows of ``batches``, on every rank."""
    logits, labels = predict(accelerator, model, batches)  # NEW
    predicted = logits.argmax(-1)
    return {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "accuracy": (predicted == labels).double().mean().item(),
        "macro_f1": macro_f1(predicted, labels, logits.shape[-1]),
    }
