"""Exercises of lesson 13: bytes of a stage, "auto" by hand, a JSON with faults, a stage for a budget.

The last one, a whole JSON, is in ``exercise_config``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from course_utils.lessons.lesson_13 import exercise_config  # noqa: F401 - registers 13.5
from course_utils.lessons.lesson_13.runs import predicted
from course_utils.teach.exercise import Wrong, ask, exercise

MB = {"parameters": 120, "gradients": 120, "copies": 15, "optimizer": 30}


@exercise(
    "13.1",
    "bytes of ZeRO-1 on eight ranks",
    hints=(
        "Section 4's table: column 1. Which of the four rows have an N in it?",
        "A number in fp32 takes 4 bytes. Weights and gradients are whole, copies and moments are divided by the ranks.",
    ),
    kind="predict",
)
def check_bytes(answer: Any) -> None:
    """``answer`` is ``{"parameters": ..., "gradients": ..., "copies": ..., "optimizer": ...}`` in MB."""
    given = "30 million parameters, fp32, AdamW, ZeRO-1 on 8 ranks"
    if not isinstance(answer, dict) or MB.keys() - answer.keys():
        hint = "Give all four numbers, in MB, under 'parameters', 'gradients', 'copies', 'optimizer'."
        raise Wrong(given=given, expected="four numbers", got=repr(answer), hint=hint)
    hints = {
        ("parameters", 15): "Weights are cut in stage 3 only.",
        ("gradients", 15): "Gradients are cut from stage 2 on; in stage 1 each rank keeps all of them.",
        ("copies", 120): "The copies are for the update, and each rank updates its own slice only.",
        ("copies", 0): "DeepSpeed's optimizer works on copies of its own, in fp32 too.",
        ("optimizer", 240): "That is plain data parallel: stage 1 divides the moments by the ranks.",
        ("optimizer", 15): "AdamW has two moments for each parameter.",
    }
    for kind, expected in MB.items():
        value = answer[kind]
        if not isinstance(value, int | float) or abs(value - expected) > 0.01 * expected:
            hint = hints.get(
                (kind, value), "How many bytes has a number, how many numbers are there, on how many ranks?"
            )
            if isinstance(value, int | float) and value >= 1e5:
                hint = "The question is for millions of bytes."
            raise Wrong(given=given, expected=f"the right number of MB for {kind}", got=repr(value), hint=hint)


@exercise(
    "13.2",
    'fill in "auto"',
    hints=(
        "Go through nested dictionaries. Each name has one source in `known`, or is computed from several.",
        "Divide each of the three sizes by the width, in both columns: where is the quotient the same, where does it "
        "grow with the width? One is a little less than another, rounded down. The batch is the product of section 2.",
    ),
)
def check_fill(answer: Callable) -> None:
    """``answer(config, known)`` returns the filled config."""
    for config, known in _auto_cases():
        given = f"stage {config['zero_optimization']['stage']} with hidden_size {known['hidden_size']}"
        kept = copy.deepcopy(config)
        got = ask(answer, config, dict(known), given=given, expected="a dict")
        if config != kept:
            hint = "The given config was changed. Copy it first, the inner dictionaries too."
            raise Wrong(given=given, expected="the given config as it was", got="a changed one", hint=hint)
        if not isinstance(got, dict):
            raise Wrong(given=given, expected="a dict", got=repr(got), hint="Return the whole JSON as a dict.")
        _compare(got, fill(kept, known), kept, given, "")


def fill(config: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's rules (transformers 5.23, ``HfTrainerDeepSpeedConfig``)."""
    hidden = known["hidden_size"]
    values = {
        "train_batch_size": known["micro"] * known["accumulation"] * known["ranks"],
        "train_micro_batch_size_per_gpu": known["micro"],
        "gradient_accumulation_steps": known["accumulation"],
        "gradient_clipping": known["max_grad_norm"],
        "enabled": known["bf16"],
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
    }
    found = {}
    for name, value in config.items():
        found[name] = fill(value, known) if isinstance(value, dict) else values[name] if value == "auto" else value
    return found


def _auto_cases() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    from course_utils.parallel.deepspeed_hf import auto_config

    base = {"micro": 4, "accumulation": 2, "ranks": 8, "max_grad_norm": 0.5, "bf16": True, "hidden_size": 128}
    half = auto_config(2) | {"gradient_clipping": 2.0, "bf16": {"enabled": False}}
    half["zero_optimization"]["reduce_bucket_size"] = 50_000
    other = base | {"micro": 1, "accumulation": 16, "ranks": 4, "bf16": False, "hidden_size": 1000}
    return [(auto_config(2), base), (half, other), (auto_config(3), other)]


def _compare(got: Any, expected: dict[str, Any], config: dict[str, Any], given: str, path: str) -> None:
    for name, value in expected.items():
        place = f"{path}{name}"
        if not isinstance(got, dict) or name not in got:
            hint = "Everything that was in the JSON must still be there, with its nesting."
            raise Wrong(given=given, expected=f"a value for {place}", got="none", hint=hint)
        if isinstance(value, dict):
            _compare(got[name], value, config[name], given, f"{place}.")
            continue
        if got[name] == value and isinstance(got[name], bool) == isinstance(value, bool):
            continue
        hint = f"Which number of `known` is meant by {name}?"
        if got[name] == "auto":
            hint = "This one is still auto. Nested dictionaries have their own."
        elif config[name] != "auto":
            hint = "This was not auto: leave numbers alone that somebody has written."
        elif name == "train_batch_size":
            hint = "Rows of a step on all ranks: three numbers multiplied."
        elif name.startswith(("reduce", "stage3")):
            hint = "Find the formula from the table's two widths, then use this hidden_size; sizes are whole numbers."
        raise Wrong(given=given, expected=f"{place} as the Trainer fills it", got=repr(got[name]), hint=hint)


@exercise(
    "13.3",
    "repair a JSON",
    hints=(
        "Sections 2, 5 and 8 have one fault each, or two. Two are lines that are missing.",
        "Check in this order: do the three batch numbers fit the ranks; who has the scheduler; is clipping written "
        "down; from which size on are tensors cut?",
    ),
    kind="debug",
)
def check_repair(answer: Callable) -> None:
    """``answer(config, ranks)`` returns the repaired config."""
    for config, ranks in _broken():
        given = f"train_batch_size {config['train_batch_size']} on {ranks} ranks"
        kept = copy.deepcopy(config)
        got = ask(answer, config, ranks, given=given, expected="a dict")
        if config != kept:
            hint = "The given config was changed. Copy it first, the inner dictionaries too."
            raise Wrong(given=given, expected="the given config as it was", got="a changed one", hint=hint)
        if not isinstance(got, dict) or not isinstance(got.get("zero_optimization"), dict):
            hint = "Return the whole JSON as a dict, with its block zero_optimization."
            raise Wrong(given=given, expected="a JSON", got=repr(got)[:80], hint=hint)
        _check_repaired(got, kept, ranks, given)


def _check_repaired(got: dict[str, Any], config: dict[str, Any], ranks: int, given: str) -> None:
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        if got.get(name) != config[name]:
            hint = "This number is what the loop wants: repair the other one of the three."
            raise Wrong(given=given, expected=f"{name} {config[name]}", got=repr(got.get(name)), hint=hint)
    due = config["train_batch_size"] // config["train_micro_batch_size_per_gpu"] // ranks
    if got.get("gradient_accumulation_steps", due) != due:
        hint = "Micro-batch x accumulation x ranks must be the batch."
        seen = repr(got["gradient_accumulation_steps"])
        raise Wrong(given=given, expected="accumulation that fits", got=seen, hint=hint)
    if "scheduler" in got:
        hint = "The loop makes its own scheduler: there is one too many."
        raise Wrong(given=given, expected="no scheduler block", got=repr(got["scheduler"]), hint=hint)
    clip = got.get("gradient_clipping")
    if clip is None or isinstance(clip, bool) or clip != 0:
        hint = "No clipping is wanted. Section 8: what does DeepSpeed do today when the line is missing?"
        raise Wrong(given=given, expected="a JSON that does not clip", got=f"gradient_clipping {clip!r}", hint=hint)
    zero, old = got["zero_optimization"], config["zero_optimization"]
    if zero.get("stage") != old["stage"] or zero.get("overlap_comm") != old["overlap_comm"]:
        hint = "Leave the stage and what is right as it is."
        raise Wrong(given=given, expected="the same stage and settings", got=repr(zero), hint=hint)
    if old["stage"] == 3 and zero.get("stage3_param_persistence_threshold") != 0:
        hint = "Every tensor is to be divided. Section 5: which stay whole, by default?"
        seen = repr(zero.get("stage3_param_persistence_threshold"))
        raise Wrong(given=given, expected="a threshold that lets nothing stay whole", got=seen, hint=hint)


def _broken() -> list[tuple[dict[str, Any], int]]:
    def config(batch: int, micro: int, accumulation: int, stage: int, **more: Any) -> dict[str, Any]:
        return {
            "train_batch_size": batch,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": stage, "overlap_comm": False},
        } | more

    scheduler = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}}
    return [
        (config(32, 4, 4, 3, **scheduler), 4),
        (config(64, 2, 2, 2, gradient_clipping=1.0, **scheduler), 8),
        (config(48, 3, 1, 3, gradient_clipping=0.0), 2),
        (config(16, 8, 2, 1), 1),
    ]


@exercise(
    "13.4",
    "a stage for a budget",
    hints=(
        "Write section 4's table as bytes for each of the four columns, then look for the first that fits.",
        "Stage 0 has no master copy, the others have one. With one rank nothing is divided, so compare the columns "
        "there.",
    ),
    kind="vary",
)
def check_stage(answer: Callable) -> None:
    """``answer(parameters, ranks, budget)`` returns 0, 1, 2, 3 or None."""
    cases = (
        (1_000_000, 4, 16_000_000),
        (1_000_000, 4, 12_000_000),
        (1_000_000, 4, 11_000_000),
        (1_000_000, 4, 8_000_000),
        (1_000_000, 4, 7_999_999),
        (1_000_000, 8, 4_500_000),
        (1_000_000, 1, 16_000_000),
        (2_000_000, 1, 31_000_000),
        (1_000_000, 4, 4_000_000),
    )
    for parameters, ranks, budget in cases:
        sizes = [sum(predicted(parameters, ranks, stage).values()) for stage in range(4)]
        expected = next((stage for stage, size in enumerate(sizes) if size <= budget), None)
        given = f"{parameters:,} parameters on {ranks} ranks, {budget:,} bytes each"
        try:
            got = answer(parameters, ranks, budget)
        except Exception as error:
            hint = "Your code raised an exception. Call it by hand on this input."
            raise Wrong(given=given, expected="a stage", got=f"{type(error).__name__}: {error}", hint=hint) from None
        if got == expected and not isinstance(got, bool):
            continue
        hint = "Add up the four rows of the table for each stage and take the first sum within the budget."
        if expected is None:
            hint = "Not even stage 3 fits here: return None."
        elif got is None or (isinstance(got, int) and got == expected + 1 and sizes[expected] == budget):
            hint = "Stage by stage: a sum that equals the budget fits too, and the lowest that fits counts."
        elif ranks == 1:
            hint = "On one rank nothing is divided, and stages 1 to 3 add a copy: which one takes least?"
        elif isinstance(got, int) and 0 <= got < expected:
            hint = f"Stage {got} takes {sizes[got]:,.0f} bytes. Did you count the master copy, and both moments?"
        elif isinstance(got, int) and expected < got <= 3:
            hint = "That stage fits, but a lower one does too, and lower stages send less."
        raise Wrong(given=given, expected=f"{expected}", got=repr(got), hint=hint)
