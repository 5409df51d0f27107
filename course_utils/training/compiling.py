"""How often ``torch.compile`` compiles: a count without a compiler (lesson 09).

``torch.compile`` traces a function for the shapes it sees first and guards the result; another shape is traced again,
with that size as a variable, or with ``dynamic=False`` as one more constant, until a limit:
https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/compile/programming_model.recompilation.html
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


def graphs_after(
    function: Callable, calls: Iterable[Sequence[Any]], dynamic: bool | None = None, limit: int = 8
) -> list[int]:
    """How many graphs have been compiled after each call.

    The graphs are run as they were traced, so that nothing is generated and no C++ compiler is needed.

    Args:
        function: to be compiled.
        calls: the arguments of each call.
        dynamic: as ``torch.compile`` takes it: None varies a size from its second value on, True from the start, False
            never.
        limit: graphs of one function before it runs uncompiled; 8 is torch's default.

    Raises:
        ValueError: ``limit`` below 1.
    """
    import torch._dynamo

    if limit < 1:
        raise ValueError(f"limit={limit} is out of range; allowed: a whole number >= 1")
    graphs, found = [], []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns when the limit is reached
    torch._dynamo.reset()
    try:
        with torch._dynamo.config.patch(recompile_limit=limit):
            compiled = torch.compile(function, backend=keep, dynamic=dynamic)
            for arguments in calls:
                compiled(*arguments)
                found.append(len(graphs))
    finally:
        torch._dynamo.reset()
        logger.setLevel(level)
    return found
