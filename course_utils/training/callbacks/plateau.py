"""Stop when a metric no longer improves, measured from the last improvement that counted (lesson 05)."""

from __future__ import annotations

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from course_utils.training.callbacks.monitored import is_better, is_greater_better, metric_name, read_metric


class PlateauStop(TrainerCallback, ExportableState):
    """Stop after ``patience`` evaluations in a row that improve by no more than ``min_delta`` on the reference.

    The reference is the last value that counted as an improvement, as in torch's ``ReduceLROnPlateau``: many small
    steps add up. transformers' ``EarlyStoppingCallback`` compares with the best value so far, which every small step
    moves along; a slow steady gain then looks like a plateau. With ``min_delta=0`` the two stop at the same step.

    Every rank sees the same metrics, so all ranks stop together.

    Args:
        patience: evaluations, >= 1.
        min_delta: improvement that counts, in the metric's unit, >= 0.
        metric: its name with or without "eval_"; None: ``metric_for_best_model``.
        greater_is_better: the direction; None: see ``monitored.is_greater_better``.

    Raises:
        ValueError: ``patience`` or ``min_delta`` out of range; when training starts: no metric or no direction.
    """

    def __init__(
        self,
        patience: int = 3,
        min_delta: float = 0.0,
        metric: str | None = None,
        greater_is_better: bool | None = None,
    ):
        if patience < 1:
            raise ValueError(f"patience={patience} is out of range; allowed: a whole number >= 1")
        if not min_delta >= 0:
            raise ValueError(f"min_delta={min_delta} is out of range; allowed: a number >= 0")
        self.patience, self.min_delta = patience, min_delta
        self.metric, self.greater_is_better = metric, greater_is_better
        self.reference: float | None = None
        self.waited = 0
        self.stopped_at: int | None = None  # the step of the stop
        self._training = False

    def on_train_begin(self, args, state, control, **kwargs):
        is_greater_better(args, self.metric, self.greater_is_better)  # raises now rather than at the first evaluation
        if state.global_step == 0:
            self.reference, self.waited, self.stopped_at = None, 0, None
        self._training = True

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if not self._training:  # trainer.evaluate() between two runs is no part of the history
            return
        value = read_metric(metrics, metric_name(args, self.metric))
        greater = is_greater_better(args, self.metric, self.greater_is_better)
        if is_better(value, self.reference, greater, self.min_delta):
            self.reference, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.stopped_at = state.global_step
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False

    def state(self) -> dict:
        """What a checkpoint keeps."""
        arguments = ("patience", "min_delta", "metric", "greater_is_better")
        return {
            "args": {name: getattr(self, name) for name in arguments},
            "attributes": {"reference": self.reference, "waited": self.waited, "stopped_at": self.stopped_at},
        }
