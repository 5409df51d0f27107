"""Solutions of lesson 05's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

import math

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

solution_1 = {
    "on_step_end": 20,
    "on_substep_end": 40,  # two of three micro-batches
    "on_log": 8,  # 4 of training, 3 of evaluations, 1 at the end
    "on_evaluate": 3,  # steps 8, 16, and the last, 20
    "on_save": 2,
}


class solution_2(TrainerCallback):
    """Freeze after the optimizer was built, and decide anew before each step."""

    def __init__(self, prefix, step):
        self.prefix, self.step = prefix, step

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.freeze(state, model)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.freeze(state, model)

    def freeze(self, state, model):
        for name, parameter in model.named_parameters():
            if name.startswith(self.prefix):
                parameter.requires_grad = state.global_step >= self.step


class solution_3(TrainerCallback):
    """The reference moves only when a value beats it by more than min_delta."""

    def __init__(self, patience, min_delta):
        self.patience, self.min_delta = patience, min_delta
        self.reference, self.waited = None, 0

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        value = metrics["eval_score"]
        is_number = not math.isnan(value)
        if is_number and (self.reference is None or value > self.reference + self.min_delta):
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            control.should_training_stop = True


solution_4 = {
    "eval_strategy": "steps",
    "eval_steps": 50,
    "metric_for_best_model": "perplexity",
    "greater_is_better": False,  # else it would be maximised
    "save_strategy": "best",
    "save_total_limit": 1,
}


class solution_5(TrainerCallback):
    """The value of this evaluation, on every rank, into the control that was given."""

    def __init__(self, target):
        self.target = target

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if metrics["eval_macro_f1"] >= self.target:
            control.should_training_stop = True


class solution_6(TrainerCallback, ExportableState):
    """Counts spikes of the logged loss; everything it knows is in state()."""

    def __init__(self, limit, factor):
        self.limit, self.factor = limit, factor
        self.lowest, self.spikes = None, 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        loss = logs["loss"]
        if math.isnan(loss) or (self.lowest is not None and loss > self.factor * self.lowest):
            self.spikes += 1
        elif self.lowest is None or loss < self.lowest:
            self.lowest = loss
        if self.spikes >= self.limit:
            control.should_training_stop = True

    def state(self):
        return {
            "args": {"limit": self.limit, "factor": self.factor},
            "attributes": {"lowest": self.lowest, "spikes": self.spikes},
        }
