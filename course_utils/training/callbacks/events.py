"""What happened, in order: a callback that notes every event with the flags of that moment (lesson 05)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import TrainerCallback

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_prediction_step",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_epoch_end",
    "on_train_end",
    "on_push_begin",
)
FLAGS = ("should_log", "should_evaluate", "should_save", "should_epoch_stop", "should_training_stop")


@dataclass(frozen=True)
class Event:
    """One event: its name, the finished optimizer steps, the flags that were set, the best metric known then."""

    name: str
    step: int
    flags: tuple[str, ...]
    best_metric: float | None


class EventRecorder(TrainerCallback):
    """Every event of a run in ``events``, oldest first.

    Callbacks are called in the order of the list; the Trainer's own, which sets the flags, comes first. So a recorder
    given to the constructor sees the flags of this moment.
    """

    def __init__(self):
        self.events: list[Event] = []

    def of_step(self, step: int) -> list[Event]:
        """Events of optimizer step ``step`` (1: the first): from ``on_step_begin`` to before the next one's."""
        begins = [i for i, event in enumerate(self.events) if event.name == "on_step_begin"]
        places = [i for i in begins if self.events[i].step == step - 1]
        if not places:
            raise ValueError(f"step={step} was not recorded; allowed: 1 to {len(begins)}")
        later = [i for i in begins if i > places[0]]
        return self.events[places[0] : later[0] if later else len(self.events)]

    def counts(self) -> dict[str, int]:
        """How often each event happened, in the order of ``EVENTS``; events that did not happen are left out."""
        counted = Counter(event.name for event in self.events)
        return {name: counted[name] for name in EVENTS if counted[name]}


def listing(events: Sequence[Event]) -> str:
    """A line an event, repeated ones folded: ``on_prediction_step x4``; flags that are set stand behind."""
    lines: list[tuple[str, int]] = []
    for event in events:
        flags = f"  [{', '.join(event.flags)}]" if event.flags else ""
        line = f"step {event.step:>3}  {event.name:<22}{flags}".rstrip()
        if lines and lines[-1][0] == line:
            lines[-1] = (line, lines[-1][1] + 1)
        else:
            lines.append((line, 1))
    return "\n".join(line + (f"  x{times}" if times > 1 else "") for line, times in lines)


def _recorder(name: str):
    def method(self, args, state, control, **kwargs):
        flags = tuple(flag for flag in FLAGS if getattr(control, flag))
        self.events.append(Event(name, state.global_step, flags, state.best_metric))

    method.__doc__ = f"Note ``{name}``."
    return method


for _name in EVENTS:
    setattr(EventRecorder, _name, _recorder(_name))
