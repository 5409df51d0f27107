"""Solutions of lesson 11's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

import torch
from torch import nn

from course_utils.parallel.collectives import broadcast


def solution_1(link, chunks):
    """First every chunk collects the sum on its way round the ring, then the sums travel round."""
    right, left = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for step in range(1, link.size):
        out, into = (link.rank - step) % link.size, (link.rank - step - 1) % link.size
        chunks[into] = chunks[into] + link.exchange(chunks[out], right, chunks[into], left)
    for step in range(1, link.size):
        out, into = (link.rank - step + 1) % link.size, (link.rank - step) % link.size
        chunks[into] = link.exchange(chunks[out], right, chunks[into], left)
    return chunks


def solution_2(link, model, targets):
    """Back to sums, add, divide once; all gradients travel in one tensor."""
    total = link.all_reduce(torch.tensor(float(targets)))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = link.all_reduce(torch.cat([g.flatten() for g in gradients]) * targets) / total
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


# 6 windows (5 full ones and one of 2). Naive: 6 * 148. Buckets: 6 * 6. Without no_sync: 22 * 6.
solution_3 = {"naive": 888, "buckets": 36, "forgotten": 132}


def solution_4(count, rank, size, seed, epoch):
    """One order for all, made longer by its own beginning, and a stride."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    order += order[: -count % size]
    return order[rank::size]


def solution_5(link, model, batches, epochs):
    """An equal start, the epoch's own rows, and clipping after the average."""
    for parameter in model.parameters():
        broadcast(link, parameter.data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(epochs):
        for x, y in batches(epoch):
            nn.functional.cross_entropy(model(x), y).backward()
            for parameter in model.parameters():
                link.all_reduce(parameter.grad)
                parameter.grad /= link.size
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
    return model


def solution_6(link, model, optimizer, micro_batches):
    """Everything is divided by one number; so a sum over the ranks is all that is left to do."""
    own = sum((y != -100).sum() for _, y in micro_batches)
    targets, total = link.all_reduce(own.clone()), torch.zeros(())
    for x, y in micro_batches:
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / targets
        loss.backward()
        total += loss.detach()
    for parameter in model.parameters():
        link.all_reduce(parameter.grad)
    optimizer.step()
    optimizer.zero_grad()
    return link.all_reduce(total).item()
