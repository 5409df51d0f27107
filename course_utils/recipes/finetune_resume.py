"""How ``finetune`` goes on: the run is compared with its checkpoint's, and continued at the row where that stopped.

A checkpoint holds the optimizer's state and the number of steps. With another batch the Trainer would skip the wrong
number of rows; another learning rate it would overwrite with the checkpoint's, without a word.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from course_utils.parallel.what_ran import WriteRun, WrongRun, data_ranks
from course_utils.recipes.finetune_data import fingerprint
from course_utils.recipes.finetune_settings import Config
from course_utils.recipes.finetune_shards import check_shards
from course_utils.training.checked_loading import (
    OPTIMIZER,
    SCHEDULER,
    CheckedLoading,
    check_trainer_state,
    sentence_about,
)
from course_utils.training.resume import (
    COMPLETE,
    Facts,
    agreed_checkpoint,
    barrier,
    forget_checkpoints,
    read_facts,
    way_back,
)

# These may differ under --resume adapt: the same rows come in the same order, only cut otherwise.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")
ARGUMENTS = ("seed", "data_seed", "train_sampling_strategy", "optim", "learning_rate", "weight_decay")
ARGUMENTS += ("adam_beta1", "adam_beta2", "adam_epsilon")
WORDS = {"model": "model", "data": "training data"}  # what is known by a checksum only
POSITION = ("rows_seen", "epoch", "rows_in_epoch", "step")


class GoingOn(CheckedLoading):
    """A Trainer that can begin ``skipped`` steps into epoch ``epoch``, whatever the number of the step is."""

    begin: tuple[int, int] | None = None  # (epoch, skipped), in this run's steps; None: as the step's number says

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> tuple:
        values = super().set_initial_training_values(args, dataloader)
        if self.begin is None:
            return values
        epochs, per_epoch, *middle, max_steps = values
        done = self.begin[0] * per_epoch + self.begin[1]  # steps that would have led here with this batch
        if args.max_steps > 0:  # they are counted, so epochs must suffice for those that are left
            epochs = max(epochs, math.ceil((done + max_steps - self.taken) / per_epoch))
        else:
            max_steps += self.taken - done
        return (epochs, per_epoch, *middle, max_steps)

    def _init_training_state(self, *arguments: Any, **options: Any) -> tuple[int, int]:
        begin = super()._init_training_state(*arguments, **options)
        if self.begin is None:
            return begin
        return self.begin[0], self.begin[1] * self.args.gradient_accumulation_steps

    taken = 0  # steps of the checkpoint

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """First remove what a killed save, a damaged checkpoint or other ranks left in the same place."""
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", ignore_errors=True)
        barrier()
        super()._save_checkpoint(model, trial)

    def _prepare_for_training(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        try:
            return super()._prepare_for_training(*arguments, **options)
        except ValueError as error:
            if "DeepSpeed config values that mismatch" not in str(error):
                raise
            raise WrongRun(" ".join(str(error).split())) from None  # the user's two settings contradict each other


def made_with(trainer: Trainer) -> Facts:
    """What a run must have in common with one that goes on from its checkpoints, as JSON."""
    args = trainer.args
    facts = {name: getattr(args, name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    facts |= {"processes": data_ranks(trainer)} | {name: getattr(args, name) for name in ARGUMENTS}
    shapes = [(name, list(getattr(p, "ds_shape", p.shape))) for name, p in trainer.model.named_parameters()]
    facts["model"] = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
    if args.should_save:  # who compares and writes; the others' data is the same
        facts["data"] = fingerprint(trainer.train_dataset)
    return json.loads(json.dumps(facts, default=str))


def position(trainer: Trainer, report: WriteRun) -> Facts:
    """Where the run is, for the manifest of a checkpoint; every rank must call it."""
    args, epoch = trainer.args, trainer.state.epoch
    batches = len(trainer.callback_handler.train_dataloader)  # of one rank, in an epoch
    whole = math.floor(epoch + 1e-9)
    done = round((epoch - whole) * batches)  # all of them full: only an epoch's last is not
    rows = done * args.per_device_train_batch_size * data_ranks(trainer)
    return {"rows_seen": report.rows_seen(), "epoch": whole, "rows_in_epoch": rows, "step": trainer.state.global_step}


def compare(before: Facts, now: Facts, checkpoint: Path, adapt: bool) -> None:
    """Raise ``ValueError`` at the first difference that this run must not, or was not told to, go on with."""
    anew = "--resume false (begins anew)"
    for name in [*BATCH, *ARGUMENTS, *WORDS]:
        if name not in before:
            raise ValueError(
                f"{checkpoint} does not say with which {name} it was made (in its manifest {COMPLETE!r}); allowed: "
                f"{way_back(checkpoint)}; or {anew}"
            )
        if before[name] == now[name] or (adapt and name in BATCH):
            continue
        if name in WORDS:
            raise ValueError(f"{checkpoint} was made with another {WORDS[name]}; allowed: the same, or {anew}")
        ways = "--resume adapt (goes on at the row where it stopped), " if name in BATCH else ""
        raise ValueError(
            f"{name}={now[name]} contradicts {checkpoint}, made with {before[name]}; allowed: the same, {ways}or {anew}"
        )


def check_position(before: Facts, checkpoint: Path) -> None:
    """Raise ``ValueError`` where the manifest does not say where the checkpoint's run was."""
    for name in POSITION:
        if isinstance(value := before.get(name), bool) or not isinstance(value, int) or value < 0:
            raise ValueError(
                f"{checkpoint} says {name}={value!r} in its manifest {COMPLETE!r}, which is no whole number >= 0; "
                f"allowed: {way_back(checkpoint)}; or --resume false (begins anew)"
            )


def saved_by(checkpoint: Path) -> str:
    """Whose files hold the weights: each engine reads its own only."""
    names = [path.name for path in checkpoint.iterdir()]
    if any(name.startswith("pytorch_model_fsdp") for name in names):
        return "FSDP"
    return "DEEPSPEED" if "latest" in names or any(name.startswith("global_step") for name in names) else "one file"


def check_engine(checkpoint: Path, engine: str) -> None:
    """Raise ``ValueError`` where the files are another engine's than this run's (a ``DistributedType``'s name)."""
    saved, ours = saved_by(checkpoint), engine if engine in ("FSDP", "DEEPSPEED") else "one file"
    if saved != ours:
        words = {"one file": "whole, on one process or with DDP", "FSDP": "by FSDP", "DEEPSPEED": "by DeepSpeed"}
        raise ValueError(
            f"{checkpoint} was saved {words[saved]}, and this run reads what is saved {words[ours]}; allowed: the same "
            "strategy, --resume false (begins anew), or the folder that python -m course_utils.recipes.convert makes "
            "of it as --model_name_or_path"
        )


def check_parts(checkpoint: Path, engine: str, ranks: int | None) -> None:
    """Raise ``DoesNotFit`` where something is missing that the Trainer would go on without, in silence.

    Args:
        ranks: processes of both runs; None: they differ, and no random state fits.
    """
    needed = {"DEEPSPEED": (), "FSDP": ("optimizer*", SCHEDULER)}.get(engine, (OPTIMIZER, SCHEDULER))
    if ranks is not None:
        needed += ("rng_state.pth",) if ranks == 1 else tuple(f"rng_state_{rank}.pth" for rank in range(ranks))
    for name in needed:
        with sentence_about(checkpoint, name):
            if not any(checkpoint.glob(name)):
                raise ValueError("it is not there, and neither does the manifest list it")


def beginning(before: Facts, now: Facts, checkpoint: Path, engine: str) -> tuple[int, int] | None:
    """``(epoch, steps to skip in it)`` with the batch of ``now``; None where the batch is the same.

    Raises:
        ValueError: no step of ``now`` begins at the checkpoint's row, or the rows come in another order.
    """
    if all(before[name] == now[name] for name in BATCH):
        return None
    if engine == "DEEPSPEED" and before["processes"] != now["processes"]:
        raise ValueError(
            f"processes={now['processes']} contradicts {checkpoint}, made with {before['processes']}: DeepSpeed's "
            "checkpoints belong to a number of processes; allowed: the same, or --resume false (begins anew)"
        )
    if now["train_sampling_strategy"] not in ("random", "sequential"):
        raise ValueError(
            f"resume='adapt' needs rows whose order does not depend on the batch; allowed: "
            f"train_sampling_strategy=random or sequential, not {now['train_sampling_strategy']}"
        )
    rows, batch = before["rows_in_epoch"], math.prod(now[name] for name in BATCH)
    if rows % batch:
        raise ValueError(
            f"{checkpoint} stopped after {rows} rows of an epoch, and no step of {batch} rows (batch x accumulation x "
            f"processes) begins there; allowed: a divisor of {rows}"
        )
    return before["epoch"], rows // batch


def choose_checkpoint(config: Config, trainer: GoingOn, report: WriteRun, now: Facts) -> str | None:
    """Where to go on: ``--resume_from_checkpoint``, else the last complete checkpoint, unless ``--resume false``.

    Raises:
        ValueError: the checkpoint is damaged, or this run cannot go on from it; one sentence, on every rank.
    """
    args, adapt = trainer.args, config.resume == "adapt"
    if not args.resume_from_checkpoint and config.resume == "false":
        forget_checkpoints(args)
        return None
    engine = trainer.accelerator.distributed_type.name

    def check(checkpoint: Path) -> None:
        before = read_facts(checkpoint)
        compare(before, now, checkpoint, adapt)
        check_position(before, checkpoint)
        check_trainer_state(checkpoint, before["step"])
        check_engine(checkpoint, engine)
        beginning(before, now, checkpoint, engine)
        check_parts(checkpoint, engine, args.world_size if before["processes"] == now["processes"] else None)
        check_shards(checkpoint, engine, before["step"], now["processes"], exact=not args.fp16)

    chosen = agreed_checkpoint(args.output_dir, args.resume_from_checkpoint, check)
    if chosen is None:
        return None
    before = read_facts(chosen)
    report.rows_before = before["rows_seen"]
    trainer.begin, trainer.taken = beginning(before, now, chosen, engine), before["step"]
    return str(chosen)
