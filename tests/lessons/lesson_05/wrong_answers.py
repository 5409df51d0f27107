"""Wrong answers to lesson 05's exercises, each with words of the hint it must get."""

import dataclasses
import math

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from course_utils.lessons.lesson_05.solutions import (
    solution_1,
    solution_2,
    solution_3,
    solution_4,
    solution_5,
    solution_6,
)


class FrozenTooEarly(solution_2):
    def on_init_end(self, args, state, control, model=None, **kwargs):
        self.freeze(state, model)

    def on_train_begin(self, *args, **kwargs):
        pass


class OneExactStep(solution_2):
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if name.startswith(self.prefix) and self.step > 0:
                parameter.requires_grad = False

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            for parameter in model.parameters():
                parameter.requires_grad = True


class OneStepLate(solution_2):
    def freeze(self, state, model):
        for name, parameter in model.named_parameters():
            if name.startswith(self.prefix):
                parameter.requires_grad = state.global_step > self.step


class EveryParameter(solution_2):
    def freeze(self, state, model):
        for name, parameter in model.named_parameters():
            if not name.endswith("nothing"):
                parameter.requires_grad = state.global_step >= self.step or name == "second.bias"


class NeverFrozen(TrainerCallback):
    def __init__(self, prefix, step):
        self.prefix = prefix


class MovingBest(solution_3):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        value = metrics["eval_score"]
        gained = self.reference is None or value > self.reference + self.min_delta
        self.reference = value if self.reference is None else max(self.reference, value)
        self.waited = 0 if gained else self.waited + 1
        control.should_training_stop = self.waited >= self.patience


class TieIsAGain(solution_3):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        value = metrics["eval_score"]
        if self.reference is None or value >= self.reference + self.min_delta:
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        control.should_training_stop = self.waited >= self.patience


class NanAsReference(solution_3):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        value = metrics["eval_score"]
        if self.reference is None or value > self.reference + self.min_delta:
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        control.should_training_stop = self.waited >= self.patience


class WaitsForANumber(solution_3):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if self.reference is not None or not math.isnan(metrics["eval_score"]):
            super().on_evaluate(args, state, control, metrics)


class StartsAtZero(solution_3):
    def __init__(self, patience, min_delta):
        super().__init__(patience, min_delta)
        self.reference = 0.0


class NeverReset(solution_3):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        waited = self.waited
        super().on_evaluate(args, state, control, metrics)
        self.waited = max(self.waited, waited)


class OnRankZero(solution_5):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if state.is_world_process_zero:
            super().on_evaluate(args, state, control, metrics)


class ReadsBest(solution_5):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if (state.best_metric or 0) >= self.target:
            control.should_training_stop = True


class LosesTheCopy(solution_5):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if metrics["eval_macro_f1"] >= self.target:
            control = dataclasses.replace(control, should_training_stop=True)


class EitherValue(solution_5):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if max(metrics["eval_macro_f1"], state.best_metric or 0) >= self.target:
            control.should_training_stop = True


class GuardWithoutExport(TrainerCallback):
    def __init__(self, limit, factor):
        solution_6.__init__(self, limit, factor)

    on_log = solution_6.on_log


class GuardForgetsLowest(solution_6):
    def state(self):
        return {"args": {"limit": self.limit, "factor": self.factor}, "attributes": {"spikes": self.spikes}}


class GuardWithoutArguments(solution_6):
    def state(self):
        return {"args": {}, "attributes": {"lowest": self.lowest, "spikes": self.spikes}}


class GuardWithPrevious(solution_6):
    """Compares with the loss before, not with the lowest."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            loss = logs["loss"]
            self.spikes += math.isnan(loss) or (self.lowest is not None and loss > self.factor * self.lowest)
            self.lowest = loss
            control.should_training_stop = self.spikes >= self.limit


class GuardBlindToNan(solution_6):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs and not math.isnan(logs["loss"]):
            super().on_log(args, state, control, logs)


class GuardOnRankZero(solution_6):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            super().on_log(args, state, control, logs)


class GuardReadsEveryLog(solution_6):
    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, {"loss": logs["loss"]})


class GuardAtTheFactor(solution_6):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            super().on_log(args, state, control, {"loss": logs["loss"] * (1 + 1e-9 * (self.lowest is not None))})


class NotACallback(ExportableState):
    def __init__(self, *arguments):
        self.arguments = arguments


WRONG = {
    "05.1": [
        (solution_1 | {"on_evaluate": 2}, "also evaluates after the last step"),
        (solution_1 | {"on_log": 4}, "Every evaluation is logged too"),
        (solution_1 | {"on_log": 7}, "the run's totals"),
        (solution_1 | {"on_substep_end": 60}, "The last micro-batch"),
        (solution_1 | {"on_save": "two"}, "on_save fires"),
        ({}, "Give all five counts"),
    ],
    "05.2": [
        (FrozenTooEarly, "built the optimizer"),
        (OneStepLate, "counts finished steps"),
        (OneExactStep, "frozen again"),
        (NeverFrozen, "train from the first step"),
        (EveryParameter, "must train in every step"),
        (NotACallback, "Derive your class from TrainerCallback"),
        (lambda: 5, "raised an exception"),
    ],
    "05.3": [
        (MovingBest, "Small gains add up"),
        (TieIsAGain, "A tie is no gain"),
        (NanAsReference, "NaN never is a gain"),
        (StartsAtZero, "0 is no start value"),
        (WaitsForANumber, "before the first number"),
        (NeverReset, "sets the count back"),
        (NotACallback, "Derive your class from TrainerCallback"),
    ],
    "05.4": [
        ({key: solution_4[key] for key in solution_4 if key != "greater_is_better"}, "Say the direction"),
        (solution_4 | {"save_strategy": "steps", "save_steps": 50}, "also keeps the latest"),
        ({key: solution_4[key] for key in solution_4 if key != "save_total_limit"}, "until a limit"),
        (solution_4 | {"evaluation_strategy": "steps"}, "raised an exception"),
        (solution_4 | {"metric_for_best_model": "loss"}, "eval_perplexity"),
        ({}, "Without an evaluation"),
        (7, "Give a dict"),
    ],
    "05.5": [
        (OnRankZero, "decide on every rank"),
        (ReadsBest, "still the one before"),
        (LosesTheCopy, "Nothing reaches the Trainer"),
        (EitherValue, "own value counts"),
        (NotACallback, "Derive your class from TrainerCallback"),
    ],
    "05.6": [
        (GuardWithoutExport, "ExportableState"),
        (GuardForgetsLowest, "not in state()"),
        (GuardWithoutArguments, "called with state()['args']"),
        (GuardWithPrevious, "nor the loss before it"),
        (GuardBlindToNan, "NaN is a spike"),
        (GuardOnRankZero, "steer on every rank"),
        (GuardReadsEveryLog, "raised an exception"),
        (GuardAtTheFactor, "it must be above"),
    ],
}
