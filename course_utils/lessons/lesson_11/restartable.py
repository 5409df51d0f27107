"""A program that survives the death of a rank: ``torchrun --max-restarts 1 restartable.py folder steps kill_at``.

Data parallel by hand on a toy model. Rank 0 saves lesson 01's checkpoint every second step, before anybody goes on.
Rank 1 kills itself, as ``kill -9`` would, before step ``kill_at`` of its first life (0: never). torchrun then ends the
others and starts all ranks again; they read the newest complete checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
from torch import nn

from course_utils.parallel import report
from course_utils.parallel.data_parallel import AverageInBuckets
from course_utils.parallel.links import join_group
from course_utils.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


def rows(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of a step: x (8, 16), y (8, 4)."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 16, generator=generator)
    return x, torch.tanh(x[:, :4])


def train(folder: str, steps: int, kill_at: int = 0) -> dict[str, Any]:
    """Train, from the newest checkpoint in ``folder`` on if there is one, and say what happened."""
    life = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    link = join_group(timeout=60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer, wrapped = torch.optim.AdamW(model.parameters(), lr=1e-2), AverageInBuckets(model, link)
    checkpoint = latest_checkpoint(folder)
    begun_at = load_checkpoint(checkpoint, model, optimizer) if checkpoint else 0
    for step in range(begun_at + 1, steps + 1):
        if (life, link.rank, step) == (0, 1, kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        x, y = (part.tensor_split(link.size)[link.rank] for part in rows(step))
        nn.functional.mse_loss(wrapped(x), y).backward()
        wrapped.finish()
        optimizer.step()
        optimizer.zero_grad()
        if step % 2 == 0:
            if link.rank == 0:
                save_checkpoint(folder, step, model, optimizer)
            link.all_reduce(torch.zeros(1))  # nobody goes on before it is on the disk
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    own = {"node": int(os.environ.get("GROUP_RANK", 0)), "nodes": nodes, "local_rank": int(os.environ["LOCAL_RANK"])}
    return {"world_size": link.size, "life": life, "begun_at": begun_at, "weights": weights, **own}


if __name__ == "__main__":
    report(train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
