"""What the ranks do when an answer of lesson 08 is checked, and what one process does with the same rows."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from course_utils.training.schedules import make_scheduler

Pair = tuple[Tensor, Tensor]


class Recorded(list):
    """Rows that remember which of them were asked for."""

    def __init__(self, rows: list[Pair]):
        super().__init__(rows)
        self.asked: list[int] = []

    def __getitem__(self, place):
        if isinstance(place, int):
            self.asked.append(place)
        return super().__getitem__(place)


def pairs(count: int) -> list[Pair]:
    """``count`` rows: x (6,) and one of three classes."""
    generator = torch.Generator().manual_seed(count)
    x = 2 * torch.randn(count, 6, generator=generator)
    y = torch.randint(0, 3, (count,), generator=generator)
    return list(zip(x, y, strict=True))


def small_model(seed: int = 5, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def weights(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def predicted(rows: list[Pair]) -> tuple[Tensor, Tensor]:
    """The classes that ``small_model`` gives to ``rows``, and their labels."""
    x, y = (torch.stack(part) for part in zip(*rows, strict=True))
    return small_model().eval()(x).argmax(-1), y


def fine_tune(file: str, name: str, counts: list[int]) -> list[dict[str, Any]]:
    """On a rank: call the answer with each number of rows; its weights and the rows it asked for."""
    from accelerate import Accelerator

    answer, found = runpy.run_path(file)[name], []
    for count in counts:
        rows = Recorded(pairs(count))
        model = answer(Accelerator(), small_model(), rows)
        found.append({"weights": _weights_of(model), "asked": sorted(set(rows.asked))})
    return found


def fine_tuned(count: int) -> list[float]:
    """The weights after one epoch of 8 rows a step in this process."""
    model, rows = small_model(), pairs(count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in DataLoader(rows, 8):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def score(file: str, name: str, counts: list[int]) -> list[dict[str, Any]]:
    """On a rank: what the answer returns for each number of rows (None: no number), and the mode it leaves."""
    from accelerate import Accelerator

    answer, found = runpy.run_path(file)[name], []
    for count in counts:
        accelerator = Accelerator()
        model, loader = accelerator.prepare(small_model(dropout=0.5), DataLoader(pairs(count), 4))
        found.append({"score": _number(answer(accelerator, model, loader)), "training": model.training})
    return found


def train_loop(file: str, name: str, counts: list[int]) -> list[dict[str, Any]]:
    """On a rank: port of the loop with each number of rows; losses, weights, rows asked for."""
    from accelerate import Accelerator

    answer, found = runpy.run_path(file)[name], []
    for count in counts:
        accelerator = Accelerator(gradient_accumulation_steps=2, step_scheduler_with_optimizer=False)
        model, optimizer, scheduler, rows = _run(count // 8, count)
        got = answer(accelerator, model, optimizer, scheduler, DataLoader(rows, 2))
        is_pair = isinstance(got, tuple | list) and len(got) == 2 and isinstance(got[1], list | tuple)
        trained, losses = got if is_pair else (None, [])
        facts = {"losses": [_number(loss) for loss in losses], "weights": _weights_of(trained)}
        found.append({**facts, "asked": sorted(set(rows.asked)), "moved": scheduler.last_epoch})
    return found


def trained(count: int) -> dict[str, Any]:
    """The loop of exercise 08.5 in this process: two micro-batches of 4 rows a step."""
    model, optimizer, scheduler, rows = _run(count // 8, count)
    losses, total = [], 0.0
    for i, (x, y) in enumerate(DataLoader(rows, 4)):
        loss = nn.functional.cross_entropy(model(x), y) / 2
        loss.backward()
        total += loss.item()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(total)
            total = 0.0
    return {"losses": losses, "weights": weights(model)}


def _run(steps: int, count: int) -> tuple[nn.Module, Any, Any, Recorded]:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return model, optimizer, make_scheduler(optimizer, "linear", 1, steps), Recorded(pairs(count))


def _weights_of(model: Any) -> list[float] | None:
    return weights(model) if isinstance(model, nn.Module) else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


Harness = Callable[[str, str, list[int]], list[Any]]
