"""Exercises of lesson 12: bytes per GPU, a layer sharded by hand, a wrapping, ignored settings, a sharded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from course_utils.lessons.lesson_12.task import plugin_of
from course_utils.parallel import reference
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
        "Section 7's table names the right keys for three of them; sections 6 and 7 show the key for the layer class. "
        "For the checkpoints look into section 6's YAML.",
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
            resolved.get("transformer_cls_names_to_wrap") == "Qwen3DecoderLayer",
            "one unit per Qwen3DecoderLayer",
            "No layer class arrives: compare the key's name with the one in the YAML, less its fsdp_.",
        ),
        (
            resolved.get("auto_wrap_policy") == "TRANSFORMER_BASED_WRAP",
            "wrapping by layer class",
            "Another wrapping policy resolves, which does not look at the layer class.",
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


@contextmanager
def pretended_ranks(count: int) -> Iterator[None]:
    """This process is rank 1 of ``count`` inside the block; the others are pretended and exchange nothing.

    Raises:
        RuntimeError: this process belongs to a process group already.
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("this process is in a process group already; restart the kernel")
    dist.init_process_group("fake", rank=1, world_size=count, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@exercise(
    "12.5",
    "a model ready to be trained in shards",
    hints=(
        "Section 4 has all the pieces: which modules, in which order, with which two options? Section 7: what must "
        "come last?",
        "Collect the options once: a policy with two types, and a bool for resharding, which is the opposite of keep. "
        "Use them for each layer, then for the model; then make the optimizer.",
    ),
)
def check_shard_for_training(answer: Callable) -> None:
    """``answer(model, lr, keep)`` returns ``(model, optimizer)``."""
    for layers, lr, keep in ((2, 1e-3, False), (3, 5e-4, True), (1, 2e-3, False)):
        given = f"a decoder of {layers} layers, lr={lr}, keep={keep}, as rank 1 of 4"
        model = reference.new_model(num_hidden_layers=layers)
        with pretended_ranks(4):
            got = ask(answer, model, lr, keep, given=given, expected="(model, optimizer)")
            _check_sharded(got, layers, lr, keep, given)


def _check_sharded(got: Any, layers: int, lr: float, keep: bool, given: str) -> None:
    from torch.distributed.fsdp import FSDPModule

    if not (isinstance(got, list | tuple) and len(got) == 2 and hasattr(got[1], "param_groups")):
        hint = "Return two things: the sharded model and the optimizer."
        raise Wrong(given=given, expected="(model, optimizer)", got=type(got).__name__, hint=hint)
    model, optimizer = got

    def wrong(expected: str, found: str, hint: str) -> Wrong:
        return Wrong(given=given, expected=expected, got=found, hint=hint)

    if not isinstance(model, FSDPModule):
        whole = "The layers are sharded, but what is outside of them is whole on every rank: shard the model too."
        any_layer = any(isinstance(module, FSDPModule) for module in getattr(model, "modules", list)())
        hint = whole if any_layer else "Nothing is sharded: call fully_shard."
        raise wrong("a sharded model", type(model).__name__, hint)
    wrapped = [isinstance(layer, FSDPModule) for layer in model.model.layers]
    if not all(wrapped):
        hint = "The model is one unit, so all of it is gathered at once. Shard each layer before the model."
        raise wrong(f"{layers} layers and the rest", f"{sum(wrapped)} of {layers} layers are units", hint)
    own = set(model.parameters())
    used = [p for group in optimizer.param_groups for p in group["params"]]
    if set(used) != own:
        hint = "The optimizer holds parameters that the model no longer uses. Make it after sharding."
        raise wrong("an optimizer of the model's parameters", f"{len(own & set(used))} of {len(own)} are its own", hint)
    groups = [layer._get_fsdp_state()._fsdp_param_group for layer in model.model.layers]
    resharded = [group.post_forward_mesh_info is not None for group in groups]
    if any(kept == keep for kept in resharded):
        hint = "reshard_after_forward says whether to free; keep says the opposite. It must reach each layer."
        raise wrong(f"reshard_after_forward={not keep}", f"layers reshard: {resharded}", hint)
    policies = [group.mp_policy for group in (*groups, model._get_fsdp_state()._fsdp_param_group)]
    types = {(policy.param_dtype, policy.reduce_dtype) for policy in policies}
    if types != {(torch.bfloat16, torch.float32)}:
        hint = "mp_policy is missing on a unit, or its types are others: compute in bfloat16, sum in float32."
        raise wrong("bfloat16 and float32 in every unit", str(types), hint)
    rates = {group["lr"] for group in optimizer.param_groups}
    if rates != {lr} or not isinstance(optimizer, torch.optim.AdamW):
        raise wrong(f"AdamW, lr={lr}", f"{type(optimizer).__name__}, lr={rates}", "Is it AdamW, with the rate given?")
