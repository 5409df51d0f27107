"""Cheap trainings that lesson 01 compares: five update rules on word vectors, a tiny encoder without one technique.

``RATES`` and ``PEAK`` are the best of those tried, by validation loss with seeds that the lesson does not use:
``bench/bench_rates.py``, recorded in ``bench/results/rates.json``. The three rules that divide by the root share the
rate that is best on average; at the next higher one the RMS step diverged with one of the lesson's three seeds.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import course_utils
from course_utils.data.batches import Batch, ShuffledBatches
from course_utils.lessons.lesson_01 import planted
from course_utils.models import load_classifier
from course_utils.training.evaluation import evaluate
from course_utils.training.optim import ForeachAdamW, parameter_groups
from course_utils.training.paired import paired_interval
from course_utils.training.schedules import make_scheduler

RATES = {"SGD": 1.0, "momentum": 1.0, "RMS step": 0.03, "Adam": 0.03, "AdamW": 0.03}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}  # the encoder of the second comparison
PEAK = 1e-2  # its learning rate


def _sgd(g: Tensor, state: dict) -> Tensor:
    return g


def _momentum(g: Tensor, state: dict) -> Tensor:
    state["m"] = 0.9 * state["m"] + 0.1 * g
    return state["m"]


def _rms_step(g: Tensor, state: dict) -> Tensor:
    state["v"] = 0.999 * state["v"] + 0.001 * g * g
    return g / ((state["v"] / (1 - 0.999 ** state["t"])).sqrt() + 1e-8)


def adam(g: Tensor, state: dict) -> Tensor:
    """Adam's direction (Kingma & Ba 2015, Algorithm 1) for gradient ``g``; changes ``state``'s m and v."""
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.999 * state["v"] + 0.001 * g * g
    m_hat, v_hat = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    return m_hat / (v_hat.sqrt() + 1e-8)


RULES = {"SGD": _sgd, "momentum": _momentum, "RMS step": _rms_step, "Adam": adam, "AdamW": adam}  # as the lesson's


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, which would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class WordVectors(nn.Module):
    """A vector per token, their mean, a norm and a linear layer: the cheapest model with rare and frequent rows.

    Args:
        vocab_size: rows V of the embedding.
        num_labels: classes C.
        width: numbers per vector.
    """

    def __init__(self, vocab_size: int, num_labels: int, width: int = 32):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(vocab_size, width), nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``input_ids`` and ``attention_mask`` (B, T) -> logits (B, C)."""
        real = attention_mask.unsqueeze(-1)
        mean = (self.embedding(input_ids) * real).sum(1) / real.sum(1)
        return self.classifier(self.norm(mean))

    def loss(self, batch: Batch, reduction: str) -> Tensor:
        """Cross entropy of a batch, its rows' mean or sum."""
        logits = self(batch["input_ids"], batch["attention_mask"])
        return nn.functional.cross_entropy(logits, batch["labels"], reduction=reduction)


class Race:
    """Update rules on ``WordVectors``, three seeds each; ``curves`` and ``reached`` fill up run by run.

    Args:
        rows: training rows with ``input_ids``, ``attention_mask``, ``labels``; 32 of them a step.
        collate: list of rows -> batch.
        validation: batches on which the validation loss is computed.
        num_labels, vocab_size: sizes of the model.
        seeds: of the weights and of the order of the rows.
        steps: of each run.
    """

    def __init__(
        self,
        rows: Sequence[dict],
        collate: Callable[[list], Batch],
        validation: Sequence[Batch],
        num_labels: int,
        vocab_size: int,
        seeds: Sequence[int] = (0, 1, 2),
        steps: int = 150,
    ):
        self.rows, self.collate, self.validation = rows, collate, validation
        self.sizes, self.seeds, self.steps = (vocab_size, num_labels), seeds, steps
        self.lengths = [len(row["input_ids"]) for row in rows]
        self.curves: dict[str, list[list[float]]] = {}  # rule -> training losses of each seed
        self.reached: dict[str, list[float]] = {}  # rule -> validation loss of each seed

    def run(self, name: str, direction: Callable[[Tensor, dict], Tensor], rate: float, decay: float = 0.0) -> None:
        """Train with ``p <- p - rate * decay * p - rate * direction(g, state)`` once per seed and note the losses.

        Args:
            direction: gradient and the parameter's own state (``t``, ``m``, ``v``; zero at first) -> what to go along.
        """
        runs = [self._train(direction, rate, decay, seed) for seed in self.seeds]
        self.curves[name], self.reached[name] = [losses for losses, _ in runs], [reached for _, reached in runs]

    @one_torch_thread()
    def _train(self, direction: Callable, rate: float, decay: float, seed: int) -> tuple[list[float], float]:
        torch.manual_seed(seed)
        model = WordVectors(*self.sizes)
        states = [{"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)} for p in model.parameters()]
        batches = iter(ShuffledBatches(self.rows, 32, self.collate, seed=seed, lengths=self.lengths))
        losses = []
        for _ in range(self.steps):
            loss = model.loss(next(batches), "mean")
            loss.backward()
            with torch.no_grad():
                for p, state in zip(model.parameters(), states, strict=True):
                    state["t"] += 1
                    p.sub_(rate * decay * p + rate * direction(p.grad, state))
            model.zero_grad()
            losses.append(loss.item())
        with torch.no_grad():
            total = sum(model.loss(batch, "sum").item() for batch in self.validation)
        return losses, total / sum(len(batch["labels"]) for batch in self.validation)


def recorded(name: str) -> dict[str, Any]:
    """What ``bench/bench_<name>.py`` measured, from ``bench/results/<name>.json``."""
    return json.loads((Path(course_utils.__file__).parents[1] / "bench" / "results" / f"{name}.json").read_text())


def short_run(
    rows: Sequence[dict],
    collate: Callable[[list], Batch],
    validation: Sequence[Batch],
    seed: int,
    *,
    warmup: bool = True,
    falling: bool = True,
    clip: bool = True,
    groups: bool = True,
    steps: int = 100,
    num_labels: int = 10,
    vocab_size: int = 8_000,
    peak: float = PEAK,
) -> float:
    """Validation loss of a tiny encoder after ``steps`` steps of 16 rows, with everything or without one technique.

    Args:
        warmup: the rate rises over the first tenth of the run; False starts at the peak.
        falling: the rate falls linearly to zero; False keeps it.
        clip: gradients are clipped at norm 1.
        groups: decay (0.1) acts on matrices only; False: on every parameter.
    """
    torch.manual_seed(seed)
    model = load_classifier(num_labels, "local", **TINY, vocab_size=vocab_size)
    parameters: Any = parameter_groups(model, 0.1) if groups else model.parameters()
    optimizer = ForeachAdamW(parameters, lr=peak, weight_decay=0.1)
    shape = "linear" if falling else "constant"
    scheduler = make_scheduler(optimizer, shape, steps // 10 if warmup else 0, steps)
    lengths = [len(row["input_ids"]) for row in rows]
    batches = iter(ShuffledBatches(rows, 16, collate, seed=seed, lengths=lengths))
    model.train()
    for _ in range(steps):
        model(**next(batches)).loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        model.zero_grad()
    return evaluate(model, validation)["loss"]


@one_torch_thread()
def planted_run(batches: Sequence[Batch], bug: str | None, num_labels: int, sizes: dict, seed: int) -> planted.Run:
    """60 steps of a tiny encoder with accumulation 4 and without clipping: ``planted.loop``.

    Args:
        batches: micro-batches of an epoch.
        bug: one of ``planted.BUGS`` or None.
        sizes: configuration of the encoder.
    """
    torch.manual_seed(seed)
    model = load_classifier(num_labels, "local", **sizes)
    optimizer = ForeachAdamW(model.parameters(), lr=3e-3)
    scheduler = make_scheduler(optimizer, "linear", 6, 60)
    return planted.loop(model, batches, optimizer, scheduler, 4, 60, math.inf, bug=bug)


def word_weights(train: Any) -> Any:
    """The baseline: TF-IDF of words and word pairs, logistic regression; a fitted scikit-learn pipeline.

    Args:
        train: a data set with the columns ``text`` and ``label``.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=30, solver="newton-cg"))
    return model.fit(list(train["text"]), list(train["label"]))


def around_outlier(
    direction: Callable[[Tensor, dict], Tensor], limit: float, quiet: int = 2_000, factor: float = 100.0
) -> dict[str, list[float]]:
    """Mean length of an update rule's steps around one gradient that is ``factor`` times too large.

    Args:
        direction: as in ``Race.run``.
        limit: of the clipped run, in multiples of a usual gradient's norm.
        quiet: steps of pure noise before those that are returned.

    Returns:
        ``"not clipped"`` and ``"clipped"`` -> lengths, in learning rates, of 300 steps; the outlier is number 200.
    """
    noise = torch.randn(quiet + 300, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    usual, found = noise[0].norm(), {}
    for name, most in {"not clipped": math.inf, "clipped": limit * usual.item()}.items():
        state, lengths = {"t": 0, "m": torch.zeros_like(noise[0]), "v": torch.zeros_like(noise[0])}, []
        for number, g in enumerate(noise):
            g = factor * g if number == quiet + 200 else g
            g = g * min(1.0, most / g.norm().item())
            state["t"] += 1
            lengths.append(direction(g, state).abs().mean().item())
        found[name] = lengths[quiet:]
    return found


def answers(model: nn.Module, tokenizer: Any, sentences: Sequence[str]) -> list[tuple[int, float]]:
    """``(class number, its probability)`` of the most likely class of each sentence."""
    encoded = tokenizer(list(sentences), padding=True, return_tensors="pt")
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    model.train(was_training)
    best = logits.softmax(-1).max(-1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def effect(runs: Mapping[str, Sequence[float]], name: str) -> tuple[float, float]:
    """Mean and half-width of the interval of what leaving ``name`` out adds to the loss; ``runs`` as in ``because``."""
    found = paired_interval(runs[name], runs["nothing"])
    return found.value, found.high - found.value


def large_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of many values, one per row, and the half-width of its 95 % interval (normal approximation)."""
    return mean(values), 1.96 * stdev(values) / len(values) ** 0.5
