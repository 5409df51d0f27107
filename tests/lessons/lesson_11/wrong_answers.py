"""Wrong answers to lesson 11's exercises, each with words of the hint it must get."""

import time

import torch
from torch import nn

from course_utils.lessons.lesson_11.solutions import solution_1
from course_utils.parallel.collectives import broadcast


def scatter_only(link, chunks):
    right, left = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for step in range(1, link.size):
        out, into = (link.rank - step) % link.size, (link.rank - step - 1) % link.size
        chunks[into] = chunks[into] + link.exchange(chunks[out], right, chunks[into], left)
    return chunks


def sends_first(link, chunks):
    right, left = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for chunk in range(link.size):
        link.send(chunks[chunk], right)
        chunks[chunk] = chunks[chunk] + link.receive(chunks[chunk], left)
    return chunks


def uses_all_reduce(link, chunks):
    return [link.all_reduce(chunk) for chunk in chunks]


def sends_everything(link, chunks):
    sums, passing = [chunk.clone() for chunk in chunks], [chunk.clone() for chunk in chunks]
    right, left = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for _ in range(link.size - 1):
        passing = [link.exchange(chunk, right, chunk, left) for chunk in passing]
        sums = [a + b for a, b in zip(sums, passing, strict=True)]
    extra = [link.exchange(chunk, right, chunk, left) for chunk in sums]
    return extra if link.size == 2 else sums


def replaces(link, chunks):
    right, left = (link.rank + 1) % link.size, (link.rank - 1) % link.size
    for step in range(1, 2 * link.size - 1):
        out, into = (link.rank - step) % link.size, (link.rank - step - 1) % link.size
        chunks[into] = link.exchange(chunks[out], right, chunks[into], left)
    return chunks


def returns_a_tensor(link, chunks):
    return torch.cat(solution_1(link, chunks))


def mean_of_means(link, model, targets, factor=1.0, divide=None):
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad *= factor
            link.all_reduce(parameter.grad)
            parameter.grad /= divide or link.size


def summed(link, model, targets):
    mean_of_means(link, model, targets, divide=1)


def weighted_sum(link, model, targets):
    mean_of_means(link, model, targets, factor=targets, divide=1)


def own_targets(link, model, targets):
    mean_of_means(link, model, targets, factor=targets, divide=targets)


def by_ranks(link, model, targets):
    mean_of_means(link, model, targets, factor=targets)


def unchanged(link, model, targets):
    return model


def frozen_forgotten(link, model, targets):
    for parameter in model.parameters():
        link.all_reduce(parameter.grad)


def one_by_one(link, model, targets):
    total = link.all_reduce(torch.tensor(float(targets))).item()
    mean_of_means(link, model, targets, factor=targets, divide=total)


def only_rank_0(link, model, targets):
    if link.rank == 0:
        link.all_reduce(torch.zeros(1))


def permutation(count, *seeds):
    return torch.randperm(count, generator=torch.Generator().manual_seed(sum(seeds))).tolist()


def with_the_class(count, rank, size, seed, epoch):
    return list(torch.utils.data.DistributedSampler(range(count), size, rank))


def filled(order, rank, size):
    return (order + order[: -len(order) % size])[rank::size]


def loop(link, model, batches, epochs, equal=True, pass_epoch=True, clip="after", scale=1.0):
    if equal:
        for parameter in model.parameters():
            broadcast(link, parameter.data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(epochs):
        for x, y in batches(epoch if pass_epoch else 0):
            nn.functional.cross_entropy(model(x), y).backward()
            if clip == "before":
                nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            for parameter in model.parameters():
                link.all_reduce(parameter.grad)
                parameter.grad *= scale / link.size
            if clip == "after":
                nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
    return model


def as_given(link, model, batches, epochs):
    return loop(link, model, batches, epochs, False, epochs == 1, "before")


def no_broadcast(link, model, batches, epochs):
    return loop(link, model, batches, epochs, equal=False)


def clips_before(link, model, batches, epochs):
    return loop(link, model, batches, epochs, clip="before")


def never_clips(link, model, batches, epochs):
    return loop(link, model, batches, epochs, clip="never")


def broadcast_on_rank_0(link, model, batches, epochs):
    if link.rank == 0:
        for parameter in model.parameters():
            broadcast(link, parameter.data)
    return loop(link, model, batches, epochs, equal=False)


def step(link, model, optimizer, micro_batches, how="right", every=False, zero=True, loss_of="all", scale=1.0):
    own = [int((y != -100).sum()) for _, y in micro_batches]
    targets = link.all_reduce(torch.tensor(float(sum(own))))
    total = torch.zeros(())
    if how == "means":
        targets = torch.tensor(1.0)
    for number, (x, y) in enumerate(micro_batches):
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / targets
        if how == "means":
            loss = loss / own[number] / len(micro_batches) / link.size
        (loss * scale).backward()
        total += loss.detach()
        if every:  # right, and as many exchanges as micro-batches
            for parameter in model.parameters():
                link.all_reduce(parameter.grad)
                if number < len(micro_batches) - 1:
                    parameter.grad /= link.size
    if not every:
        for parameter in model.parameters():
            link.all_reduce(parameter.grad)
    optimizer.step()
    if zero:
        optimizer.zero_grad()
    return link.all_reduce(total).item() if loss_of == "all" else total.item() if loss_of == "own" else None


def stepping(**changes):
    def wrong(link, model, optimizer, micro_batches):
        return step(link, model, optimizer, micro_batches, **changes)

    return wrong


def never_averages(link, model, optimizer, micro_batches):
    for x, y in micro_batches:
        nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    return 0.0


def never_steps(link, model, optimizer, micro_batches):
    return 0.0


def waits(link, chunks):
    time.sleep(0.1)
    return [link.receive(chunk, (link.rank + 1) % link.size) for chunk in chunks]


WRONG = {
    "11.1": [
        (scatter_only, "that was the reduce-scatter"),
        (sends_first, "all of them send"),
        (waits, "Ranks waited for one another"),
        (uses_all_reduce, "what you are to write"),
        (sends_everything, "this is no ring"),
        (replaces, "No chunk is complete"),
        (returns_a_tensor, "Return the list of chunks"),
    ],
    "11.2": [
        (mean_of_means, "mean of means"),
        (summed, "which was a mean already"),
        (weighted_sum, "still to be divided"),
        (own_targets, "this rank's targets"),
        (by_ranks, "Divided by the ranks"),
        (unchanged, "as they were"),
        (frozen_forgotten, "raised an exception"),
        (one_by_one, "in too many messages"),
        (only_rank_0, "Ranks waited for one another"),
    ],
    "11.3": [
        ({"naive": 740, "buckets": 30, "forgotten": 132}, "Five windows are full"),
        ({"naive": 3256, "buckets": 36, "forgotten": 132}, "send nothing"),
        ({"naive": 888, "buckets": 36, "forgotten": 36}, "in every backward"),
        ({"naive": 1776, "buckets": 72, "forgotten": 264}, "made by both ranks together"),
        ({}, "three numbers"),
        (888, "three numbers"),
    ],
    "11.4": [
        (lambda count, rank, size, seed, epoch: permutation(count, seed, epoch), "Every rank reads all rows"),
        (lambda count, rank, size, seed, epoch: permutation(count, seed, epoch)[rank::size], "different numbers"),
        (
            lambda count, rank, size, seed, epoch: permutation(count, seed, epoch)[rank : count // size * size : size],
            "left out here",
        ),
        (lambda count, rank, size, seed, epoch: filled(permutation(count, seed), rank, size), "depend on the epoch"),
        (
            lambda count, rank, size, seed, epoch: filled(permutation(count, seed, epoch, rank), rank, size),
            "draw the same order",
        ),
        (lambda count, rank, size, seed, epoch: filled(list(range(count)), rank, size), "Nothing is shuffled"),
        (lambda count, rank, size, seed, epoch: "rows", "whole numbers"),
        (with_the_class, "the class you are to write"),
    ],
    "11.5": [
        (as_given, "set_epoch, forgotten"),
        (no_broadcast, "get rank 0's"),
        (clips_before, "before the average"),
        (never_clips, "average, clip, step"),
        (broadcast_on_rank_0, "get rank 0's"),
        (lambda link, model, batches, epochs: "a model", "Return the trained model"),
    ],
    "11.6": [
        (stepping(how="means"), "mean of means"),
        (stepping(scale=0.5), "something divides or adds twice"),
        (stepping(zero=False), "still there"),
        (stepping(loss_of="own"), "a loss of its own"),
        (stepping(loss_of="none"), "as one number"),
        (stepping(every=True), "travel once a step"),
        (never_averages, "stepped with different gradients"),
        (never_steps, "does the optimizer step"),
    ],
}
