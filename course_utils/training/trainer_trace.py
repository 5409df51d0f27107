"""Watch a Trainer at work: which of its methods runs when, recorded live as plain data (lesson 03).

``trace(trainer)`` gives the trainer, its callback handler, optimizer, scheduler and model a subclass each whose methods
read a stopwatch before and after the original. The objects keep their attributes and their results: nothing is copied,
no attribute is added (a scheduler's attributes would end up in its checkpoint), and leaving the context puts the
classes back.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer

# What is watched on which object: method name -> (name in the timeline, kind: the colour of its bar).
TRAINER_METHODS = {
    "train": ("train", "outer"),
    "get_batch_samples": ("get_batch_samples", "data"),
    "training_step": ("training_step", "outer"),
    "compute_loss": ("compute_loss", "forward"),
    "_clip_grad_norm": ("clip", "update"),
    "create_optimizer": ("create_optimizer", "setup"),
    "create_scheduler": ("create_scheduler", "setup"),
    "get_train_dataloader": ("get_train_dataloader", "setup"),
    "get_eval_dataloader": ("get_eval_dataloader", "setup"),
    "evaluate": ("evaluate", "outer"),
    "evaluation_loop": ("evaluation_loop", "outer"),
    "prediction_step": ("prediction_step", "forward"),
    "compute_metrics": ("compute_metrics", "metrics"),  # an attribute: the function that was given, or None
    "log": ("log", "logging"),
    "_save_checkpoint": ("save_checkpoint", "checkpoint"),
    "_load_best_model": ("load_best_model", "checkpoint"),
    "_load_from_checkpoint": ("load_from_checkpoint", "checkpoint"),
}
ACCELERATOR_METHODS = {"backward": ("backward", "backward")}
OPTIMIZER_METHODS = {"step": ("optimizer.step", "update")}
SCHEDULER_METHODS = {"step": ("scheduler.step", "update")}
MODEL_METHODS = {"zero_grad": ("zero_grad", "update")}


@dataclass(frozen=True)
class Call:
    """One call: ``start`` and ``seconds`` on the trace's own clock, ``depth`` 0 for a call from outside the trace.

    ``step`` is ``trainer.state.global_step`` when the call began: the number of finished optimizer steps.
    """

    name: str
    kind: str
    start: float
    seconds: float
    depth: int
    step: int


@dataclass
class Trace:
    """The calls of one traced run. ``calls`` is ordered by start; fill it with ``trace``."""

    calls: list[Call] = field(default_factory=list)

    def of_step(self, step: int) -> list[Call]:
        """Calls of optimizer step ``step`` (0: the first): from its ``get_batch_samples`` to the next step's."""
        starts = [call for call in self.calls if call.name == "get_batch_samples"]
        if not 0 <= step < len(starts):
            raise ValueError(f"step={step} was not traced; allowed: 0 to {len(starts) - 1}")
        first = starts[step].start
        last = starts[step + 1].start if step + 1 < len(starts) else float("inf")
        return [call for call in self.calls if first <= call.start < last]

    def inside(self, name: str, occurrence: int = 0) -> list[Call]:
        """The ``occurrence``-th call called ``name``, followed by everything that ran inside it."""
        found = [call for call in self.calls if call.name == name]
        if not 0 <= occurrence < len(found):
            raise ValueError(f"{name!r}, occurrence={occurrence}, was not traced; traced: {len(found)} such calls")
        outer = found[occurrence]
        end = outer.start + outer.seconds
        return [call for call in self.calls if outer.start <= call.start and call.start + call.seconds <= end]

    def seconds_in(self, name: str) -> float:
        """Total time of all calls called ``name``, what they call included."""
        return sum(call.seconds for call in self.calls if call.name == name)


def outline(calls: list[Call], indent: str = "    ") -> str:
    """The calls as an indented list without times, repeated neighbours folded: ``prediction_step  x4``."""
    if not calls:
        return ""
    top = min(call.depth for call in calls)
    blocks = _fold([(call.depth - top, call.name) for call in calls])
    return "\n".join(indent * depth + name + (f"  x{times}" if times > 1 else "") for depth, name, times in blocks)


def _fold(lines: list[tuple[int, str]]) -> list[tuple[int, str, int]]:
    """Fold runs of the same block: one line, or a pair of lines repeated (prediction_step and its callback)."""
    folded: list[tuple[int, str, int]] = []
    position = 0
    while position < len(lines):
        length, times = _repeats(lines, position)
        folded += [(depth, name, times) for depth, name in lines[position : position + length]]
        position += length * times
    return folded


def _repeats(lines: list[tuple[int, str]], position: int, longest: int = 4) -> tuple[int, int]:
    for length in range(1, longest + 1):
        block = lines[position : position + length]
        times = 1
        while lines[position + times * length : position + (times + 1) * length] == block:
            times += 1
        if times > 1:
            return length, times
    return 1, 1


@contextmanager
def trace(trainer: Trainer) -> Iterator[Trace]:
    """Record every watched method of ``trainer`` that runs inside the ``with`` block.

    Args:
        trainer: any Trainer (subclasses too: what is watched is the overriding method).

    Yields:
        A ``Trace``; its ``calls`` are complete and ordered once the block is left, also after an exception.

    Example:
        with trace(trainer) as recorded:
            trainer.train()
        print(outline(recorded.of_step(0)))
    """
    recorder = _Recorder(trainer)
    recorder.watch(trainer, TRAINER_METHODS)
    recorder.watch(trainer.accelerator, ACCELERATOR_METHODS)
    recorder.watch_callbacks(trainer.callback_handler)
    try:
        yield recorder.trace
    finally:
        recorder.stop()


class _Recorder:
    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.trace = Trace()
        self.depth = 0
        self.origin = time.perf_counter()
        self.original_classes: list[tuple[Any, type]] = []
        self.original_attributes: list[tuple[Any, str, Any]] = []

    def watch(self, obj: Any, methods: dict[str, tuple[str, str]]) -> None:
        """Give ``obj`` a subclass of its own class in which ``methods`` are timed."""
        cls = type(obj)
        for method in methods.keys() & vars(obj).keys():
            if not callable(vars(obj)[method]):
                continue
            # A scheduler puts a counting ``step`` on the optimizer object itself, which hides the class's.
            self.original_attributes.append((obj, method, vars(obj)[method]))
            setattr(obj, method, self.timed(vars(obj)[method], *methods[method]))
        timed = {
            method: self.timed(getattr(cls, method), *label)
            for method, label in methods.items()
            if hasattr(cls, method)
        }
        self.original_classes.append((obj, cls))
        # The same name: a model's class name is written into its config.json.
        obj.__class__ = type(cls.__name__, (cls,), {**timed, "__module__": cls.__module__, "__doc__": cls.__doc__})

    def timed(self, function: Callable, name: str, kind: str) -> Callable:
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            with self.call(name, kind):
                return function(*args, **kwargs)

        return wrapper

    @contextmanager
    def call(self, name: str, kind: str) -> Iterator[None]:
        depth, step, start = self.depth, self.trainer.state.global_step, time.perf_counter()
        self.depth += 1
        try:
            yield
        finally:
            self.depth = depth
            self.trace.calls.append(Call(name, kind, start - self.origin, time.perf_counter() - start, depth, step))

    def watch_callbacks(self, handler: Any) -> None:
        """Record each callback event under its own name; catch the optimizer as soon as it exists."""
        recorder, call_event = self, type(handler).call_event

        def timed_event(self, event, *args, **kwargs):
            if event == "on_train_begin":
                recorder.watch_run()
            with recorder.call(event, "callback"):
                return call_event(self, event, *args, **kwargs)

        cls = type(handler)
        self.original_classes.append((handler, cls))
        handler.__class__ = type(cls.__name__, (cls,), {"call_event": timed_event, "__module__": cls.__module__})

    def watch_run(self) -> None:
        """Watch what ``train`` creates: the optimizer, the scheduler and the (possibly wrapped) model."""
        self.watch(self.trainer.optimizer, OPTIMIZER_METHODS)
        self.watch(self.trainer.lr_scheduler, SCHEDULER_METHODS)
        self.watch(self.trainer.model_wrapped, MODEL_METHODS)

    def stop(self) -> None:
        """Put every class and attribute back and order the calls by their start."""
        for obj, name, value in self.original_attributes:
            setattr(obj, name, value)
        for obj, cls in reversed(self.original_classes):
            obj.__class__ = cls
        self.trace.calls.sort(key=lambda call: (call.start, call.depth))
