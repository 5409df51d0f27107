"""The learning rate of every parameter group, beside the loss in the log (lesson 05)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainerCallback


class LearningRateLogger(TrainerCallback):
    """Add ``learning_rate/NAME`` of each parameter group to the training log's entries.

    The Trainer logs the first group's rate only. The rates are read in ``on_optimizer_step``: one event later, in
    ``on_step_end``, the scheduler has moved on and they are the next step's. They go into ``state.log_history``, which
    checkpoints keep and resuming restores, so this callback has no state of its own.

    Args:
        names: one per group in the optimizer's order; None: ``group_0``, ``group_1`` ...

    Raises:
        ValueError: at the first step, if there are more or fewer names than groups.
    """

    def __init__(self, names: Sequence[str] | None = None):
        self.names = names
        self.rates: dict[str, float] = {}  # of the last optimizer step

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        groups = optimizer.param_groups
        names = self.names or [f"group_{number}" for number in range(len(groups))]
        if len(names) != len(groups):
            raise ValueError(f"names={list(names)} for {len(groups)} parameter groups; allowed: one name a group")
        self.rates = {name: float(group["lr"]) for name, group in zip(names, groups, strict=True)}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):  # an evaluation's entry, or the totals at the end
            return
        found = {f"learning_rate/{name}": rate for name, rate in self.rates.items()}
        logs.update(found)  # for callbacks that come later in the list
        state.log_history[-1].update(found)
