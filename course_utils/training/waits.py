"""Count how often a computation waits for its device: ``.item()``, ``float(tensor)``, ``if tensor`` (lesson 05).

On a GPU each of them holds the program until all queued work is done. A CPU has no queue, but the calls are the same,
so they can be counted on any machine.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CountWaits(TorchDispatchMode):
    """``with CountWaits() as waits: ...``; then ``waits.count`` is the number of values that Python read.

    ``tolist`` on a CPU tensor reads memory directly and is not seen; on a GPU it waits once.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
