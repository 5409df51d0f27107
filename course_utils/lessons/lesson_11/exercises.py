"""Exercises 1 to 3 of lesson 11: a ring all-reduce, averaged gradients, messages counted. The others: exercises_run.

Answers run on pretended ranks, which are threads of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.lessons.lesson_11 import exercises_run  # noqa: F401 - registers 11.4 to 11.6
from course_utils.lessons.lesson_11.on_ranks import toy_model
from course_utils.lessons.lesson_11.pretended import on_pretended_ranks, toy_rows
from course_utils.teach.exercise import Wrong, exercise

CLOSE = 1e-5


def _chunks(rank: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(10 * size + rank)
    return [torch.randint(-9, 10, (3,), generator=generator).float() for _ in range(size)]


@exercise(
    "11.1",
    "a ring all-reduce",
    hints=(
        "Follow one chunk through the figure: where does it start, who adds to it, where is it complete? Then write "
        "what a single rank does in step 1: which chunk goes out, which comes in?",
        "Two loops of size - 1 steps. In step s of the first, rank r sends chunk (r - s) % size to the right and adds "
        "what arrives to the chunk before it. In the second, complete chunks travel on and replace what is there.",
    ),
)
def check_ring(answer: Callable) -> None:
    """``answer(link, chunks)`` returns the chunks of the sum."""
    for size in (2, 3, 4):
        given = f"{size} ranks, each with {size} chunks of 3 numbers"
        expected = [sum(_chunks(rank, size)[chunk] for rank in range(size)) for chunk in range(size)]
        own = [_chunks(rank, size) for rank in range(size)]

        def run(link, chunks):
            found = answer(link, chunks)
            return found, link.messages, link.bytes, link.all_reduces

        results = on_pretended_ranks(run, size, [(chunks,) for chunks in own], given)
        _judge_chunks([found for found, *_ in results], expected, given, size)
        if any(reduced for *_, reduced in results):
            hint = "link.all_reduce is what you are to write: use link.exchange, or send and receive."
            raise Wrong(given=given, expected="only sends and receives", got="a call of all_reduce", hint=hint)
        most, wanted = max(sent for _, _, sent, _ in results), 2 * (size - 1) * 12
        if most > wanted:
            hint = "The sums are right, but this is no ring: each rank sends one chunk a step, 2 (N - 1) in all."
            raise Wrong(given=given, expected=f"at most {wanted} bytes from each rank", got=f"{most} bytes", hint=hint)


def _judge_chunks(found: list[Any], expected: list[Tensor], given: str, size: int) -> None:
    for rank, chunks in enumerate(found):
        right_kind = isinstance(chunks, list | tuple) and len(chunks) == size
        if not right_kind or not all(isinstance(c, Tensor) and c.shape == (3,) for c in chunks):
            hint = "Return the list of chunks, each a tensor of the shape it had."
            raise Wrong(given=given, expected=f"{size} chunks on rank {rank}", got=repr(chunks)[:80], hint=hint)
    right = [[torch.allclose(chunk, whole) for chunk, whole in zip(chunks, expected, strict=True)] for chunks in found]
    if all(map(all, right)):
        return
    counts = [sum(row) for row in right]
    got = ", ".join(f"rank {rank}: {count} of {size} chunks" for rank, count in enumerate(counts))
    if all(map(any, right)):
        hint = "Each rank has a complete chunk, not all of them: that was the reduce-scatter. Now the chunks travel on."
        if size == 2:
            hint += " Look also at what arrives in the second loop: is it added, or does it replace?"
    elif not any(map(any, right)):
        hint = "No chunk is complete. In the first loop what arrives is added; and each step passes on the chunk that "
        hint += "was added to in the step before."
    else:
        hint = "Some ranks have complete chunks and others none: which chunk goes out must depend on the rank."
    raise Wrong(given=given, expected="the sum in every chunk on every rank", got=got, hint=hint)


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _model_with_gradient(batch: tuple[Tensor, Tensor]) -> nn.Module:
    model = toy_model()
    model[0].bias.requires_grad_(False)  # frozen: it has no gradient
    x, y = batch
    nn.functional.cross_entropy(model(x), y).backward()
    return model


@exercise(
    "11.2",
    "average gradients",
    hints=(
        "A rank's gradient is a sum over its targets, divided by their number. What must happen to it so that the sums "
        "of all ranks can be added? And what is the result divided by?",
        "Multiply by the own targets, add over the ranks, divide by everybody's. All gradients fit in one flat tensor "
        "(torch.cat), and back (split, view_as). A frozen parameter has the gradient None.",
    ),
)
def check_average(answer: Callable) -> None:
    """``answer(link, model, targets)`` changes the gradients in place."""
    for counts in ((3, 8), (5, 5), (1, 8, 4)):
        size, given = len(counts), f"{len(counts)} ranks with {', '.join(map(str, counts))} targets"
        batches = toy_rows(sum(counts), counts)
        models = [_model_with_gradient(batch) for batch in batches]
        own = [flat_gradient(model).clone() for model in models]

        def run(link, model, targets):
            answer(link, model, targets)
            return flat_gradient(model), len(link.all_reduces)

        results = on_pretended_ranks(run, size, list(zip(models, counts, strict=True)), given)
        expected = sum(g * c for g, c in zip(own, counts, strict=True)) / sum(counts)
        for rank, (gradient, _) in enumerate(results):
            if not _same(gradient, expected):
                hint = _why_not_average(gradient, own, counts, rank)
                got = f"on rank {rank} {_first(gradient)}"
                raise Wrong(given=given, expected=f"{_first(expected)}", got=got, hint=hint)
        if (calls := max(calls for _, calls in results)) > 2:
            hint = (
                "The average is right, in too many messages: lay all gradients end to end and send them as one tensor."
            )
            raise Wrong(given=given, expected="at most 2 all-reduces", got=f"{calls} all-reduces", hint=hint)


def _same(first: Any, second: Tensor) -> bool:
    return isinstance(first, Tensor) and first.shape == second.shape and torch.allclose(first, second, atol=CLOSE)


def _first(gradient: Any) -> str:
    if not isinstance(gradient, Tensor) or gradient.numel() < 2:
        return repr(gradient)[:60]
    return f"[{gradient[0].item():.4f}, {gradient[1].item():.4f}, ...]"


def _why_not_average(gradient: Tensor, own: list[Tensor], counts: Sequence[int], rank: int) -> str:
    total = sum(own)
    weighted = sum(g * c for g, c in zip(own, counts, strict=True))
    if _same(gradient, own[rank]):
        return "The gradients are as they were: change p.grad itself, in place or by a new assignment."
    if _same(gradient, total / len(own)):
        return "That is a mean of means: a target on a rank with few of them weighs more than on a rank with many."
    if _same(gradient, total):
        return "That is the sum of the ranks' gradients, each of which was a mean already."
    if _same(gradient, weighted):
        return "That is the sum over all targets. It is still to be divided by their number."
    if _same(gradient, weighted / len(own)):
        return "Divided by the ranks, not by the targets of all ranks."
    if _same(gradient, weighted / counts[rank]):
        return "Divided by this rank's targets, not by those of all ranks."
    return "Every gradient of the model, and nothing but sums over the ranks: what is multiplied before, what after?"


@exercise(
    "11.3",
    "count the messages",
    hints=(
        "How many times does the optimizer step in this epoch, the short window at the end included?",
        "With no_sync one exchange of all gradients belongs to each window, without it to each micro-batch. An "
        "exchange is as many all-reduces as there are tensors to send: gradients one by one, or buckets.",
    ),
    kind="predict",
)
def check_messages(answer: Any) -> None:
    """``answer`` is ``{"naive": ..., "buckets": ..., "forgotten": ...}``."""
    given = "22 micro-batches, accumulation 4, 148 gradients, 6 buckets, 2 ranks"
    expected = {"naive": 148 * 6, "buckets": 6 * 6, "forgotten": 6 * 22}
    if not isinstance(answer, dict) or expected.keys() - answer.keys():
        hint = "Give three numbers, under 'naive', 'buckets' and 'forgotten'."
        raise Wrong(given=given, expected="a dictionary with three numbers", got=repr(answer)[:80], hint=hint)
    hints = {
        ("naive", 148 * 5): "Five windows are full; the epoch's last two micro-batches make a step as well.",
        ("naive", 148 * 22): "With no_sync the micro-batches inside a window send nothing.",
        ("buckets", 6 * 5): "Five windows are full; the epoch's last two micro-batches make a step as well.",
        ("forgotten", 6 * 6): "Without no_sync DDP sends its buckets in every backward, not once a window.",
        ("forgotten", 148 * 22): "DDP sends buckets also when no_sync is forgotten.",
    }
    for name, number in expected.items():
        got = answer[name]
        if got != number:
            hint = hints.get((name, got), "Steps in the epoch, or backwards, times what one exchange consists of.")
            if got == 2 * number:
                hint = "An all-reduce is one message in this count, made by both ranks together."
            raise Wrong(given=given, expected=f"the all-reduces of {name!r}", got=repr(got), hint=hint)
