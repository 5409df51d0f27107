"""Exercise 5 of lesson 12: a model made ready to be trained in shards, as one of four pretended ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from course_utils.parallel import reference
from course_utils.teach.exercise import Wrong, ask, exercise


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
        "Number the layers. A layer reshards if it is not among the last keep of them; with keep = 0 all do. The "
        "policy goes to every unit, the model's too; then make the optimizer.",
    ),
)
def check_shard_for_training(answer: Callable) -> None:
    """``answer(model, lr, keep)`` returns ``(model, optimizer)``."""
    for layers, lr, keep in ((3, 1e-3, 1), (4, 5e-4, 2), (2, 2e-3, 0)):
        given = f"a decoder of {layers} layers, lr={lr}, keep={keep}, as rank 1 of 4"
        model = reference.new_model(num_hidden_layers=layers)
        with pretended_ranks(4):
            got = ask(answer, model, lr, keep, given=given, expected="(model, optimizer)")
            _check_sharded(got, layers, lr, keep, given)


def _check_sharded(got: Any, layers: int, lr: float, keep: int, given: str) -> None:
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
    expected = [number < layers - keep for number in range(layers)]
    if resharded != expected:
        hint = "Which layers stay gathered is wrong: the last keep of them, and no other."
        if keep == 0:
            hint = "With keep = 0 every layer is freed. Did you cut with layers[-0:]? That is the whole list."
        elif resharded == [not free for free in expected]:
            hint = "reshard_after_forward says whether to free; here it says whether to keep."
        elif resharded == expected[::-1]:
            hint = "These are the first layers. The backward pass begins with the last."
        elif all(resharded):
            hint = "Every layer is freed. The last keep of them need reshard_after_forward=False."
        elif not any(resharded):
            hint = "No layer is freed; only the last keep of them stay gathered."
        raise wrong(f"reshard_after_forward by layer: {expected}", f"{resharded}", hint)
    policies = [group.mp_policy for group in (*groups, model._get_fsdp_state()._fsdp_param_group)]
    types = {(policy.param_dtype, policy.reduce_dtype) for policy in policies}
    if types != {(torch.bfloat16, torch.float32)}:
        hint = "mp_policy is missing on a unit, or its types are others: compute in bfloat16, sum in float32."
        raise wrong("bfloat16 and float32 in every unit", str(types), hint)
    rates = {group["lr"] for group in optimizer.param_groups}
    if rates != {lr} or not isinstance(optimizer, torch.optim.AdamW):
        raise wrong(f"AdamW, lr={lr}", f"{type(optimizer).__name__}, lr={rates}", "Is it AdamW, with the rate given?")
