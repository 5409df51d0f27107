"""Exercises 4 to 6 of lesson 11: a sharded sampler, a loop that forgot something, the data parallel step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.lessons.lesson_11.on_ranks import toy_model
from course_utils.lessons.lesson_11.pretended import on_pretended_ranks, toy_rows
from course_utils.teach.exercise import Wrong, ask, exercise

CLOSE = 1e-5
RATE, CLIP = 0.5, 0.3  # of exercise 11.5's loop


@exercise(
    "11.4",
    "shard a sampler",
    hints=(
        "Three demands: all ranks draw the same order; the order depends on the epoch; all ranks get equally many "
        "rows. Which of the arguments may the generator's seed depend on?",
        "Draw the whole order with torch.randperm and a generator seeded by seed and epoch. Make it longer by its own "
        "beginning until the ranks divide it. Then a slice with a stride.",
    ),
)
def check_sampler(answer: Callable) -> None:
    """``answer(count, rank, size, seed, epoch)`` returns this rank's row numbers."""
    names = set(getattr(getattr(answer, "__code__", None), "co_names", ())) & {"DistributedSampler", "ShardedSampler"}
    if names:
        hint = "That is the class you are to write: torch.randperm and a slice are all you need."
        raise Wrong(given="your function", expected="no sampler", got=f"a use of {min(names)}", hint=hint)
    for count, size, seed in ((11, 3, 0), (16, 4, 5), (9, 2, 1), (5, 4, 2)):
        given = f"{count} rows on {size} ranks"
        ranks = [_rows(answer, count, rank, size, seed, 0, given) for rank in range(size)]
        _judge_shares(ranks, count, size, given)
        if ranks[0] != _rows(answer, count, 0, size, seed, 0, given):
            hint = "The same call gives other rows: seed a generator of your own, the global one is used by others."
            raise Wrong(given=given + ", asked twice", expected="the same rows", got="others", hint=hint)
        epochs = [[_rows(answer, count, r, size, seed, epoch, given) for r in range(size)] for epoch in range(4)]
        if count > 10 and all(epoch[0] == sorted(epoch[0]) for epoch in epochs):
            hint = "Nothing is shuffled: the rows come in the order of the data set."
            raise Wrong(given=given, expected="a shuffled order", got=f"{ranks[0]} on rank 0", hint=hint)
        if all(epoch == epochs[0] for epoch in epochs):
            hint = "The order must depend on the epoch, or every epoch deals out the same batches."
            raise Wrong(given=given + ", epochs 0 to 3", expected="different orders", got="the same order", hint=hint)
        _judge_shares(epochs[1], count, size, f"{given}, epoch 1")


def _rows(answer: Callable, count: int, rank: int, size: int, seed: int, epoch: int, given: str) -> list[int]:
    where = f"{given}, rank {rank}"
    found = ask(answer, count, rank, size, seed, epoch, given=where, expected="row numbers")
    try:
        rows = [int(row) for row in found]
    except (TypeError, ValueError):
        rows = None
    if rows is None or not all(0 <= row < count for row in rows):
        hint = f"Return a list of whole numbers from 0 to {count - 1}."
        raise Wrong(given=where, expected="row numbers", got=repr(found)[:80], hint=hint)
    return rows


def _judge_shares(ranks: list[list[int]], count: int, size: int, given: str) -> None:
    lengths, seen = [len(rows) for rows in ranks], [row for rows in ranks for row in rows]
    got = f"{', '.join(map(str, lengths))} rows"
    each = -(-count // size)
    if all(sorted(rows) == list(range(count)) for rows in ranks):
        raise Wrong(given=given, expected=f"{each} rows a rank", got=got, hint="Every rank reads all rows: share them.")
    if len(set(lengths)) > 1:
        hint = "The ranks have different numbers of rows: one would wait for an exchange that the others never make."
        raise Wrong(given=given, expected=f"{each} rows a rank", got=got, hint=hint)
    missing = sorted(set(range(count)) - set(seen))
    if missing and lengths[0] == count // size:
        hint = "Rows that do not divide are left out here. Fill up instead, with rows from the order's beginning."
        raise Wrong(given=given, expected="every row at least once", got=f"without {missing}", hint=hint)
    if missing or len(seen) != each * size:
        hint = "Some rows are on two ranks and others on none: do all ranks draw the same order?"
        got = f"{len(seen)} rows, without {missing}" if missing else got
        raise Wrong(given=given, expected=f"{each} rows a rank, every row at least once", got=got, hint=hint)


class Batches:
    """Batches of one rank; remembers the epochs it was asked for."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.asked = rank, size, []

    def __call__(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Two batches x (8 / size, 6), y of this rank."""
        self.asked.append(epoch)
        whole = global_rows(epoch)
        return [tuple(part.tensor_split(self.size)[self.rank] for part in batch) for batch in whole]


def global_rows(epoch: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    return [
        (2 * torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(2)
    ]


def in_one_process(epochs: int, clip_first: bool = False, size: int = 2) -> Tensor:
    """Weights after the loop of 11.5 on all rows; ``clip_first``: each share's gradient is clipped, then averaged."""
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for epoch in range(epochs):
        for x, y in global_rows(epoch):
            total = [torch.zeros_like(p) for p in model.parameters()]
            for part in zip(x.tensor_split(size), y.tensor_split(size), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(part[0]), part[1]).backward()
                if clip_first:
                    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                total = [sums + p.grad / size for sums, p in zip(total, model.parameters(), strict=True)]
            for sums, p in zip(total, model.parameters(), strict=True):
                p.grad = sums
            if not clip_first:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@exercise(
    "11.5",
    "a loop that forgot something",
    hints=(
        "Three lines are missing or in the wrong place. Ask of each rank: does it start like the others? Does it read "
        "new rows in each epoch? Is what it steps with the same on all ranks?",
        "broadcast each parameter before the first step. Pass the epoch on. Clipping looks at the length of a "
        "gradient: of which gradient should that be, a rank's own or the average?",
    ),
    kind="debug",
)
def check_loop(answer: Callable) -> None:
    """``answer(link, model, batches, epochs)`` returns the trained model."""
    for size, epochs in ((2, 2), (4, 3), (2, 1)):
        given = f"{size} ranks, {epochs} epochs"
        batches = [Batches(rank, size) for rank in range(size)]
        models = [toy_model(seed=rank) for rank in range(size)]
        arguments = [(models[rank], batches[rank], epochs) for rank in range(size)]
        found = on_pretended_ranks(answer, size, arguments, given)
        if not all(isinstance(model, nn.Module) for model in found):
            raise Wrong(given=given, expected="a model", got=repr(found[0])[:60], hint="Return the trained model.")
        weights, asked = [flat(model) for model in found], batches[0].asked
        if asked != list(range(epochs)):
            hint = "The rows of each epoch are asked for by its number: this is set_epoch, forgotten."
            if sorted(set(asked)) == list(range(epochs)):
                hint = "Ask for each epoch's rows once."
            raise Wrong(given=given, expected=f"epochs {list(range(epochs))}", got=f"epochs {asked}", hint=hint)
        apart = max((w - weights[0]).abs().max().item() for w in weights)
        clipped = in_one_process(epochs, clip_first=True, size=size)
        expected = in_one_process(epochs, size=size)
        if apart > CLOSE:
            hint = "The ranks end with different weights. Each began with a model of its own: "
            hint += "does every rank get rank 0's?"
            raise Wrong(given=given, expected="equal weights on all ranks", got=f"up to {apart:.1g} apart", hint=hint)
        error = (weights[0] - expected).abs().max().item()
        if error <= CLOSE:
            continue
        hint = "The ranks agree, but not with one process on all rows: average, clip, step, zero_grad; nothing else."
        if (weights[0] - clipped).abs().max().item() <= CLOSE:
            hint = "Each rank clips its own gradient before the average: long gradients of single ranks are cut that "
            hint += "the average would not need cut."
        raise Wrong(given=given, expected="the weights of one process", got=f"up to {error:.1g} from it", hint=hint)


def _window(rank: int, step: int, micro_batches: int) -> list[tuple[Tensor, Tensor]]:
    counts = [(3 * rank + 5 * number + step) % 8 + 1 for number in range(micro_batches)]
    return toy_rows(100 * step + 10 * rank, counts)


def _step_alone(model: nn.Module, optimizer: Any, windows: list[list[tuple[Tensor, Tensor]]]) -> float:
    """One process, all ranks' micro-batches: the mean over all targets."""
    optimizer.zero_grad()
    x, y = (torch.cat(part) for part in zip(*[batch for window in windows for batch in window], strict=True))
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


@exercise(
    "11.6",
    "the data parallel step",
    hints=(
        "Before the first forward: how many targets are there in all micro-batches of all ranks? Every loss of this "
        "step is a sum divided by that number.",
        "Sum of cross entropies over the global number of targets, backward for each micro-batch, then one sum over "
        "the ranks per gradient: divided already, it needs no average. The losses are summed over the ranks as well.",
    ),
)
def check_step(answer: Callable) -> None:
    """``answer(link, model, optimizer, micro_batches)`` takes a step and returns the mean loss over all targets."""
    for size, micro_batches in ((2, 1), (2, 3), (3, 2)):
        given = f"two steps on {size} ranks, {micro_batches} micro-batches each"
        models = [toy_model() for _ in range(size)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in models]
        alone = toy_model()
        optimizer = torch.optim.SGD(alone.parameters(), lr=0.5)
        for step in range(2):
            windows = [_window(rank, step, micro_batches) for rank in range(size)]
            before = flat(alone)

            def run(link, model, opt, window):
                return answer(link, model, opt, window), link.all_reduces

            results = on_pretended_ranks(run, size, list(zip(models, optimizers, windows, strict=True)), given)
            expected_loss = _step_alone(alone, optimizer, windows)
            _judge_step(models, flat(alone), before, given, step)
            _judge_loss([loss for loss, _ in results], expected_loss, given)
            _judge_exchanges(results[0][1], sum(p.numel() for p in alone.parameters()), micro_batches, given)


def _judge_step(models: list[nn.Module], expected: Tensor, before: Tensor, given: str, step: int) -> None:
    weights = [flat(model) for model in models]
    if max((w - weights[0]).abs().max().item() for w in weights) > CLOSE:
        hint = "The ranks' weights differ after the step: they stepped with different gradients."
        raise Wrong(given=given, expected="equal weights on all ranks", got="different ones", hint=hint)
    error = (weights[0] - expected).abs().max().item()
    if error <= CLOSE:
        return
    moved, wanted = weights[0] - before, expected - before
    ratio = (moved @ wanted / (wanted @ wanted)).item()
    straight = (moved - ratio * wanted).norm() < 1e-3 * wanted.norm()
    hint = "The step has another direction: that is what a mean of means does. Divide by the targets of all "
    hint += "micro-batches of all ranks."
    if step:
        hint = "The first step was right, the second is not: are the gradients of the first one still there?"
    elif ratio == 0:
        hint = "The weights have not changed: does the optimizer step?"
    elif straight:
        hint = f"The direction is right, the step is {ratio:.2g} times as long: something divides or adds twice."
    raise Wrong(given=given, expected="the weights of one process", got=f"up to {error:.1g} from it", hint=hint)


def _judge_loss(losses: list[Any], expected: float, given: str) -> None:
    numbers = []
    for loss in losses:
        try:
            numbers.append(float(loss))
        except (TypeError, ValueError):
            hint = "The step is right. Return its loss as one number."
            raise Wrong(given=given, expected=f"{expected:.4f}", got=repr(loss)[:60], hint=hint) from None
    if max(abs(number - expected) for number in numbers) <= CLOSE:
        return
    got = ", ".join(f"{number:.4f}" for number in numbers)
    hint = "The step is right, the loss is not the mean over the targets of all ranks."
    if max(numbers) - min(numbers) > CLOSE:
        hint = "The step is right, but each rank returns a loss of its own."
    raise Wrong(given=given, expected=f"{expected:.4f} on all ranks", got=got, hint=hint)


def _judge_exchanges(sizes: list[int], weights: int, micro_batches: int, given: str) -> None:
    travelled = sum(size for size in sizes if size > 1)
    if travelled > 1.5 * weights:
        hint = "The result is right, at too high a price: gradients add up on a rank and travel once a step."
        got = f"{travelled / weights:.1f} times"
        raise Wrong(given=given, expected="all gradients travel once a step", got=got, hint=hint)
