"""Exercises of lesson 08: who gets which rows, a forgotten prepare, schedules, exact accuracy, a ported loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.lessons.lesson_08 import on_ranks
from course_utils.lessons.lesson_08.task import farthest
from course_utils.teach.exercise import Wrong, ask, exercise

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
        hint += "clip where it clips, step, zero_grad, and leave the learning rate alone."
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
    "exact accuracy on two ranks",
    hints=(
        "Which of section 6's four ways was exact? Apply it to what you need to count, batch by batch.",
        "Per batch: one right-or-wrong value per row, from all ranks without the repeated rows. Collect them and "
        "divide once, at the end, by how many there are.",
    ),
)
def check_accuracy(answer: Callable) -> None:
    """``answer(accelerator, model, loader)`` returns a share."""
    counts = [19, 10, 24]
    results = _on_two_ranks(on_ranks.accuracy, answer, counts, f"{counts[0]} rows in batches of 4 on 2 ranks")
    for count, both in zip(counts, results, strict=True):
        given = f"{count} rows in batches of 4 on 2 ranks"
        right = on_ranks.right(on_ranks.pairs(count))
        truth = sum(right) / count
        if any(value is None for value in both):
            raise Wrong(
                given=given, expected=f"{truth:.4f}", got="no number", hint="Return one number between 0 and 1."
            )
        got = f"{both[0]:.4f} on rank 0, {both[1]:.4f} on rank 1"
        expected = f"{truth:.4f} on both"
        if abs(both[0] - both[1]) > CLOSE:
            hint = "Each rank reports its own rows. Both must see the predictions of both."
            raise Wrong(given=given, expected=expected, got=got, hint=hint)
        if abs(both[0] - truth) <= CLOSE:
            continue
        raise Wrong(given=given, expected=expected, got=got, hint=_why_not_exact(both[0], right))


def _why_not_exact(value: float, right: list[bool]) -> str:
    filled = right + right[: -len(right) % 8]
    batches = [right[i : i + 8] for i in range(0, len(right), 8)]
    if abs(value - sum(filled) / len(filled)) <= CLOSE:
        return "The rows that fill up the last batches were counted twice: one call knows how many rows there are."
    if abs(value - sum(sum(batch) / len(batch) for batch in batches) / len(batches)) <= CLOSE:
        return "That is the mean of the batches' accuracies: the last batch is shorter. Count first, divide once."
    if value > 1:
        return "That is a number of rows, not a share: divide by how many there are."
    return "Count each row once, over all ranks, and divide by the number of rows. Averages of averages are not exact."


@exercise(
    "08.5",
    "port the loop",
    hints=(
        "Section 1's difference shows every line that changes: what is prepared, and which calls are replaced?",
        "Prepare all four and take the results; backward and clipping go through the accelerator. A step's loss is "
        "the mean over the ranks' losses, which one call of the accelerator exchanges.",
    ),
)
def check_train_loop(answer: Callable) -> None:
    """``answer(accelerator, model, optimizer, scheduler, loader)`` returns ``(model, losses)``."""
    counts = [16, 32, 64]
    results = _on_two_ranks(on_ranks.train_loop, answer, counts, f"{counts[0]} rows on 2 ranks")
    for count, both in zip(counts, results, strict=True):
        given, one = f"{count} rows, batches of 4 on 2 ranks", on_ranks.trained(count)
        if any(rank["weights"] is None for rank in both):
            hint = "Return two things: the trained model and the list of losses."
            raise Wrong(given=given, expected="(model, losses)", got="something else", hint=hint)
        _same_on_both(both, given)
        if all(len(rank["asked"]) == count for rank in both):
            hint = "Both ranks read all rows: the loader in the loop does not deal them out."
            raise Wrong(given=given, expected="each row read by one rank", got=f"all {count} on each", hint=hint)
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
        hint = "The losses are the sum over the ranks; a step's loss is their mean."
    else:
        hint = "Training is right, but the losses are not the mean over the rows of all ranks."
    raise Wrong(given=given, expected=wanted, got=got, hint=hint)
