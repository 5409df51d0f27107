"""What lesson 09 measures: packed against apart, a marked step, memory by precision, scalers, the stall, the trade."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import course_utils
from course_utils.data.batches import Batch
from course_utils.data.packing import PackedCollator, pack_documents
from course_utils.training.grad_scaler import GradScaler
from course_utils.training.low_precision import MasterWeights, StochasticRounding
from course_utils.training.saved_tensors import SavedTensors


def recorded(file: str = "ladder.json") -> dict[str, Any] | None:
    """What ``bench/bench_ladder.py`` measured on the machine that the file names; None if there is no such file."""
    path = (Path(course_utils.__file__).parents[1] / "bench" / "results" / file).with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else None


def gradients_of(model: nn.Module) -> Tensor:
    """All gradients in one vector; the model's are dropped."""
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def apart(model: nn.Module, documents: Sequence[Sequence[int]]) -> tuple[float, Tensor]:
    """Loss and gradient of ``documents``, each alone in a forward pass, mean over all targets."""
    targets = sum(len(document) - 1 for document in documents)
    total = 0.0
    for document in documents:
        ids = torch.tensor([document])
        loss = model(input_ids=ids, labels=ids).loss * ((len(document) - 1) / targets)
        loss.backward()
        total += loss.item()
    return total, gradients_of(model)


def packed(
    model: nn.Module, documents: Sequence[Sequence[int]], row_length: int, **change: Any
) -> tuple[float, Tensor]:
    """The same, packed into rows; ``change`` replaces or removes (None) parts of the batch."""
    batch = PackedCollator()(pack_documents(documents, row_length)) | change
    loss = model(**{name: value for name, value in batch.items() if value is not None}).loss
    loss.backward()
    return loss.item(), gradients_of(model)


def distance(found: tuple[float, Tensor], right: tuple[float, Tensor]) -> float:
    """The larger of the two relative differences, of the losses and of the gradients."""
    of_loss = abs(found[0] - right[0]) / abs(right[0])
    return max(of_loss, ((found[1] - right[1]).norm() / right[1].norm()).item())


def marked_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One optimizer step whose parts carry names in a trace."""
    from torch.profiler import record_function

    with record_function("forward"):
        loss = model(**batch).loss
    with record_function("backward"):
        loss.backward()
    with record_function("clip"):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with record_function("optimizer"):
        optimizer.step()
        optimizer.zero_grad()


def logit_gradients(model: nn.Module, batch: Batch) -> Tensor:
    """Gradient of the mean loss with respect to every logit that has one, (number,)."""
    outputs = model(**batch)
    outputs.logits.retain_grad()
    outputs.loss.backward()
    model.zero_grad()
    found = outputs.logits.grad.flatten()
    return found[found != 0]


class Kept(NamedTuple):
    """Bytes kept for the backward pass: measured, predicted, and the part of both that is the logits."""

    measured: int
    predicted: int
    logits: int


def kept(model: nn.Module, batch: Batch, bf16: bool = False, checkpointing: bool = False) -> Kept:
    """What autograd keeps of one forward pass, and what lesson 15's arithmetic says from the model's sizes alone."""
    from course_utils.launch.planner import activations
    from course_utils.launch.spec import Spec
    from course_utils.models.configs import shape_of_config

    rows, length = batch["input_ids"].shape
    shape = shape_of_config(model.config)
    precision = "bf16" if bf16 else "fp32"
    spec = Spec(
        **{"strategy": "ddp", "gpus_per_node": 1, "model": shape, "precision": precision},
        **{"micro_batch": rows, "sequence_length": length, "checkpointing": checkpointing},
    )
    logits = rows * length * shape.vocab_size * 4  # log_softmax keeps its fp32 result
    with checkpointed(model, checkpointing), SavedTensors(model, batch.values()) as saved:
        loss_of(model, batch, bf16)
    return Kept(saved.bytes, activations.stored(spec, shape) + logits, logits)


class checkpointed:
    """Within the block ``model`` recomputes its layers' activations, if ``on``."""

    def __init__(self, model: nn.Module, on: bool = True, **options: Any):
        self.model, self.on, self.options = model, on, options

    def __enter__(self) -> nn.Module:
        if self.on:
            self.model.activation_checkpointing_enable({"use_reentrant": False} | self.options)
        return self.model

    def __exit__(self, *error: Any) -> None:
        if self.on:
            self.model.activation_checkpointing_disable()


def loss_of(model: nn.Module, batch: Batch, bf16: bool = False) -> Tensor:
    """The model's loss, under bf16 autocast if asked."""
    with torch.autocast(batch["input_ids"].device.type, dtype=torch.bfloat16, enabled=bf16):
        return model(**batch).loss


class ScalerRun(NamedTuple):
    """What a scaler did: the factor after each step, whether the step was skipped, the weights at the end."""

    factors: list[float]
    skipped: list[bool]
    weights: Tensor


def scaler_run(make: Callable[..., Any], steps: int = 40, init_scale: float = 2.0**26, interval: int = 6) -> ScalerRun:
    """A small network trained in fp16 with a scaler that starts far too high: it overflows, backs off and grows.

    Args:
        make: ``GradScaler`` of the course, or torch's with its device given.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 8, generator=generator), torch.randn(64, 1, generator=generator)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    scaler = make(init_scale=init_scale, growth_interval=interval)
    factors, skipped = [], []
    for _ in range(steps):
        before = net[0].weight.detach().clone()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.mse_loss(net(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        factors.append(scaler.factor if isinstance(scaler, GradScaler) else scaler.get_scale())
        skipped.append(bool((net[0].weight == before).all()))
    return ScalerRun(factors, skipped, torch.cat([p.detach().flatten() for p in net.parameters()]))


WAYS = ("fp32 weights", "bf16 weights", "bf16, fp32 master copy", "bf16, stochastic rounding")


def small_steps(way: str, seed: int, steps: int = 300, lr: float = 2e-3) -> tuple[list[float], float]:
    """Fine-tune 64 mostly large weights by a small amount: the loss of each step, and the share of weights that moved.

    A linear layer whose weights (standard deviation 2) are 0.3 away from the best ones; Adam moves each by about ``lr``
    a step at most.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1024, 64, generator=generator)
    best = 2 * torch.randn(1, 64, generator=generator)
    start = best + 0.3 * torch.randn(1, 64, generator=generator).sign()
    net = nn.Linear(64, 1, bias=False)
    net.weight.data = start.clone()

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(parameters), lr=lr, foreach=False)

    if way != WAYS[0]:
        net.to(torch.bfloat16)
    start = net.weight.detach().clone()
    kind = {WAYS[2]: MasterWeights, WAYS[3]: StochasticRounding}.get(way)
    optimizer = kind(net.parameters(), adam) if kind else adam(net.parameters())
    losses = []
    for step in range(steps):
        rows = x[(step * 64) % 1024 :][:64]
        loss = F.mse_loss(F.linear(rows, net.weight.float()), rows @ best.T)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, (net.weight != start).float().mean().item()


class Division(NamedTuple):
    """A step of fixed rows in micro-batches: rows of each, how many, bytes kept at most, CPU seconds of the step."""

    micro_batch: int
    accumulation: int
    bytes: int
    seconds: float


def divisions(model: nn.Module, batch: Batch, sizes: Sequence[int], rounds: int = 3) -> list[Division]:
    """The same rows in micro-batches of each size: memory counted, time as a median over interleaved rounds."""
    rows = len(batch["input_ids"])
    seconds: dict[int, list[float]] = {size: [] for size in sizes}

    def parts(size: int) -> list[Batch]:
        return [{name: value[at : at + size] for name, value in batch.items()} for at in range(0, rows, size)]

    for number in range(rounds + 1):
        for size in sizes:
            began = time.process_time()
            for part in parts(size):
                (loss_of(model, part) * (size / rows)).backward()
            model.zero_grad()
            if number:
                seconds[size].append(time.process_time() - began)
    found = []
    for size in sizes:
        with SavedTensors(model, batch.values()) as saved:
            loss_of(model, parts(size)[0])
        found.append(Division(size, rows // size, saved.bytes, median(seconds[size])))
    return found


def matmul_rate(size: int = 768, dtype: torch.dtype = torch.float32, repeats: int = 7) -> float:
    """The best FLOP/s of a square matrix multiplication on this machine's CPU, in CPU time."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        a @ b
        best = min(best, time.process_time() - began)
    return 2 * size**3 / best


def step_seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Median CPU seconds of a call, after one that does not count."""
    function()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        found.append(time.process_time() - began)
    return median(found)


def next_words(model: nn.Module, tokenizer: Any, text: str, count: int = 3) -> Mapping[str, float]:
    """The tokens that the model thinks likeliest after ``text``, with their probabilities."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        chances = model(input_ids=ids).logits[0, -1].float().softmax(-1)
    top = chances.topk(count)
    return {tokenizer.decode([token]): p for token, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
