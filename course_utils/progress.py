"""How far the running code is, in one line: what a cell shows while it works (``teach.live``).

Nothing is kept unless somebody listens (``listen``): under papermill, nbval and in programs a report costs one ``if``.

Three sources, the best known one counts: a loop that reports its steps (``report``), any optimizer that steps (torch
calls a hook, so loops written on the page count too), and the ranks beside the notebook (``report_rank``).
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RANKS_FOLDER = "COURSE_PROGRESS_FOLDER"  # the environment variable that tells ranks where to write how far they are


def is_live() -> bool:
    """True in a kernel that JupyterLab or Jupyter Server started for a person; False under papermill and nbval."""
    return "JPY_SESSION_NAME" in os.environ


@dataclass
class Progress:
    """What is known of the code that runs since ``started`` (``time.monotonic``)."""

    started: float = field(default_factory=time.monotonic)
    optimizer_steps: int = 0
    step: int = 0  # of the loop that reports
    steps: int = 0  # it will take; 0: unknown
    first: tuple[int, float] | None = None  # the loop's first report: step, time
    loss: float | None = None
    tokens: int = 0  # since the first report

    def line(self, now: float, ranks: Mapping[str, int] | None = None) -> str:
        """``12 s · step 130 of 500 · loss 1.23 · 5,400 tokens/s · about 34 s left``; only what is known."""
        parts = [f"{now - self.started:.0f} s"]
        if self.first is not None:
            parts.append(f"step {self.step} of {self.steps}")
            parts += [] if self.loss is None else [f"loss {self.loss:.3g}"]
            done, seconds = self.step - self.first[0], now - self.first[1]
            if done > 0 and seconds > 1:
                parts += [f"{self.tokens / seconds:,.0f} tokens/s"] if self.tokens else []
                left = (self.steps - self.step) * seconds / done
                parts += [f"about {left:.0f} s left"] if left >= 1 else []
        elif self.optimizer_steps:
            parts.append(f"step {self.optimizer_steps}")
        parts += [f"rank {rank}: step {count}" for rank, count in sorted((ranks or {}).items())]
        return " · ".join(parts)


_now: Progress | None = None  # None: nobody listens


def listen() -> Progress:
    """Forget what was and keep what is reported from now on."""
    global _now
    _count_optimizer_steps()
    _now = Progress()
    return _now


def report(step: int, steps: int, loss: float | None = None, batches: Iterable[Mapping[str, Any]] = ()) -> None:
    """A loop says that it has taken ``step`` of ``steps`` optimizer steps.

    Args:
        loss: of this step.
        batches: its micro-batches; their tokens are counted, padding left out where there is an attention mask.
    """
    if _now is None:
        return
    if _now.first is None or step <= _now.step:  # the first, or another run in the same cell
        _now.first, _now.tokens = (step, time.monotonic()), 0
    else:
        _now.tokens += sum(_tokens(batch) for batch in batches)
    _now.step, _now.steps, _now.loss = step, steps, loss


def _tokens(batch: Mapping[str, Any]) -> int:
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if mask is not None and mask.shape == getattr(ids, "shape", None):
        return int(mask.sum())
    return ids.numel() if ids is not None else 0


@functools.cache
def _count_optimizer_steps() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def count(*_) -> None:
        if _now is not None:
            _now.optimizer_steps += 1

    register_optimizer_step_post_hook(count)


def trainer_callbacks() -> list:
    """For a Trainer without a table of its own: a callback that reports; none where nobody listens."""
    if _now is None:
        return []
    from transformers import TrainerCallback

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
            report(state.global_step, state.max_steps, loss)

    return [Report()]


def report_rank(every: float = 0.5) -> None:
    """On a rank: write the number of this process's optimizer steps into the folder that the caller named, if any."""
    folder = os.environ.get(RANKS_FOLDER)
    if not folder:
        return
    from torch.optim.optimizer import register_optimizer_step_post_hook

    file, count, written = Path(folder) / f"{os.environ['RANK']}.json", 0, 0.0

    def write(*_) -> None:
        nonlocal count, written
        count += 1
        if time.monotonic() - written > every:
            written = time.monotonic()
            unfinished = file.with_suffix(f".{os.getpid()}.tmp")
            unfinished.write_text(json.dumps(count))
            unfinished.replace(file)

    register_optimizer_step_post_hook(write)


def steps_of_ranks(folder: Path, since: float) -> dict[str, int]:
    """Optimizer steps of each rank that wrote one after ``since`` (``time.time``)."""
    found = {}
    for file in folder.glob("*.json"):
        try:
            if file.stat().st_mtime >= since:
                found[file.stem] = json.loads(file.read_text())
        except OSError:  # its rank ended
            continue
    return found
