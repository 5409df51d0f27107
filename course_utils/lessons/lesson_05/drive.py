"""How lesson 05's checkers try a callback: single events as the Trainer sends them, a checkpoint's way, a tiny run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from course_utils.teach.exercise import Wrong, ask

if TYPE_CHECKING:
    from transformers import Trainer
    from transformers.trainer_callback import TrainerControl


def control_after(
    callback: Any, event: str, given: str, rank: int = 0, step: int = 1, more: dict | None = None, **state: Any
) -> TrainerControl:
    """The control that the Trainer has after ``callback`` got ``event``: the one returned, or the one it was given.

    Raises:
        Wrong: it is no callback, or raised an exception.
    """
    from transformers import TrainerCallback
    from transformers.trainer_callback import TrainerControl, TrainerState

    if not isinstance(callback, TrainerCallback):
        got = type(callback).__name__
        raise Wrong(given=given, expected="a TrainerCallback", got=got, hint="Derive your class from TrainerCallback.")
    control = TrainerControl()
    now = TrainerState(global_step=step, is_world_process_zero=rank == 0, is_local_process_zero=rank == 0, **state)
    returned = []

    def call() -> bool:
        returned.append(getattr(callback, event)(None, now, control, **(more or {})))
        return True

    ask(call, given=f"{given}: {event}")
    result = returned[0] if returned[0] is not None else control
    if not isinstance(result, TrainerControl):
        got = type(result).__name__
        raise Wrong(given=given, expected="control or None", got=got, hint="An event returns control, or nothing.")
    return result


def at(number: int | None) -> str:
    """In words: the number of the event after which a run ended."""
    return "no stop" if number is None else f"a stop at the {number}. of them"


def stop_of(callback: Any, events: Sequence[tuple[str, dict]], given: str, rank: int = 0, **state: Any) -> int | None:
    """Number of the event after which the run ends, 1 the first; None: it does not."""
    for number, (event, more) in enumerate(events, 1):
        control = control_after(callback, event, given, rank=rank, step=number, more=more, **state)
        if control.should_training_stop:
            return number
    return None


def through_a_checkpoint(callback: Any, given: str) -> Any:
    """The callback as a resume makes it anew from what a checkpoint's JSON holds.

    Raises:
        Wrong: not exportable, not JSON, or the constructor does not take what ``state()`` says.
    """
    from transformers.trainer_callback import ExportableState

    if not isinstance(callback, ExportableState):
        hint = "Derive your class from ExportableState too: the Trainer saves the state of such callbacks only."
        raise Wrong(given=given, expected="an ExportableState", got=type(callback).__name__, hint=hint)
    saved = ask(callback.state, given=f"{given}: state()")
    if not isinstance(saved, dict) or not {"args", "attributes"} <= set(saved):
        hint = "state() returns {'args': {...}, 'attributes': {...}}."
        raise Wrong(given=given, expected="a dict with args and attributes", got=repr(saved)[:80], hint=hint)
    try:
        read = json.loads(json.dumps(saved))
        made = type(callback)(**read["args"])
        for name, value in read["attributes"].items():
            setattr(made, name, value)
    except TypeError as error:
        hint = "The constructor is called with state()['args'], read back from JSON: give it all its arguments by name."
        raise Wrong(
            given=given, expected="a callback made from state()", got=f"TypeError: {error}", hint=hint
        ) from None
    return made


def tiny_trainer(folder: str, callbacks: list, **settings: Any) -> Trainer:
    """A Trainer of two linear layers, ``first`` and ``second``: six steps take a tenth of a second."""
    import torch
    from torch import nn

    from course_utils.training.settings import quiet_trainer

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, labels=None):
            logits = self.second(self.first(x).tanh())
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        model = Two()
        rows = [{"x": torch.randn(4), "labels": torch.tensor(number % 2)} for number in range(16)]
    finally:
        torch.random.set_rng_state(state)
    options = {"per_device_train_batch_size": 4, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    options |= {"use_cpu": True, "max_steps": 6} | settings
    return quiet_trainer(model, folder, rows, rows[:4], callbacks=callbacks, **options)
