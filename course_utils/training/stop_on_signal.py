"""Leave a cluster politely: save and stop at the end of the step in which a signal arrived (lesson 15).

SLURM sends SIGUSR1 (``--signal``) or SIGTERM before it takes the machines away, Kubernetes and spot instances send
SIGTERM. Transformers' own ``enable_jit_checkpoint`` waits three seconds in each process and lets each decide alone:
ranks then stop at different steps and wait for each other for ever. Here all ranks decide together.

A launcher that is killed with SIGKILL tells its ranks nothing, and they would go on beside the next start: each looks
once a second whether its parent is still the one that started it. ``deepspeed`` is two processes, one above the other;
the upper one, which the user started, is looked at too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
GONE = "launcher gone"
_parents = {os.getpid(): os.getppid()}  # as this process begins; by process, as one may be forked
LOOK = 1.0  # seconds between two looks at the parent
GRACE = 60.0  # seconds to save and stop once it is gone; a rank may wait for one that is dead


class StopOnSignal(TrainerCallback):
    """Save a checkpoint and stop at the end of the current optimizer step once any rank got one of ``SIGNALS``.

    The handlers are installed when training begins and put back when it ends; a second signal changes nothing.
    A launcher that died counts as a signal; ranks that cannot stop within ``GRACE`` seconds then end with code 1.
    ``stopped_by`` is the signal's name afterwards (``GONE``, or "signal of another rank" where it came from elsewhere),
    else None.

    One number is all-reduced per step. The Trainer reads the loss after every step anyway (its check for NaN), so this
    does not add the first wait for the GPU.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.stopped_by: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only a note: saving in the middle of a step would save half of it, and other ranks are elsewhere.
        self.received = signal.Signals(number).name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else (Ray Train)
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        if _is_rank():
            self._ended.clear()
            parent = _parents.setdefault(os.getpid(), os.getppid())
            threading.Thread(target=self._watch_launcher, args=(parent,), daemon=True).start()

    def _watch_launcher(self, parent: int) -> None:
        if _wait_while_there(parent, self._ended):
            return
        self.received = GONE
        if not self._ended.wait(GRACE):
            with contextlib.suppress(OSError):  # the launcher's end of a pipe is closed
                print(f"error: the launcher is gone and the step did not end within {GRACE:g} s", file=sys.stderr)
            os._exit(1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if any_rank(self.received is not None, args.device):
            self.stopped_by = self.received or "signal of another rank"
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ends_with_launcher() -> Iterator[None]:
    """Around what comes before training, where nothing is to be saved: without its launcher a rank ends, with code 1.

    A model is loaded, or rows are tokenised, for minutes, and the folder is held meanwhile.
    """
    ended = threading.Event()

    def watch(parent: int) -> None:
        if _wait_while_there(parent, ended):
            return
        with contextlib.suppress(OSError):
            print("error: the launcher is gone; nothing was trained yet", file=sys.stderr)
        os._exit(1)

    if _is_rank():
        threading.Thread(target=watch, args=(_parents.setdefault(os.getpid(), os.getppid()),), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _is_rank() -> bool:
    """Whether a launcher started this process; a shell may end before its program."""
    return "LOCAL_RANK" in os.environ and "RANK" in os.environ


def _wait_while_there(parent: int, ended: threading.Event) -> bool:
    """False as soon as ``parent``, or DeepSpeed's process above it, is gone; True once ``ended`` is set."""
    above = launchers_above(parent)
    while os.getppid() == parent and all(map(_runs, above)):
        if ended.wait(LOOK):
            return True
    return False


def launchers_above(parent: int) -> list[psutil.Process]:
    """The process that a user started, where it started ``parent`` and that one the ranks: DeepSpeed's runner.

    No other: a shell, or an ssh session, may end before the program that it started.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(parent)
        if "deepspeed.launcher.launch" in process.cmdline() and (above := process.parent()) is not None:
            words = [os.path.basename(word) for word in above.cmdline()[:4]]  # python, its options, the program
            return [above] if {"deepspeed", "deepspeed.launcher.runner"} & set(words) else []
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if ``flag`` is true on at least one; every rank must call it."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return flag
    total = torch.tensor([float(flag)], device=device)
    distributed.all_reduce(total, op=distributed.ReduceOp.MAX)
    return bool(total.item())
