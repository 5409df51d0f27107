"""Keep the best checkpoint on disk, by a metric of your choice, and no other (lesson 05)."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from course_utils.training.callbacks.monitored import is_better, is_greater_better, metric_name, read_metric


class SaveBest(TrainerCallback, ExportableState):
    """Save at each new best of a metric, and delete the best checkpoints before it.

    The first evaluation counts. The comparison happens in ``on_evaluate`` with a best value of the callback's own:
    ``state.best_metric`` is already the new one when ``on_save`` runs. NaN is never best; of equal values the first
    stays. The old checkpoint goes after the new one is complete, and only rank 0 deletes.

    Use it with ``save_strategy="no"``, or beside "steps" or "epoch": checkpoints that these ask for are not touched.
    A run resumed without ``restore_callback_states_from_checkpoint=True`` reads the best value from the log history.

    Args:
        metric: its name with or without "eval_"; None: ``metric_for_best_model``.
        greater_is_better: the direction; None: see ``monitored.is_greater_better``.
        keep: how many of the last bests stay on disk, >= 1.

    Raises:
        ValueError: ``keep`` out of range; when training starts: no metric, no direction, ``save_strategy="best"``
            (the Trainer then overwrites ``control.should_save``), or a ``save_total_limit`` that deletes the best.
    """

    def __init__(self, metric: str | None = None, greater_is_better: bool | None = None, keep: int = 1):
        if keep < 1:
            raise ValueError(f"keep={keep} is out of range; allowed: a whole number >= 1")
        self.metric, self.greater_is_better, self.keep = metric, greater_is_better, keep
        self.best: float | None = None
        self.best_step: int | None = None
        self.saved: list[int] = []  # steps of this callback's own checkpoints, oldest first
        self._training = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._check(args)
        if state.global_step == 0:
            self.best, self.best_step, self.saved = None, None, []
        elif self.best is None:
            self._read_history(args, state)
        self._prune(args, state)  # what a run that died between saving and deleting left behind
        self._training = True

    def _check(self, args) -> None:
        is_greater_better(args, self.metric, self.greater_is_better)
        strategy, limit = args.save_strategy.value, args.save_total_limit
        if strategy == "best":
            raise ValueError("save_strategy='best' overrules SaveBest; allowed: 'no', 'steps' or 'epoch'")
        if limit is not None and (strategy != "no" or limit < self.keep):
            raise ValueError(f"save_total_limit={limit} would delete the best checkpoint; allowed with SaveBest: None")

    def _read_history(self, args, state) -> None:
        name = metric_name(args, self.metric)
        greater = is_greater_better(args, self.metric, self.greater_is_better)
        for entry in state.log_history:
            if name in entry and is_better(entry[name], self.best, greater):
                self.best, self.best_step = entry[name], entry["step"]
        if args.save_strategy.value == "no" and self.best_step is not None:
            self.saved = [self.best_step]  # every checkpoint of such a run is this callback's

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if not self._training:  # trainer.evaluate() between two runs saves nothing
            return
        value = read_metric(metrics, metric_name(args, self.metric))
        if not is_better(value, self.best, is_greater_better(args, self.metric, self.greater_is_better)):
            return
        self.best, self.best_step = value, state.global_step
        if not control.should_save:  # nobody else wants this checkpoint, so it is this callback's to delete
            self.saved.append(state.global_step)
        control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self._prune(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False

    def _prune(self, args, state) -> None:
        bests = self.saved if self.best_step in self.saved else [*self.saved, self.best_step]
        for step in bests[: -self.keep]:
            if state.is_world_process_zero:
                shutil.rmtree(self.folder(args, step), ignore_errors=True)
        self.saved = [step for step in self.saved if step in bests[-self.keep :]]

    def folder(self, args, step: int | None = None) -> Path:
        """Where the checkpoint of ``step`` lies; None: the best one's."""
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.best_step if step is None else step}"

    def state(self) -> dict:
        """What a checkpoint keeps; it is asked before ``on_save``, so the step being saved is in ``saved`` already."""
        return {
            "args": {"metric": self.metric, "greater_is_better": self.greater_is_better, "keep": self.keep},
            "attributes": {"best": self.best, "best_step": self.best_step, "saved": list(self.saved)},
        }
