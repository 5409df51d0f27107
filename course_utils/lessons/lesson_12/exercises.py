"""Exercises 1 to 4 of lesson 12: bytes per GPU, a layer sharded by hand, a wrapping, ignored settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.lessons.lesson_12 import exercises_shard  # noqa: F401 - registers 12.5
from course_utils.lessons.lesson_12.task import plugin_of
from course_utils.teach.exercise import Wrong, ask, exercise

CLOSE = 1e-6


@exercise(
    "12.1",
    "bytes on each of four GPUs",
    hints=(
        "How many bytes has a parameter, a gradient, the two moments together? Then: which of them does the stage "
        "divide?",
        "Write three numbers per stage, divide those that the stage divides by 4, add up, and multiply by 2 billion.",
    ),
    kind="predict",
)
def check_bytes(answer: Any) -> None:
    """``answer`` maps ddp, zero1, zero2 and zero3 to GB."""
    given = "2 billion parameters, 2 + 2 + 4 bytes each, 4 GPUs"
    expected = {"ddp": 16, "zero1": 10, "zero2": 7, "zero3": 4}
    if not isinstance(answer, dict) or expected.keys() - answer.keys():
        hint = "Give four numbers, under 'ddp', 'zero1', 'zero2' and 'zero3'."
        raise Wrong(given=given, expected="{'ddp': ..., ...}", got=repr(answer), hint=hint)
    hints = {
        ("ddp", 32): "That is fp32: 16 bytes a parameter. Here each number has 2 bytes.",
        ("ddp", 12): "AdamW keeps two moments for each parameter, not one.",
        ("ddp", 4): "DDP divides nothing.",
        ("zero1", 4): "Stage 1 divides the optimizer's state only.",
        ("zero1", 12): "With N ranks a rank keeps an Nth of what is divided, and there are four ranks.",
        ("zero2", 8): "Are there two ranks or four? Divide what stage 2 divides by the number of GPUs.",
        ("zero2", 10): "Stage 2 divides the gradients as well.",
        ("zero3", 16): "Stage 3 divides all of it.",
        ("zero3", 8): "Four ranks: each keeps a quarter.",
    }
    for stage, size in expected.items():
        got = answer[stage]
        if not isinstance(got, int | float) or abs(got - size) > 0.01:
            kept = "Which of the three states does this stage divide by 4, and which stay whole?"
            hint = hints.get((stage, got) if isinstance(got, int | float) else None, kept)
            raise Wrong(given=f"{given}, {stage}", expected="GB on each GPU", got=repr(got), hint=hint)


@exercise(
    "12.2",
    "one layer, sharded by hand",
    hints=(
        "Section 2's picture: flatten, pad, cut. What must happen to the gradients before the cut?",
        "Add the gradients of all ranks, flatten weight and sum, pad both with zeros to a multiple of the ranks, cut "
        "both into equal slices, and update slice by slice.",
    ),
)
def check_sharded_step(answer: Callable) -> None:
    """``answer(weight, gradients, lr)`` returns a list of flat tensors."""
    for shape, ranks, lr in (((4, 6), 2, 0.5), ((3, 5), 2, 0.1), ((7,), 4, 1.0), ((2, 3, 3), 3, 0.2)):
        generator = torch.Generator().manual_seed(ranks)
        weight = torch.randn(shape, generator=generator)
        gradients = [torch.randn(shape, generator=generator) for _ in range(ranks)]
        given = f"a weight {shape} on {ranks} ranks, lr {lr}"
        got = ask(answer, weight.clone(), [g.clone() for g in gradients], lr, given=given, expected="a list of slices")
        _check_slices(got, weight, gradients, lr, given)


def _check_slices(got: Any, weight: Tensor, gradients: list[Tensor], lr: float, given: str) -> None:
    ranks, count = len(gradients), weight.numel()
    part = -(-count // ranks)
    expected = f"{ranks} flat tensors of {part} numbers"
    if not isinstance(got, list | tuple) or not all(isinstance(piece, Tensor) for piece in got):
        hint = "Return a list with a tensor for each rank."
        raise Wrong(given=given, expected=expected, got=type(got).__name__, hint=hint)
    shapes = [tuple(piece.shape) for piece in got]
    if shapes != [(part,)] * ranks:
        hint = "Each rank has one slice, flat, all equally long: pad before you cut."
        if any(len(shape) > 1 for shape in shapes):
            hint = "The slices are flat: (part,). Cut the flattened weight, not its rows."
        elif len(got) == ranks and shapes[0] == (count,):
            hint = "Each rank got the whole weight. Cut it."
        raise Wrong(given=given, expected=expected, got=str(shapes), hint=hint)
    found = torch.cat(list(got)).detach()
    total = torch.stack(gradients).sum(0)

    def close(gradient: Tensor) -> bool:
        wanted = (weight - lr * gradient).flatten()
        return bool((found[:count] - wanted).abs().max() <= CLOSE * ranks)

    if close(total):
        if found[count:].abs().sum() > 0:
            hint = "The padding must be zeros."
            raise Wrong(given=given, expected="zeros at the end", got=str(found[count:].tolist()), hint=hint)
        return
    hint = "The slices are cut well, but their numbers are not weight - lr * (sum of the gradients)."
    if close(total / ranks):
        hint = "That is the mean of the gradients; the sum is asked for."
    elif close(torch.zeros_like(total)):
        hint = "The weight is as it was: the step is missing."
    elif close(gradients[0]) or _own_gradients(found, weight, gradients, lr, part):
        hint = "A rank's slice must move by the gradients of all ranks, not by its own: reduce before you cut."
    elif close(-total):
        hint = "The step goes uphill: subtract."
    raise Wrong(given=given, expected="weight - lr * sum", got=f"first numbers {found[:3].tolist()}", hint=hint)


def _own_gradients(found: Tensor, weight: Tensor, gradients: list[Tensor], lr: float, part: int) -> bool:
    steps = [(weight - lr * gradient).flatten() for gradient in gradients]
    own = torch.cat([step[rank * part : (rank + 1) * part] for rank, step in enumerate(steps)])
    return bool((found[: len(own)] - own).abs().max() <= CLOSE * len(gradients))


@exercise(
    "12.3",
    "how many layers in a unit",
    hints=(
        "Write the peak as a sum of three terms: shards of all states, the outer unit, gathered units. Which depends "
        "on k?",
        "Try every divisor of num_layers from the largest down. States are 16 bytes per parameter over the GPUs, "
        "gathered parameters 4 bytes each and not divided. With a single unit there is no second one.",
    ),
    kind="vary",
)
def check_layers_per_unit(answer: Callable) -> None:
    """``answer(num_layers, layer, outside, gpus, budget)`` returns k."""
    cases = (
        (24, 2000, 12000, 8, 240_000),
        (12, 1000, 3000, 16, 44_000),
        (12, 1000, 5000, 4, 140_000),
        (12, 1000, 5000, 4, 80_000),
        (8, 1000, 2000, 2, 112_000),
    )
    for case in cases:
        num_layers, layer, outside, gpus, budget = case
        given = f"{num_layers} layers of {layer}, {outside} outside, {gpus} GPUs, {budget} bytes"
        got = ask(answer, *case, given=given, expected="a whole number")
        expected = _largest(case, _peak)
        if got == expected:
            continue
        hint = "Compute the peak for each divisor k of num_layers and take the largest k whose peak is within budget."
        for other, words in _MISTAKES.items():
            if got == _largest(case, other):
                hint = words
                break
        if isinstance(got, int) and got > 0 and num_layers % got:
            hint = "k must divide the number of layers."
        raise Wrong(given=given, expected=f"k = {expected}", got=repr(got), hint=hint)


def _peak(k: int, num_layers: int, layer: int, outside: int, gpus: int) -> float:
    units = min(2, num_layers // k)
    return 16 * (num_layers * layer + outside) / gpus + 4 * outside + 4 * units * k * layer


def _one_gathered(k: int, num_layers: int, layer: int, outside: int, gpus: int) -> float:
    return _peak(k, num_layers, layer, outside, gpus) - 4 * k * layer * (min(2, num_layers // k) - 1)


def _no_outer(k: int, num_layers: int, layer: int, outside: int, gpus: int) -> float:
    return _peak(k, num_layers, layer, outside, gpus) - 4 * outside


def _always_two(k: int, num_layers: int, layer: int, outside: int, gpus: int) -> float:
    return _peak(k, num_layers, layer, outside, gpus) + 4 * k * layer * (2 - min(2, num_layers // k))


def _no_states(k: int, num_layers: int, layer: int, outside: int, gpus: int) -> float:
    return _peak(k, num_layers, layer, outside, gpus) - 16 * (num_layers * layer + outside) / gpus


_MISTAKES = {
    _one_gathered: "One unit is computed while the next one is gathered: two of them are there.",
    _no_outer: "The outer unit is gathered as well, all the time.",
    _always_two: "If all layers are one unit, there is no second one to gather.",
    _no_states: "The shards of parameters, gradients and moments are there all the time.",
}


def _largest(case: tuple[int, ...], peak: Callable) -> int:
    num_layers, layer, outside, gpus, budget = case
    divisors = [k for k in range(1, num_layers + 1) if num_layers % k == 0]
    return max((k for k in divisors if peak(k, num_layers, layer, outside, gpus) <= budget), default=0)


@exercise(
    "12.4",
    "settings that arrive",
    hints=(
        "Feed task.plugin_of with the colleague's dict: which of the four wishes are in what comes back?",
        "Section 7's table names the right keys for two of them. The keys of section 6's YAML, less their fsdp_, are "
        "those for wrapping and checkpoints.",
    ),
    kind="debug",
)
def check_settings(answer: Any) -> None:
    """``answer`` is an ``fsdp_config``."""
    given = "TrainingArguments(fsdp=True, fsdp_config=repaired)"
    if not isinstance(answer, dict):
        raise Wrong(given=given, expected="a dict", got=repr(answer), hint="Give the repaired fsdp_config, a dict.")
    try:
        resolved = plugin_of(**answer)
    except Exception as error:
        hint = "These settings raise. Read the message: it names the setting."
        raise Wrong(given=given, expected="no error", got=f"{type(error).__name__}: {error}", hint=hint) from None
    got = "resolved to " + str({name: resolved.get(name) for name in sorted(resolved)})[:300]
    wishes = (
        (resolved.get("fsdp_version") == 2, "version 2", "That is FSDP1: FSDP2 was asked for, which is version 2."),
        (
            resolved.get("reshard_after_forward") is False,
            "no resharding",
            "It still reshards: FSDP2 has another key for it, which is true or false.",
        ),
        (resolved.get("cpu_offload") is True, "offloading", "Nothing is offloaded: the prefix fsdp_ hides the key."),
        (
            resolved.get("auto_wrap_policy") == "TRANSFORMER_BASED_WRAP",
            "wrapping by layer class",
            "The wrapping policy that resolves does not look at the layer class; which one wraps by layer class?",
        ),
        (
            resolved.get("transformer_cls_names_to_wrap") == "Qwen3DecoderLayer",
            "one unit per Qwen3DecoderLayer",
            "No layer class arrives: compare the key's name with the one in the YAML, less its fsdp_.",
        ),
        (
            resolved.get("state_dict_type") == "SHARDED_STATE_DICT",
            "sharded checkpoints",
            "Checkpoints are full, the Trainer's default: the key for their kind is called otherwise.",
        ),
    )
    for holds, expected, hint in wishes:
        if not holds:
            raise Wrong(given=given, expected=expected, got=got, hint=hint)
