"""Where a training step's memory goes, counted from inside: what autograd keeps, what is alive at the peak (lesson 09).

``torch.autograd.graph.saved_tensors_hooks`` is called for every tensor that an operator keeps for its backward pass:
https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks . Works on any device, and
counts bytes, so two machines agree.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

MIB = 2**20


class SavedTensors:
    """Counts what autograd keeps while the block runs: ``with SavedTensors(model) as saved: loss = ...``.

    Each storage counts once, however many views of it are kept. Parameters and buffers of ``model`` and the tensors of
    ``inputs`` do not count: they would be there anyway.

    Args:
        model: whose parameters and buffers are left out.
        inputs: tensors that are left out too, such as a batch's.

    Attributes:
        bytes: of all storages kept so far.
        by_shape: (shape, dtype) -> bytes, each storage under the first tensor seen of it.
    """

    def __init__(self, model: nn.Module | None = None, inputs: Iterable[Tensor] = ()):
        known = [*model.parameters(), *model.buffers()] if model is not None else []
        self._left_out = {tensor.untyped_storage().data_ptr() for tensor in [*known, *inputs]}
        self._seen: dict[int, Tensor] = {}  # the tensor is held, so that no address is used twice
        self.by_shape: Counter[tuple[tuple[int, ...], torch.dtype]] = Counter()

    @property
    def bytes(self) -> int:
        return sum(self.by_shape.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address and address not in self._left_out and address not in self._seen:
            self._seen[address] = tensor
            self.by_shape[tuple(tensor.shape), tensor.dtype] += storage.nbytes()
        return tensor

    def __enter__(self) -> SavedTensors:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self._seen.clear()


def saved_bytes(model: nn.Module, loss_of: Callable[[], Tensor], inputs: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps at the end of ``loss_of()``: what waits for the backward pass."""
    with SavedTensors(model, inputs) as saved:
        loss_of()
    return saved.bytes


class LiveTensors(TorchDispatchMode):
    """Follows each storage from its birth to its death: ``.peak`` is the most bytes that lived at once.

    Counts what operators allocate while the block runs, gradients included; what existed before counts nothing. A
    simplified ``torch.distributed._tools.mem_tracker.MemTracker``, which also says what each tensor is.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        before = {id(t.untyped_storage()) for t in _tensors((arguments, options))}
        result = function(*arguments, **(options or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) in before or storage in self._known:
                continue
            size = storage.nbytes()
            self._known.add(storage)
            self.now += size
            weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, list | tuple) or hasattr(values, "__iter__") and not isinstance(values, str):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that ``function()`` held at once in tensors it made itself."""
    with LiveTensors() as live:
        function()
    return live.peak
