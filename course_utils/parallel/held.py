"""What a rank holds, in bytes, and what ranks exchange, in elements: measured, not computed (lessons 12 and 13).

``held`` looks at the memory behind tensors (their storages), each counted once, however many views it has. Of a DTensor
it counts the local shard. ``Exchanged`` sees torch's collectives as they are called, also those of C++ (DDP's reducer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

STATES = ("parameters", "gradients", "optimizer")


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that lies on this rank: of a DTensor the local shard, else the tensor itself."""
    return tensor._local_tensor if hasattr(tensor, "_local_tensor") else tensor


def bytes_behind(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind ``tensors``, views of the same one counted once, freed ones as 0."""
    storages = {}
    for tensor in tensors:
        storage = local(tensor).untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def held(model: nn.Module, optimizer: Any) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer state on this rank at this moment: ``STATES`` -> bytes.

    Parameters are the model's and those of the optimizer (ZeRO's slices). The optimizer's state leaves out single
    numbers (AdamW's count of steps). Call it between ``backward`` and ``step``, from the second step on: before the
    first one AdamW holds nothing, after ``zero_grad`` there are no gradients.
    """
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
        optimizer = optimizer.optimizer
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [*model.parameters(), *trained]
    state = (value for entry in optimizer.state.values() for value in entry.values())
    return {
        "parameters": bytes_behind(parameters),
        "gradients": bytes_behind(p.grad for p in parameters if p.grad is not None),
        "optimizer": bytes_behind(value for value in state if isinstance(value, Tensor) and value.dim()),
    }


DIVIDED = {"ddp": (), "zero1": STATES[2:], "zero2": STATES[1:], "zero3": STATES, "fully_shard": STATES}


def expected(parameters: int, ranks: int, kind: str) -> dict[str, float]:
    """Bytes on each rank by the formula: fp32, AdamW: 4 + 4 + 8 bytes a parameter, the sharded ones divided by N.

    Rajbhandari et al. 2020, figure 1, with fp32 in place of mixed precision; lesson 15's planner has the other types.

    Args:
        kind: a key of ``DIVIDED``; "fully_shard" stands for every FSDP.

    Raises:
        ValueError: an unknown ``kind``.
    """
    if kind not in DIVIDED:
        raise ValueError(f"kind={kind!r} is not known; allowed: {', '.join(DIVIDED)}")
    size = {"parameters": 4, "gradients": 4, "optimizer": 8}
    return {name: size[name] * parameters / (ranks if name in DIVIDED[kind] else 1) for name in STATES}


def expected_gathered(parameters: int, outer: int, kind: str, reshard_after_forward: bool = True) -> int:
    """Bytes of whole fp32 parameters that lie beside the shards when the forward pass has ended, by the formula.

    Args:
        outer: parameters in no layer: their unit stays, as the backward pass begins with it.
        kind: as for ``expected``; where parameters are not divided nothing is gathered.
    """
    if "parameters" not in DIVIDED[kind]:
        return 0
    return 4 * (outer if reshard_after_forward else parameters)


def gathered_bytes(model: nn.Module) -> int:
    """Bytes of whole parameters that ``fully_shard`` has gathered and not freed yet."""
    from torch.distributed.fsdp import FSDPModule

    states = (unit._get_fsdp_state()._fsdp_param_group for unit in model.modules() if isinstance(unit, FSDPModule))
    shards = (shard for group in states if group for shard in group.fsdp_params)
    return bytes_behind(output for shard in shards for output in getattr(shard, "all_gather_outputs", ()))


class Peak(TorchDispatchMode):
    """The largest value of ``measure()`` after any operation inside the ``with`` block, as ``.highest``."""

    def __init__(self, measure: Callable[[], int]):
        super().__init__()
        self.measure, self.highest = measure, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.highest = max(self.highest, self.measure())
        return result


class Exchanged(TorchDispatchMode):
    """Collectives inside the ``with`` block: ``.calls``, a list of (name, elements of the whole tensor).

    ``volume`` counts as the ZeRO paper does (section 7): an all-gather or a reduce-scatter of n elements moves n, an
    all-reduce, which is one after the other, 2 n. Rings of N ranks send (N - 1) / N of that.
    """

    NAMES = {
        "_allgather_base_": "all-gather",
        "allgather_": "all-gather",
        "allgather_into_tensor_coalesced_": "all-gather",
        "_reduce_scatter_base_": "reduce-scatter",
        "reduce_scatter_tensor_coalesced_": "reduce-scatter",
        "allreduce_": "all-reduce",
        "broadcast_": "broadcast",
        "all_gather_into_tensor": "all-gather",  # from here on: what DTensors use
        "reduce_scatter_tensor": "reduce-scatter",
        "all_reduce": "all-reduce",
        "broadcast": "broadcast",
    }

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "to_local") for kind in types):
            return NotImplemented  # a DTensor's turn: it makes the calls, which come here again
        namespace, _, name = func._schema.name.partition("::")
        result = func(*args, **(kwargs or {}))
        if namespace in ("c10d", "_c10d_functional") and name in self.NAMES:
            scattered = self.NAMES[name] == "reduce-scatter"
            whole = args[0]  # of a reduce-scatter the input, else the output
            if namespace == "c10d" and scattered:
                whole = args[1]
            elif namespace == "_c10d_functional" and not scattered:
                whole = result
            self.calls.append((self.NAMES[name], _elements(whole)))
        return result

    def count(self, name: str) -> int:
        """How often ``name`` was called."""
        return sum(called == name for called, _ in self.calls)

    @property
    def volume(self) -> int:
        return sum((2 if name == "all-reduce" else 1) * elements for name, elements in self.calls)


def _elements(tensors: Any) -> int:
    """Elements of a tensor, or of all in a list of tensors, or of lists of them."""
    return tensors.numel() if isinstance(tensors, Tensor) else sum(map(_elements, tensors))
