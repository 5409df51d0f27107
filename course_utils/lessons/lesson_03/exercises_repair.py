"""Exercises of lesson 03 that are judged by real runs: settings that keep the best and resume, a Trainer to repair."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.teach.exercise import Wrong, ask, exercise

if TYPE_CHECKING:
    from transformers import Trainer

GIVEN_SETTINGS = {
    "eval_strategy": "steps",
    "eval_steps": 10,
    "save_strategy": "steps",
    "save_steps": 20,
    "save_only_model": True,
    "load_best_model_at_end": True,
    "metric_for_best_model": "error_rate",
    "train_sampling_strategy": "group_by_length",
}
_STEPS, _EPOCH, _BEST = 40, 12, 30  # of the runs that judge; in steps of 4 rows
_ERROR_RATES = (0.5, 0.3, 0.2, 0.4)  # after 10, 20, 30 and 40 steps


@exercise(
    "03.5",
    "keep the best, and resume exactly",
    hints=(
        "Take the three demands one by one. Which settings decide what is saved, which what counts as best, which "
        "files a checkpoint holds, and which order the rows have after a resume?",
        "Five settings are wrong or missing: when it saves, what is left out of a checkpoint, the order of the rows, "
        "the direction of the metric, and how many checkpoints may stay.",
    ),
    kind="vary",
)
def check_settings(answer: Any) -> None:
    """A dictionary of TrainingArguments; looked at, then tried in a run that is killed and resumed."""
    given = "TrainingArguments with your settings"
    if not isinstance(answer, dict):
        got = type(answer).__name__
        raise Wrong(given=given, expected="a dict", got=got, hint="Give the whole dictionary of settings.")
    from transformers import TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = ask(TrainingArguments, given=given, **({"output_dir": folder, "report_to": "none"} | answer))
    for field, fits, expected, hint in _demands(args):
        if not fits:
            value = getattr(args, field)
            got = f"{field} = {getattr(value, 'value', value)!r}"
            raise Wrong(given=given, expected=expected, got=got, hint=hint)
    _try(answer)


def _demands(args: Any) -> list[tuple[str, bool, str, str]]:
    saves = args.save_strategy.value
    return [
        ("eval_strategy", args.eval_strategy.value == "steps", "'steps'", "Keep the evaluations as they are."),
        ("eval_steps", args.eval_steps == 10, "10", "Keep the evaluations as they are: every 10 steps."),
        ("load_best_model_at_end", args.load_best_model_at_end, "True", "The run ends with its last weights."),
        ("metric_for_best_model", (args.metric_for_best_model or "").removeprefix("eval_") == "error_rate",
         "'error_rate'", "The best is the one with the smallest error_rate: keep the metric."),
        ("greater_is_better", args.greater_is_better is False, "False",
         "The name does not end in 'loss', so the Trainer looks for the largest error rate. Say the direction."),
        ("save_strategy", saves in ("steps", "best"), "'steps' or 'best'", "What is not saved cannot be loaded."),
        ("save_steps", saves == "best" or args.save_steps == 10, "a save at each evaluation",
         "An evaluation between two saves may be the best, and its weights are gone."),
        ("save_total_limit", args.save_total_limit in (1, 2), "at most two checkpoints on disk",
         "Without a limit every checkpoint stays on the disk."),
        ("save_only_model", not args.save_only_model, "False",
         "Optimizer, schedule and random state are left out of the checkpoint: a resume starts them anew."),
        ("train_sampling_strategy", args.train_sampling_strategy != "group_by_length", "another strategy",
         "group_by_length draws a new order when a killed run goes on in a later epoch."),
    ]  # fmt: skip


def _try(answer: dict[str, Any]) -> None:
    """A run of three epochs, killed after the save of its best step, in the third; and one that goes on from there."""
    from course_utils.lessons.lesson_03.runs import NoteCheckpoints, killed
    from course_utils.training.settings import logged

    given = f"a run of {_STEPS} steps with error rates {list(_ERROR_RATES)}"
    with tempfile.TemporaryDirectory() as place:
        notes = NoteCheckpoints()
        copies: dict[str, Path] = {}
        whole = _run(answer, f"{place}/whole", _ERROR_RATES)
        whole.add_callback(notes)
        whole.add_callback(_copy_at_best(lambda: killed(whole, _BEST, f"{place}/killed"), copies))
        ask(whole.train, given=given)
        hint = "More settings than needed change what is saved: leave out what the exercise does not ask for."
        loaded = Path(whole.state.best_model_checkpoint or "nothing").name
        if loaded != f"checkpoint-{_BEST}" or "copy" not in copies:
            raise Wrong(given=given, expected=f"it loads checkpoint-{_BEST}", got=loaded, hint=hint)
        most = max(map(len, notes.kept.values()))
        if most > 2:
            raise Wrong(given=given, expected="at most two checkpoints", got=f"{most} at once", hint=hint)
        resumed = _run(answer, f"{place}/killed", _ERROR_RATES[_BEST // 10 :])
        ask(resumed.train, given=f"{given}, resumed at {_BEST}", resume_from_checkpoint=str(copies["copy"]))
        if logged(whole, "loss") != logged(resumed, "loss"):
            expected = "the losses of the run that was not killed"
            raise Wrong(given=f"{given}, resumed at {_BEST}", expected=expected, got="other losses", hint=hint)


def _run(answer: dict[str, Any], folder: str, rates: tuple[float, ...]) -> Trainer:
    from course_utils.lessons.lesson_03.drive import make_rows, tiny_trainer

    script = iter(rates)
    settings = {name: value for name, value in answer.items() if name != "output_dir"}
    settings |= {"max_steps": _STEPS, "logging_steps": 1}
    return tiny_trainer(
        folder, make_rows(4 * _EPOCH), compute_metrics=lambda prediction: {"error_rate": next(script)}, **settings
    )


def _copy_at_best(copy: Callable[[], Path], copies: dict[str, Path]) -> Any:
    from transformers import TrainerCallback

    class Copy(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == _BEST:
                copies["copy"] = copy()

    return Copy()


@exercise(
    "03.6",
    "repair a Trainer",
    hints=(
        "Three demands, three faults. Look at a batch of get_train_dataloader(); compare step 1 of one batch of 8 with "
        "four of 2; give a row the weight NaN and read the log.",
        "Two faults are settings that you met above. The third is in compute_loss: it takes the mean of a micro-batch, "
        "and num_items_in_batch says how many rows the whole window has. Ask for the weight without a default.",
    ),
    kind="debug",
)
def check_repair(answer: Callable[..., Trainer]) -> None:
    """``answer(model, rows, folder, **settings)`` is a Trainer; its first steps are compared with a calculation."""
    for rows, batch, micro in ((8, 8, 1), (8, 2, 4), (6, 4, 2), (7, 3, 3)):
        given = f"step 1 on {rows} rows: {micro} micro-batch{'es' * (micro > 1)} of up to {batch}"
        loss, norm = _first_step(answer, rows, batch, micro, given)
        _judge(given, rows, batch, micro, loss, norm)
    given = "a run whose second batch holds a weight that is NaN"
    with tempfile.TemporaryDirectory() as folder:
        trainer = _built(answer, 8, folder, given, nan_row=5, per_device_train_batch_size=4, max_steps=2)
        ask(trainer.train, given=given)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not losses or not math.isnan(losses[-1]):
        hint = "The loss of step 2 is NaN, and the log says something else: which setting filters the log?"
        raise Wrong(given=given, expected="a logged loss of NaN", got=f"{losses}", hint=hint)
    _asks_for_weights(answer)


def _built(
    answer: Callable, count: int, folder: str, given: str, nan_row: int = -1, bare: bool = False, **settings: Any
) -> Trainer:
    """The learner's Trainer on ``count`` rows in their order, without dropout."""
    from transformers import Trainer

    from course_utils.lessons.lesson_03.drive import collate, fresh, make_rows

    rows = make_rows(count, weights=not bare)
    if nan_row >= 0:
        rows[nan_row]["weight"] = math.nan
    settings = {"data_collator": collate, "train_sampling_strategy": "sequential", "logging_steps": 1} | settings
    settings |= {"learning_rate": 0.01, "max_grad_norm": 0.0, "use_cpu": True, "seed": 0}
    trainer = ask(answer, fresh(), rows, folder, given=given, expected="a Trainer", **settings)
    if not isinstance(trainer, Trainer):
        hint = "build returns a Trainer that is not trained yet; pass **settings on to it."
        raise Wrong(given=given, expected="a Trainer", got=type(trainer).__name__, hint=hint)
    return trainer


def _first_step(answer: Callable, rows: int, batch: int, micro: int, given: str) -> tuple[float, float]:
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": micro, "max_steps": 1}
    with tempfile.TemporaryDirectory() as folder:
        trainer = _built(answer, rows, folder, given, **sizes)
        ask(trainer.train, given=given)
        entry = next((entry for entry in trainer.state.log_history if "loss" in entry), {})
    return entry.get("loss", math.nan), float(entry.get("grad_norm", math.nan))


def _expected(rows: int, weighted: bool = True) -> tuple[float, float]:
    """Loss and gradient norm of the whole batch, written out."""
    import torch

    from course_utils.lessons.lesson_03.drive import collate, fresh, make_rows

    batch, model = collate(make_rows(rows, weights=True)), fresh()
    logits = model(batch["input_ids"])["logits"]
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    loss = (losses * (batch["weight"] if weighted else 1)).sum() / rows
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    return loss.item(), norm.item()


def _judge(given: str, rows: int, batch: int, micro: int, loss: float, norm: float) -> None:
    close = lambda value, other: abs(value - other) <= 1e-3 * abs(other)  # noqa: E731
    right, plain = _expected(rows), _expected(rows, weighted=False)
    if close(loss, right[0]) and close(norm, right[1]):
        return
    if close(loss, plain[0]) or close(loss, micro * plain[0]):
        hint = "The weights never arrived: which setting drops columns that forward does not name?"
    elif micro > 1 and close(loss, micro * right[0]):
        hint = f"The loss is {micro} times too large: every micro-batch gave its own mean, and nobody divided."
    elif micro > 1 and close(loss, right[0] / micro):
        hint = f"The loss is {micro} times too small: it is divided twice."
    elif batch * micro != rows:
        hint = (
            "With micro-batches of unequal size the mean of means is not the mean: divide the sum by the window's rows."
        )
    else:
        hint = "The loss is the sum of weight times cross entropy over the window, divided by the number of its rows."
    expected = f"loss {right[0]:.4f}, gradient norm {right[1]:.4f}"
    raise Wrong(given=given, expected=expected, got=f"loss {loss:.4f}, gradient norm {norm:.4f}", hint=hint)


def _asks_for_weights(answer: Callable) -> None:
    given = "rows without the column 'weight'"
    with tempfile.TemporaryDirectory() as folder:
        trainer = _built(answer, 8, folder, given, bare=True, max_steps=1)
        try:
            trainer.train()
        except (KeyError, ValueError):
            return
    hint = "A default for a missing weight hides the next dropped column: ask for it without one."
    raise Wrong(given=given, expected="an error", got="it trains as if nothing were missing", hint=hint)
