"""The checker of exercise 01.5: a learner's training loop against the right one and against planted mistakes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.lessons.lesson_01 import planted
from course_utils.lessons.lesson_01.probe import Probe, batches_of, is_near, must_be_callable, shortly
from course_utils.teach.exercise import Wrong, ask, exercise
from course_utils.training.schedules import make_scheduler

LOOP_HINTS = {
    "loss / k": "The gradients are those of the mean of the micro-batches' means: divide by the window's targets.",
    "mean not divided": "Each micro-batch adds its full mean: divide its summed loss by the whole window's targets.",
    "scheduler per micro-batch": "The scheduler runs too fast: one step per window, beside optimizer.step().",
    "scheduler inside the window": "The scheduler is stepped inside the window: call it once, after optimizer.step().",
    "no scheduler": "The learning rate never changes: call scheduler.step() after optimizer.step().",
    "zero_grad forgotten": "Each step also uses the gradients of all steps before it: zero them after the step.",
    "zero_grad per micro-batch": "Only a window's last micro-batch counts: zero once per window, not inside it.",
    "last window dropped": "The short last window of an epoch never reaches a step.",
    "last window left in .grad": "The short last window's gradients are left over and mixed into the next epoch.",
    "last window divided as if full": "The short last window is divided as if it were full: count its own targets.",
    "not clipped": "The gradients are not clipped when the step is made: clip between backward and optimizer.step().",
    "clipped per micro-batch": "You clip inside the window: clip once, when all its gradients are added up.",
    "dropout stays off": "After an evaluation dropout stays off: call model.train() before training goes on.",
}


@exercise(
    "01.5",
    "The whole loop",
    kind="write",
    hints=(
        "From the outside in: epochs until max_steps, windows in an epoch, micro-batches in a window. Write down for "
        "each line of sections 3, 6 and 7 in which of the three it stands.",
        "Inside the innermost: train mode, summed loss over the window's targets, backward. After it: clip, step, "
        "schedule, zero, note the loss, evaluate if it is time, stop if it was the last step.",
    ),
)
def check_loop(answer: Any) -> None:
    must_be_callable(answer, "a function as in the stub")
    cases = (
        ((4, 4, 4, 4, 4, 4, 2), 3, 7, 0.3, 2),  # two epochs and a bit; the last window is one short micro-batch
        ((5, 2, 6), 1, 6, 0.2, 3),
        ((3, 7, 2, 6, 1), 2, 5, 0.5, 1),
    )
    for case in cases:
        sizes, accumulation, steps, max_norm, eval_every = case
        given = (
            f"micro-batches of {', '.join(map(str, sizes))} rows, accumulation={accumulation}, max_steps={steps}, "
            f"max_norm={max_norm}, eval_every={eval_every}"
        )
        right, weights = _reference(case)
        model, optimizer, scheduler, batches = _fresh(case)
        calls: list[int] = []
        steps_made = _count_steps(optimizer)

        def evaluate(model: nn.Module = model, calls: list = calls, made: list = steps_made) -> dict[str, float]:
            model.eval()  # as a careless evaluation does
            calls.append(len(made))
            return {"loss": 0.0}

        settings = {
            "accumulation": accumulation,
            "max_steps": steps,
            "max_norm": max_norm,
            "eval_every": eval_every,
        }
        losses = ask(
            answer,
            model,
            batches,
            optimizer,
            scheduler,
            evaluate,
            settings,
            given=given,
            expected="the loss of every step",
        )
        if len(steps_made) != steps:
            per_epoch = -(-len(sizes) // accumulation)
            hint = "optimizer.step() must be called max_steps times: start the next epoch where one is over, then stop."
            if len(steps_made) == per_epoch < steps:
                hint = "One pass over the batches is an epoch: start the next one until max_steps is reached."
            elif len(steps_made) == 0:
                hint = "The optimizer never made a step."
            raise Wrong(
                given=given, expected=f"{steps} optimizer steps", got=f"{len(steps_made)} optimizer steps", hint=hint
            )
        found = _weights(model)
        if not _same(found, weights):
            hints = [why for bug, why in LOOP_HINTS.items() if _same(found, _planted_weights(case, bug))]
            hint = "Compare with sections 3, 6 and 7: share of the loss, clip, step, schedule, zero, in this order."
            raise Wrong(
                given=given,
                expected="the weights of the loop that this lesson describes",
                got=f"weights that differ by up to {(found - weights).abs().max().item():.2g}",
                hint=hints[0] if hints else hint,
            )
        due = list(range(eval_every, steps + 1, eval_every))
        if calls != due:
            hint = f"evaluate() is due after every {eval_every} optimizer steps, counted from 1."
            raise Wrong(given=given, expected=f"evaluations after steps {due}", got=f"after steps {calls}", hint=hint)
        is_list = isinstance(losses, list | tuple) and len(losses) == steps
        if not is_list or not all(is_near(x, y, 1e-6) for x, y in zip(losses, right, strict=True)):
            expected = ", ".join(f"{loss:.3f}" for loss in right)
            hint = "Return a list with a loss per optimizer step: the sum of the shares of its micro-batches."
            raise Wrong(given=given, expected=expected, got=shortly(losses), hint=hint)


def _fresh(case: tuple) -> tuple[Probe, torch.optim.Optimizer, Any, list[dict[str, Tensor]]]:
    model, batches = Probe(dropout=0.2), batches_of(case[0], seed=len(case[0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = make_scheduler(optimizer, "linear", warmup_steps=1, max_steps=case[2] + 2)
    model.eval()
    torch.manual_seed(11)  # the same dropout masks for everybody
    return model, optimizer, scheduler, batches


def _planted_run(case: tuple, bug: str | None) -> tuple[list[float], Tensor]:
    model, optimizer, scheduler, batches = _fresh(case)
    _, accumulation, steps, max_norm, eval_every = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a scheduler that is stepped too early, on purpose
        run = planted.loop(
            model, batches, optimizer, scheduler, accumulation, steps, max_norm, model.eval, eval_every, bug
        )
    return run.losses, _weights(model)


def _reference(case: tuple) -> tuple[list[float], Tensor]:
    return _planted_run(case, None)


def _planted_weights(case: tuple, bug: str) -> Tensor:
    return _planted_run(case, bug)[1]


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-8)


def _count_steps(optimizer: torch.optim.Optimizer) -> list[int]:
    """A list that grows by one entry with every ``optimizer.step()``."""
    made: list[int] = []
    optimizer.register_step_post_hook(lambda *_: made.append(len(made)))
    return made
