"""Tokens per second and model FLOPs utilisation of a run, evaluation and saving not counted (lesson 05)."""

from __future__ import annotations

import re
import time

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from course_utils.gpus import GPUS


class Throughput(TrainerCallback, ExportableState):
    """Useful tokens per second and MFU between logs, in the log as ``tokens_per_second`` and ``mfu``.

    A callback does not see the batch. It reads ``state.num_input_tokens_seen``, which the Trainer counts over all
    ranks with ``include_num_input_tokens_seen="non_padding"`` ("all" counts padding too). The clock is read in
    ``on_log``, where the Trainer has just waited for the device; evaluation and saving are taken out.

    MFU = tokens per second x FLOPs per token / peak of all devices (Chowdhery et al. 2022, "PaLM", appendix B).

    Args:
        flops_per_token: of one training step; ``course_utils.models.flops``. None: no MFU.
        peak: FLOP/s of one device; None: ``device_peak()`` where it is known, else no MFU.

    Raises:
        ValueError: a number below or equal 0; when training starts: the Trainer does not count tokens.
    """

    def __init__(self, flops_per_token: float | None = None, peak: float | None = None):
        for name, value in {"flops_per_token": flops_per_token, "peak": peak}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} is out of range; allowed: a number > 0")
        self.flops_per_token, self.peak = flops_per_token, peak
        self.tokens, self.seconds = 0, 0.0  # of all training, runs before a resume included
        self._mark: float | None = None  # since when the clock runs
        self._left = 0.0  # when training was last seen at work
        self._window = 0.0  # seconds since the last log
        self._tokens_seen = 0
        self._away = False  # an evaluation or a save happened since _left

    def on_train_begin(self, args, state, control, **kwargs):
        if args.include_num_input_tokens_seen == "no":
            raise ValueError(
                "include_num_input_tokens_seen='no': tokens are not counted; allowed: 'non_padding', 'all'"
            )
        if state.global_step == 0:
            self.tokens, self.seconds = 0, 0.0
        self._mark, self._window, self._away = None, 0.0, False
        self._tokens_seen = state.num_input_tokens_seen

    def on_step_begin(self, args, state, control, **kwargs):
        if self._mark is None or self._away:
            if self._mark is not None:
                self._window += self._left - self._mark
            self._mark, self._away = time.perf_counter(), False

    def on_step_end(self, args, state, control, **kwargs):
        if (control.should_evaluate or control.should_save) and torch.cuda.is_available():
            torch.cuda.synchronize()  # only before a pause: this step's work belongs to training
        self._left = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}) or self._mark is None:
            return
        self._left = time.perf_counter()
        seconds = self._window + self._left - self._mark
        tokens = state.num_input_tokens_seen - self._tokens_seen
        self._mark, self._window, self._tokens_seen = self._left, 0.0, state.num_input_tokens_seen
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        entry = {"tokens_per_second": tokens / seconds}
        if utilisation := self.utilisation(tokens / seconds, args.world_size):
            entry["mfu"] = utilisation
        logs.update(entry)
        state.log_history[-1].update(entry)

    def on_evaluate(self, args, state, control, **kwargs):
        self._away = True

    def on_save(self, args, state, control, **kwargs):
        self._away = True

    def utilisation(self, tokens_per_second: float, devices: int = 1) -> float | None:
        """Share of the devices' peak, or None where FLOPs or peak are not known."""
        peak = self.peak or device_peak()
        return self.flops_per_token and peak and tokens_per_second * self.flops_per_token / (peak * devices)

    @property
    def tokens_per_second(self) -> float:
        """Of the whole run, up to the last log."""
        return self.tokens / self.seconds if self.seconds else float("nan")

    def state(self) -> dict:
        """What a checkpoint keeps: totals up to the last log."""
        return {
            "args": {"flops_per_token": self.flops_per_token, "peak": self.peak},
            "attributes": {"tokens": self.tokens, "seconds": self.seconds},
        }


def device_peak(name: str | None = None, half: bool = True) -> float | None:
    """FLOP/s of matrix multiplications of a GPU that ``course_utils.gpus`` knows, by torch's name for it.

    Args:
        name: for example "NVIDIA H100 80GB HBM3"; None: this process's GPU.
        half: 16-bit arithmetic; False: fp32.

    Returns:
        None for a CPU or an unknown GPU: measure with ``matmul_peak``.
    """
    if name is None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    for key, gpu in GPUS.items():
        if re.search(rf"\b{key.split('-')[0]}\b", name):
            return 1e12 * (gpu.peak if half else gpu.peak_fp32)
    return None


def matmul_peak(size: int = 1024, rounds: int = 5, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the fastest of ``rounds`` square matrix multiplications: what this machine can do at best."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
