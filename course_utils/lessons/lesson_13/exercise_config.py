"""Exercise 13.5: the whole JSON of a run, field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from course_utils.teach.exercise import Wrong, ask, exercise


@exercise(
    "13.5",
    "the JSON of a run",
    hints=(
        "Start from section 2's make_config and go through the fields of `run` one by one: which line does each set?",
        "rows = micro x accumulation x ranks. None for clipping is a number in the JSON. Offloading are two blocks, "
        "the second for 'all' only; stage3_ lines belong to stage 3 only.",
    ),
)
def check_config(answer: Callable) -> None:
    """``answer(run)`` returns the JSON."""
    for run in _runs():
        given = ", ".join(f"{name}={value}" for name, value in run.items())
        got = ask(answer, dict(run), given=given, expected="a JSON as a dict")
        if not isinstance(got, dict) or not isinstance(got.get("zero_optimization"), dict):
            hint = "Return a dict with a block zero_optimization, which holds the stage."
            raise Wrong(given=given, expected="a JSON", got=repr(got)[:80], hint=hint)
        for place, expected, hint in _due(run):
            block, _, name = place.rpartition(".")
            holder = got.get(block) if block else got
            value = holder.get(name) if isinstance(holder, dict) else None
            if place == "bf16.enabled" and not expected and holder is None:
                continue  # off by default
            if expected is ABSENT:
                if value not in (None, {"device": "none"}):
                    raise Wrong(given=given, expected=f"no {place}", got=repr(value), hint=hint)
            elif isinstance(expected, dict):
                if not isinstance(value, dict) or value.get("device") != expected["device"]:
                    raise Wrong(given=given, expected=f"{place} {expected}", got=repr(value), hint=hint)
            elif value != expected or isinstance(value, bool) != isinstance(expected, bool):
                raise Wrong(given=given, expected=f"{place}: {expected!r}", got=repr(value), hint=hint)


ABSENT = object()


def _runs() -> list[dict[str, Any]]:
    names = [
        "ranks",
        "rows",
        "micro",
        "stage",
        "offload",
        "bf16",
        "max_norm",
        "torch_optimizer",
        "smallest",
        "save_whole",
    ]
    values = (
        (8, 64, 2, 2, "none", True, 1.0, True, 0, False),
        (4, 32, 8, 3, "all", True, None, True, 10_000, True),
        (2, 12, 1, 1, "optimizer", False, 0.5, False, 0, False),
        (16, 256, 4, 3, "none", False, 1.0, True, 0, False),
    )
    return [dict(zip(names, one, strict=True)) for one in values]


def _due(run: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """(place in the JSON, what must stand there, hint)."""
    zero, three = "zero_optimization.", run["stage"] == 3
    place = {"device": "cpu"}
    batch = "Micro-batch x accumulation x ranks must be the rows of a step."
    absent3 = "Lines that begin with stage3_ mean nothing below stage 3: leave them out."
    found: list[tuple[str, Any, str]] = [
        ("train_batch_size", run["rows"], "Rows of a step on all ranks."),
        ("train_micro_batch_size_per_gpu", run["micro"], "Rows that a rank takes at once."),
        ("gradient_accumulation_steps", run["rows"] // run["micro"] // run["ranks"], batch),
        ("gradient_clipping", run["max_norm"] or 0.0, "Left out, DeepSpeed 0.19.8 clips at 1.0: write a number."),
        ("bf16.enabled", run["bf16"], "16 bit is switched on by the block bf16, with `enabled`."),
        (f"{zero}stage", run["stage"], "The stage stands inside zero_optimization."),
    ]
    if run["torch_optimizer"]:
        hint = "torch's optimizer is handed over: DeepSpeed must be told that it may use it."
        found.append(("zero_allow_untested_optimizer", True, hint))
    if run["torch_optimizer"] and run["offload"] != "none":
        hint = "While offloading, DeepSpeed insists on an optimizer of its own unless told otherwise (section 4)."
        found.append(("zero_force_ds_cpu_optimizer", False, hint))
    offloads = run["offload"] != "none"
    found.append((f"{zero}offload_optimizer", place if offloads else ABSENT, "Where does the optimizer's state wait?"))
    hint = "Parameters are offloaded for 'all' only, and wait where the optimizer waits."
    found.append((f"{zero}offload_param", place if run["offload"] == "all" else ABSENT, hint))
    hint = "Section 5: up to which size do tensors stay whole?"
    threshold = run["smallest"] if three else ABSENT
    found.append((f"{zero}stage3_param_persistence_threshold", threshold, hint if three else absent3))
    if run["save_whole"]:
        hint = "Section 9, last lines: which setting lets save_model write weights?"
        found.append((f"{zero}stage3_gather_16bit_weights_on_model_save", True, hint))
    elif not three:
        found.append((f"{zero}stage3_gather_16bit_weights_on_model_save", ABSENT, absent3))
    return found
