"""A Trainer that loads a checkpoint only if it fits, and says in one sentence what does not (lesson 15).

The manifest (``resume``) shows that a checkpoint is as it was written, not that this run can go on from it. A Trainer
warns of missing weights, goes on without a rank's random state, and takes an optimizer or a scheduler of any shape: it
fails, or does harm, some steps later. All of this is asked before training begins and before anything is written.
FSDP's and DeepSpeed's shards: ``recipes.finetune_shards``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from transformers import Trainer

from course_utils.training.checkpoint import random_state, set_random_state
from course_utils.training.optimizer_state import check_latest, check_optimizer_state, check_scheduler_state
from course_utils.training.resume import way_back

STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"


class DoesNotFit(ValueError):
    """A checkpoint as it was written, from which this run cannot go on; one sentence that names the file."""


@contextmanager
def sentence_about(checkpoint: str | Path, file: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one sentence: the file was written by another run, or by a stranger."""
    try:
        yield
    except (DoesNotFit, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as error:  # torch, pickle, safetensors, transformers: any of their kinds
        failures = getattr(error, "failures", None)  # of ranks that loaded together: the first of them
        cause = next(iter(failures.values()))[0] if failures else error
        reason = " ".join(str(cause).replace(f"{checkpoint}/", "").split())[:300].rstrip(". ") or type(cause).__name__
        raise DoesNotFit(
            f"{checkpoint} does not fit this run: {reason} ({file}); allowed: {way_back(Path(checkpoint))}"
        ) from error


def _first(checkpoint: str | Path, *names: str) -> str:
    """The first of ``names`` that is there."""
    return next((name for name in names if Path(checkpoint, name).exists()), "the checkpoint")


def check_trainer_state(checkpoint: Path, step: int) -> None:
    """Raise ``DoesNotFit`` unless ``trainer_state.json`` is a Trainer's, saved at ``step``."""
    from transformers import TrainerState

    with sentence_about(checkpoint, STATE):
        state = TrainerState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
        if state.global_step != step or isinstance(state.global_step, bool):
            raise ValueError(f"global_step={state.global_step!r} in a checkpoint of step {step}")
        entries = state.log_history
        if not isinstance(entries, list) or not all(isinstance(e, dict) and "step" in e for e in entries):
            raise ValueError("log_history is no list of entries with a step")
        for name in ("max_steps", "num_train_epochs", "epoch", "total_flos", "num_input_tokens_seen"):
            if isinstance(value := getattr(state, name), bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name}={value!r}; allowed: a number >= 0")
        if not isinstance(state.stateful_callbacks, dict) or not isinstance(state.train_batch_size, int):
            raise ValueError("stateful_callbacks or train_batch_size is missing")


class CheckedLoading(Trainer):
    """Raises ``DoesNotFit`` while it loads, before ``on_train_begin``."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        try:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        except Exception as error:  # DeepSpeed loads in a function of transformers, not in a method of the Trainer's
            if all(frame.name != "deepspeed_load_checkpoint" for frame in extract_tb(error.__traceback__)):
                raise
            folder = Path(resume_from_checkpoint or "")
            with sentence_about(folder, next((path.name for path in folder.glob("global_step*")), "latest")):
                raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        names = ("model.safetensors", "adapter_model.safetensors", "pytorch_model_fsdp_0")
        with sentence_about(resume_from_checkpoint, _first(resume_from_checkpoint, *names)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Here no warning but an error: weights that are missing stay as they were."""
        tensors = self.model.state_dict()
        missing = set(load_result.missing_keys)
        there = {tensor.data_ptr() for name, tensor in tensors.items() if name not in missing}
        missing = {name for name in missing if name in tensors and tensors[name].data_ptr() not in there}  # not tied
        missing -= set(self.model._keys_to_ignore_on_save or ())
        if wrong := sorted(missing) + list(load_result.unexpected_keys):
            raise ValueError(f"{'no' if missing else 'an unknown'} {wrong[0]} is in it")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        step = json.loads((folder / STATE).read_text(encoding="utf-8"))["global_step"]
        if (folder / OPTIMIZER).is_file():  # sharded states lie in folders
            with sentence_about(folder, OPTIMIZER):
                saved = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu", mmap=True)
                check_optimizer_state(saved, self.optimizer)
                if not saved["state"] and isinstance(getattr(self.optimizer, "optimizer", None), torch.optim.Adam):
                    raise ValueError("it holds no moments")
                counts = [entry["step"] for entry in saved["state"].values() if "step" in entry]
                check_latest(map(float, counts), step, exact=not self.args.fp16)
        if (folder / SCHEDULER).is_file():
            with sentence_about(folder, SCHEDULER):
                saved = torch.load(folder / SCHEDULER, weights_only=True)
                check_scheduler_state(saved, getattr(self.lr_scheduler, "scheduler", self.lr_scheduler))
        with sentence_about(folder, _first(folder, OPTIMIZER, "optimizer_0")):
            super()._load_optimizer_and_scheduler(checkpoint)
        self._try_random_state(folder)

    def _try_random_state(self, folder: Path) -> None:
        """The Trainer loads it when the first epoch has begun: too late for a refusal."""
        name = f"rng_state_{self.args.process_index}.pth" if self.args.world_size > 1 else "rng_state.pth"
        now = random_state()
        try:
            with sentence_about(folder, name):
                self._load_rng_state(str(folder))
        finally:
            set_random_state(now)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with sentence_about(checkpoint or "", "scaler.pt"):
            super()._load_scaler(checkpoint)
