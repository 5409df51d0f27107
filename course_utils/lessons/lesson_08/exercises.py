"""Exercises of lesson 08: who gets which rows, a forgotten prepare, schedules, exact macro-F1, a ported loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.lessons.lesson_08 import on_ranks
from course_utils.lessons.lesson_08.task import farthest
from course_utils.teach.exercise import Wrong, ask, exercise
from course_utils.training.evaluation import macro_f1

CLOSE = 1e-5


@exercise(
    "08.1",
    "22 rows on three ranks",
    hints=(
        "First write down the batches of one process: how many are there, and how long is the last one?",
        "The ranks need the same number of batches, all full. Fill up the last batch with rows from the beginning, "
        "then add whole batches until the number divides by three.",
    ),
    kind="predict",
)
def check_rows(answer: Any) -> None:
    """``answer`` is ``{"batches": ..., "twice": [...]}``."""
    given = "22 rows in batches of 3 on 3 ranks"
    if not isinstance(answer, dict) or {"batches", "twice"} - answer.keys():
        hint = "Give both: a number under 'batches', a list of row numbers under 'twice'."
        raise Wrong(given=given, expected="{'batches': ..., 'twice': [...]}", got=repr(answer), hint=hint)
    batches, twice = answer["batches"], sorted(answer["twice"])
    if batches != 3:
        hints = {
            8: "8 batches are those of one process. Three ranks share them.",
            9: "9 batches are those of all ranks together. How many has each?",
            2: "With 2 batches a rank, some rows would never be seen: nothing is dropped by default.",
        }
        hint = hints.get(batches, "How many batches has one process, and how are they shared so that all have as many?")
        raise Wrong(given=given, expected="the batches of one rank", got=repr(batches), hint=hint)
    if twice != list(range(5)):
        hint = (
            "Three full batches on each of three ranks are 27 rows. How many of them are too many, and which come in?"
        )
        if twice == [0, 1]:
            hint = "That fills up the eighth batch. Three ranks with equally many batches need one more."
        raise Wrong(given=given, expected="the rows that fill up the end", got=repr(twice), hint=hint)


def _on_two_ranks(harness: Callable, answer: Callable, counts: list[int], given: str) -> list[list[Any]]:
    """``[result of rank 0, result of rank 1]`` for each of ``counts``; what the ranks raise is ``Wrong``."""
    from course_utils.parallel import RanksFailed, shared_ranks
    from course_utils.parallel.rank_pool import portable_source

    ranks = shared_ranks(2)
    usual, ranks.timeout = ranks.timeout, 60  # starting the ranks and importing counts too
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.py"
        file.write_text(portable_source(answer))
        try:
            both = ranks(harness, file=str(file), name=answer.__name__, counts=counts)
        except RanksFailed as error:
            lines = str(error).splitlines()
            hangs = "had no result" in lines[0]
            hint = "Your code raised an exception on a rank. Read its last line; section 3's functions show the calls."
            if hangs:
                hint = "A rank waited for another: every rank must make the same exchanges, as often as the others."
            got = lines[0] if hangs else lines[-1]
            raise Wrong(given=given, expected="a result from both ranks", got=got, hint=hint) from None
        finally:
            ranks.timeout = usual
    return [list(pair) for pair in zip(*both, strict=True)]


@exercise(
    "08.2",
    "repair an epoch on two ranks",
    hints=(
        "Compare what each rank reads with section 2: who deals the rows out, and is that what the loop reads?",
        "prepare changes nothing in place that you could rely on: it returns new objects. Go through the arguments of "
        "each prepare call and look for the names that take its results.",
    ),
    kind="debug",
)
def check_fine_tune(answer: Callable) -> None:
    """``answer(accelerator, model, rows)`` returns the trained model."""
    counts = [16, 24, 32]
    for count, both in zip(
        counts, _on_two_ranks(on_ranks.fine_tune, answer, counts, f"{counts[0]} rows on 2 ranks"), strict=True
    ):
        given = f"{count} rows on 2 ranks"
        if any(rank["weights"] is None for rank in both):
            raise Wrong(given=given, expected="a model", got="something else", hint="Return the trained model.")
        _same_on_both(both, given)
        if all(len(rank["asked"]) == count for rank in both):
            got = f"{len(both[0]['asked'])} on rank 0, {len(both[1]['asked'])} on rank 1, of {count}"
            hint = "Both ranks read all rows, so the second one was of no use. Which object deals rows out?"
            raise Wrong(given=given, expected="each row read by one rank", got=got, hint=hint)
        _like_one_process(both[0]["weights"], on_ranks.fine_tuned(count), given)


def _same_on_both(both: list[dict[str, Any]], given: str) -> None:
    apart = farthest(both[0]["weights"], both[1]["weights"])
    if apart > 0:
        hint = (
            "The ranks end with different weights: nothing averages their gradients. Is the model that the loop calls "
        )
        hint += "the one that prepare returned?"
        raise Wrong(given=given, expected="equal weights on both ranks", got=f"up to {apart:.1g} apart", hint=hint)


def _like_one_process(weights: list[float], expected: list[float], given: str) -> None:
    apart = farthest(weights, expected)
    if apart > CLOSE:
        hint = "The rows and the ranks are right, but the steps are not those of the loop. Keep its order: backward, "
        hint += "clip where it clips, step, zero_grad, each as often as there; leave the learning rate alone."
        got = f"up to {apart:.1g} from it"
        raise Wrong(given=given, expected="the weights of one process with 8 rows a step", got=got, hint=hint)


@exercise(
    "08.3",
    "the length of a schedule",
    hints=(
        "Ask for each setting: how many steps does the schedule advance at one call of scheduler.step()?",
        "Section 4: a prepared scheduler advances once per rank, unless one of two settings says that the batch, or "
        "the count, is not multiplied. The schedule must last for all steps that it advances.",
    ),
    kind="vary",
)
def check_schedule_length(answer: Callable) -> None:
    """``answer(optimizer_steps, num_processes, with_optimizer, split)`` returns a number of schedule steps."""
    cases = (
        ((100, 4, True, False), 400, "A prepared scheduler takes one step per rank at each call: 4 here."),
        (
            (60, 2, False, False),
            60,
            "step_scheduler_with_optimizer=False: one call is one step, on any number of ranks.",
        ),
        (
            (80, 8, True, True),
            80,
            "split_batches=True keeps the batch of one process, so the scheduler is not multiplied.",
        ),
        ((50, 1, True, False), 50, "With one process nothing is multiplied."),
    )
    for arguments, expected, hint in cases:
        steps, ranks, with_optimizer, split = arguments
        given = f"{steps} optimizer steps, {ranks} ranks, with_optimizer={with_optimizer}, split={split}"
        got = ask(answer, *arguments, given=given, expected="a number of steps")
        if got != expected:
            raise Wrong(given=given, expected=str(expected), got=repr(got), hint=hint)


@exercise(
    "08.4",
    "exact macro-F1 on two ranks",
    hints=(
        "F1 counts hits and misses over all rows: which two columns does one process need, and which of section 6's "
        "four ways brings them together exactly? Then think of dropout.",
        "Per batch: predictions and labels, from all ranks without the repeated rows, with the model in evaluation "
        "mode. Collect both, compute once at the end, and put the model back into the mode it was in.",
    ),
)
def check_score(answer: Callable) -> None:
    """``answer(accelerator, model, loader)`` returns the macro-F1 of all rows."""
    counts = [13, 10, 24]
    results = _on_two_ranks(on_ranks.score, answer, counts, f"{counts[0]} rows in batches of 4 on 2 ranks")
    for count, both in zip(counts, results, strict=True):
        given = f"{count} rows in batches of 4 on 2 ranks"
        predicted, labels = on_ranks.predicted(on_ranks.pairs(count))
        truth = macro_f1(predicted, labels, 3)
        scores = [rank["score"] for rank in both]
        if None in scores:
            hint = "Return one number between 0 and 1."
            raise Wrong(given=given, expected=f"{truth:.4f}", got="no number", hint=hint)
        got, expected = f"{scores[0]:.4f} on rank 0, {scores[1]:.4f} on rank 1", f"{truth:.4f} on both"
        if abs(scores[0] - scores[1]) > CLOSE:
            hint = "Each rank reports its own rows. Both must see the predictions of both."
            raise Wrong(given=given, expected=expected, got=got, hint=hint)
        if abs(scores[0] - truth) > CLOSE:
            raise Wrong(given=given, expected=expected, got=got, hint=_why_not_exact(scores[0], predicted, labels))
        if not all(rank["training"] for rank in both):
            hint = "The score is right. Leave the model in the mode it was in: training goes on after an evaluation."
            raise Wrong(given=given, expected="model.training is True afterwards", got="False", hint=hint)


def _why_not_exact(value: float, predicted: Tensor, labels: Tensor) -> str:
    """The hint for a score that both ranks agree on; rows go to the ranks 4 by 4."""
    filled = [torch.cat([column, column[: -len(column) % 8]]) for column in (predicted, labels)]
    batches = [[column[i : i + 8] for column in (predicted, labels)] for i in range(0, len(labels), 8)]
    mine = [[torch.cat(column.split(4)[rank::2]) for column in filled] for rank in range(2)]
    if abs(value - macro_f1(*filled, 3)) <= CLOSE:
        return "The rows that fill up the last batches were counted twice: one call knows how many rows there are."
    if abs(value - sum(macro_f1(*batch, 3) for batch in batches) / len(batches)) <= CLOSE:
        return "That is the mean of the batches' scores. F1 is a ratio of sums: collect first, compute once."
    if abs(value - sum(macro_f1(*rank, 3) for rank in mine) / 2) <= CLOSE:
        return "That is the mean of the ranks' scores. F1 is a ratio of sums: collect first, compute once."
    if abs(value - (predicted == labels).double().mean().item()) <= CLOSE:
        return "That is the accuracy. Asked for is macro-F1, which needs predictions and labels."
    return "Not the score in evaluation mode with each row once: is dropout off while the model predicts?"


@exercise(
    "08.5",
    "port the loop",
    hints=(
        "Go through the loop line by line: what is done for every micro-batch, and what once per step? Section 5 "
        "names the block that knows the difference, and what it leaves to you.",
        "backward divides by the accumulation itself. Clipping half a gradient, and moving a schedule that counts "
        "every call, belong to the last micro-batch of a step only. A step's loss covers both ranks and both "
        "micro-batches.",
    ),
)
def check_train_loop(answer: Callable) -> None:
    """``answer(accelerator, model, optimizer, scheduler, loader)`` returns ``(model, losses)``."""
    counts = [16, 32, 64]
    results = _on_two_ranks(on_ranks.train_loop, answer, counts, f"{counts[0]} rows on 2 ranks")
    for count, both in zip(counts, results, strict=True):
        given, one = f"{count} rows, micro-batches of 2 on 2 ranks", on_ranks.trained(count)
        if any(rank["weights"] is None for rank in both):
            hint = "Return two things: the trained model and the list of losses."
            raise Wrong(given=given, expected="(model, losses)", got="something else", hint=hint)
        _same_on_both(both, given)
        if all(len(rank["asked"]) == count for rank in both):
            hint = "Both ranks read all rows: the loader in the loop does not deal them out."
            raise Wrong(given=given, expected="each row read by one rank", got=f"all {count} on each", hint=hint)
        steps, moved = len(one["losses"]), both[0]["moved"]
        if moved != steps:
            hint = "The schedule moves once per step: not per micro-batch, and not per rank."
            raise Wrong(given=given, expected=f"{steps} moves of the schedule", got=str(moved), hint=hint)
        _like_one_process(both[0]["weights"], one["weights"], given)
        _check_losses(both, one["losses"], given)


def _check_losses(both: list[dict[str, Any]], expected: list[float], given: str) -> None:
    found = both[0]["losses"]
    steps = len(expected)
    if len(found) != steps or None in found:
        hint = "One number per step, over the ranks' rows together."
        raise Wrong(given=given, expected=f"{steps} losses", got=f"{len(found)} values", hint=hint)
    wanted, got = f"first loss {expected[0]:.4f}", f"first loss {found[0]:.4f}"
    if farthest(found, expected) <= CLOSE:
        return
    if farthest(found, both[1]["losses"]) > CLOSE:
        hint = "Training is right, but the losses are this rank's own. They must cover the rows of all ranks."
    elif farthest(found, [2 * loss for loss in expected]) <= CLOSE:
        hint = "The losses are a sum over two ranks, or over two micro-batches; a step's loss is the mean of all."
    else:
        hint = "Training is right, but the losses are not the mean over the rows of all ranks."
    raise Wrong(given=given, expected=wanted, got=got, hint=hint)
