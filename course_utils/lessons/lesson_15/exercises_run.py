"""Exercises 8 and 9 of lesson 15: diagnose a bad run from what it left behind; plan a run and write its files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.teach.exercise import Wrong, ask, exercise

CAUSES = {
    "ranks": "fewer ranks met than were asked for",
    "shards": "a rank holds more of the model than planned",
    "batch": "the effective batch is not the one asked for",
    "memory": "a GPU's memory was exceeded",
    "time": "the time limit came before it could save",
    "forgot": "a checkpoint was there, and it began at step 0",
    "fine": "as asked",
}
PARAMETERS = 8_190_735_360
ASKED = {"ranks": 16, "strategy": "fsdp2", "effective_batch": 64, "parameters_held": PARAMETERS // 16}
STEPS = "{'loss': 2.31, 'learning_rate': 9e-06}"
SAVED = "Saving model checkpoint to runs/finetune/checkpoint-400"
TIME = "slurmstepd: error: *** JOB 4711 ON gpu-a CANCELLED AT 2026-11-02T04:00:12 DUE TO TIME LIMIT ***"
MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 6.96 GiB. GPU 3 has a total capacity of 79.6 GiB"
)


def run_of(ranks: int = 16, held: int = PARAMETERS // 16, **facts: Any) -> dict[str, Any]:
    """A run.json: what the ranks of a healthy run saw, with some of it changed."""
    usual = {
        "world_size": ranks,
        "strategy": "fsdp2",
        "wrapper": "FSDPQwen3ForCausalLM",
        "parameters": PARAMETERS,
        "parameters_held": [held] * ranks,
        "effective_batch": 64,
        "resumed_from": 0,
        "steps": 1000,
        "state": "finished",
    }
    return usual | facts


STAY = "--- second stay ---"
LEFT_BEHIND = (  # lines of other runs' logs, for the notebook
    "# a GPU's memory was exceeded; run.json stays at 'running':", MEMORY,
    "# the time limit came; run.json stays at 'running':", TIME,
    "# queued again; what follows is the second stay's:", STAY,
)  # fmt: skip
BAD_RUN = run_of(held=PARAMETERS // 8), f"{STEPS}\n{SAVED}\n{STEPS}"  # the example in the notebook
DDP = {"strategy": "ddp", "wrapper": "DistributedDataParallel"}
CASES = (
    ("shards", *BAD_RUN),
    ("fine", run_of(), f"{STEPS}\n{SAVED}"),
    ("ranks", run_of(1, PARAMETERS, strategy="single", wrapper="Qwen3ForCausalLM", effective_batch=4), STEPS),
    ("ranks", run_of(15, PARAMETERS // 15, effective_batch=60), STEPS),
    ("shards", run_of(held=PARAMETERS, **DDP), STEPS),
    ("batch", run_of(effective_batch=16), STEPS),
    ("memory", run_of(state="running", steps=1), f"{STEPS}\n{MEMORY}"),
    ("time", run_of(state="running", steps=380), f"{STEPS}\n{TIME}"),
    ("forgot", run_of(), f"{SAVED}\n{STEPS}\n{TIME}\n{STAY}\n{STEPS}"),
    ("fine", run_of(resumed_from=400), f"{SAVED}\n{TIME}\n{STAY}\n{STEPS}"),
)
WHY = {
    "ranks": "Compare world_size with the ranks that were asked for, before anything else: batch and shards follow.",
    "shards": "parameters_held lists what each rank holds. Is it an Nth? The name of the strategy proves nothing.",
    "batch": "All ranks are there and hold what they should: is the effective batch the one asked for?",
    "memory": "run.json stopped at 'running'. Who says why? The last lines of the log.",
    "time": "run.json stopped at 'running', and the log names the time limit.",
    "forgot": "The log shows a checkpoint from the first stay, and resumed_from is 0.",
    "fine": "Nothing is wrong here. A time limit in the log of the first stay is no fault if the second stay resumed.",
}


@exercise(
    "15.8",
    "what went wrong?",
    hints=(
        "Decide in which order to look. One fault explains others: with too few ranks the batch is wrong as well.",
        "Ranks, then shards, then batch, from run.json against what was asked. Then the state: a run that never got "
        "past 'running' left its reason in the log. Then whether a saved checkpoint was used.",
    ),
    kind="debug",
)
def check_diagnosis(answer: Callable[[dict[str, Any], dict[str, Any], str], str]) -> None:
    """``answer(asked, run, log)`` returns a key of ``CAUSES``; ``asked`` also comes with other numbers."""
    for cause, run, log in CASES:
        _check_case(answer, cause, ASKED, run, log)
    half = {"ranks": 8, "strategy": "fsdp2", "effective_batch": 32, "parameters_held": PARAMETERS // 8}
    _check_case(answer, "fine", half, run_of(8, PARAMETERS // 8, effective_batch=32), STEPS)
    _check_case(answer, "ranks", half, run_of(4, PARAMETERS // 4, effective_batch=16), STEPS)


def _check_case(answer: Callable, cause: str, asked: dict[str, Any], run: dict[str, Any], log: str) -> None:
    facts = f"world size {run['world_size']}, {run['strategy']}, state {run['state']!r}"
    given = f"{asked['ranks']} ranks asked for; {facts}, log ends with {log.splitlines()[-1][:60]!r}"
    got = ask(answer, dict(asked), dict(run), log, given=given, expected="one of the causes")
    if not isinstance(got, str) or got not in CAUSES:
        raise Wrong(
            given=given,
            expected=f"one of {', '.join(CAUSES)}",
            got=repr(got)[:200],
            hint="Return the cause's short name.",
        )
    if got != cause:
        raise Wrong(given=given, expected=f"{cause!r}: {CAUSES[cause]}", got=repr(got), hint=WHY[cause])


# 15.9: what somebody ordered; the rest is the learner's to decide
ORDER = {
    "model": "Qwen/Qwen3-4B",
    "nodes": 2,
    "gpus_per_node": 8,
    "gpu": "A100-40GB",
    "network": 12.5,
    "sequence_length": 4096,
    "global_batch": 128,
    "max_steps": 3000,
    "time_limit": 480,
    "arguments": ("--train_file=data/train.jsonl",),
}
NEAR_ENOUGH = 0.9  # of the best tokens/s


@exercise(
    "15.9",
    "plan a run, and write its files",
    hints=(
        "Begin with Spec(**ORDER) and its verdict; then compare strategies(Spec(**ORDER)). Less memory per GPU changes "
        "which of them is the best.",
        "A spec that fits and hardly waits: vary checkpointing, replicas and micro_batch. Then one call writes all "
        "files into the folder, and check(folder) must find nothing.",
    ),
)
def check_launch(answer: Callable[[str], Any]) -> None:
    """``answer(folder)`` writes the launch files of the order into ``folder`` and returns the spec."""
    from course_utils.launch import SpecError
    from course_utils.launch.check.folder import check
    from course_utils.launch.spec import read_spec

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "launch")
        given, expected = "an empty place for the folder", "the order's launch files in it"
        ask(answer, str(folder), given=given, expected="the spec, returned")
        if not (folder / "spec.yaml").is_file():
            hint = "Nothing was written. `write(spec, folder)` writes the files of a spec."
            raise Wrong(given=given, expected=expected, got="no spec.yaml in the folder", hint=hint)
        try:
            spec = read_spec(folder / "spec.yaml")
        except SpecError as error:
            hint = "Let `write` make the files; a spec.yaml by hand is easily wrong."
            raise Wrong(given=given, expected=expected, got=str(error), hint=hint) from None
        _check_order(spec)
        different = [row for row in check(folder) if not row.same]
    if different:
        row = different[0]
        hint = "A file was changed after it was written, or belongs to another spec: run check(folder)."
        got = f"{row.file}, {row.field}: {row.resolved!r}"
        raise Wrong(given=given, expected=f"{row.field}: {row.asked!r}", got=got[:300], hint=hint)


def _check_order(spec: Any) -> None:
    """Nothing of the order changed, it fits, and it is fast."""
    from course_utils.launch.planner.plan import plan
    from course_utils.launch.planner.report import verdict
    from course_utils.lessons.lesson_15.fast_plans import best_tokens_per_second, slow_because

    given = "the spec.yaml that was written"
    for field, value in ORDER.items():
        if getattr(spec, field) != value:
            got = f"{field}={getattr(spec, field)!r}"
            hint = "This was ordered. Decide about strategy, micro-batch and memory."
            raise Wrong(given=given, expected=f"{field}={value!r}", got=got, hint=hint)
    if spec.precision != "bf16" or spec.lora_rank:
        got = f"precision={spec.precision!r}, lora_rank={spec.lora_rank}"
        hint = "That is another training: precision bf16, and all weights trained, were ordered."
        raise Wrong(given=given, expected="precision='bf16', lora_rank=0", got=got, hint=hint)
    found = plan(spec)
    if not found.fits:
        hint = "It does not fit: its verdict names a change that helps."
        raise Wrong(given=given, expected="a plan that fits", got=verdict(found), hint=hint)
    best = best_tokens_per_second(ORDER)
    if found.speed.tokens_per_second < NEAR_ENOUGH * best:
        got = f"{found.speed.tokens_per_second:,.0f} tokens/s, {found.speed.exposed:.1f} s of waiting in each step"
        hint = (
            slow_because(found)
            if not spec.checkpointing
            else (
                "It fits, but it waits. Keep the weights inside a machine, or take fewer and longer micro-batches: "
                "both wait less."
            )
        )
        raise Wrong(given=given, expected=f"at least {NEAR_ENOUGH:.0%} of {best:,.0f} tokens/s", got=got, hint=hint)
