"""Wrong answers to lesson 08's exercises, each with words of the hint it must get. Ranks import them by name."""

import torch
from torch import nn
from torch.utils.data import DataLoader


def loader_not_taken(accelerator, model, rows):
    """As given in the lesson."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(rows, batch_size=4)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.prepare(loader)
    return epoch(accelerator, model, optimizer, loader)


def model_not_prepared(accelerator, model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer, loader = accelerator.prepare(optimizer, DataLoader(rows, batch_size=4))
    return epoch(accelerator, model, optimizer, loader)


def other_rate(accelerator, model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * accelerator.num_processes)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=4))
    return epoch(accelerator, model, optimizer, loader)


def returns_text(accelerator, model, rows):
    return "the model"


def epoch(accelerator, model, optimizer, loader):
    for x, y in loader:
        accelerator.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    return model


def right_of(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(-1) == y).float()


def own_rows(accelerator, model, loader):
    return torch.cat([right_of(model, x, y) for x, y in loader]).mean().item()


def gathers_all(accelerator, model, loader):
    return torch.cat([accelerator.gather(right_of(model, x, y)) for x, y in loader]).mean().item()


def mean_of_ranks(accelerator, model, loader):
    own = torch.cat([right_of(model, x, y) for x, y in loader]).mean()
    return accelerator.reduce(own, "mean").item()


def mean_of_batches(accelerator, model, loader):
    shares = [accelerator.gather_for_metrics(right_of(model, x, y)).mean() for x, y in loader]
    return (sum(shares) / len(shares)).item()


def counts_rows(accelerator, model, loader):
    return sum(accelerator.gather_for_metrics(right_of(model, x, y)).sum().item() for x, y in loader)


def no_return(accelerator, model, loader):
    own_rows(accelerator, model, loader)


def loop(accelerator, model, optimizer, scheduler, loader, clip=0.5, exchange="mean"):
    losses = []
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), exchange).item() if exchange else loss.item())
    return model, losses


def own_losses(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), exchange=None)


def summed_losses(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), exchange="sum")


def unprepared_loader(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler), loader)


def unprepared_model(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, model, *accelerator.prepare(optimizer, scheduler, loader))


def other_clipping(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), clip=5.0)


def raises(accelerator, model, optimizer, scheduler, loader):
    return accelerator.prepare_everything(model)


WRONG = {
    "08.1": [
        ({"batches": 8, "twice": [0, 1, 2, 3, 4]}, "those of one process"),
        ({"batches": 9, "twice": []}, "of all ranks together"),
        ({"batches": 2, "twice": []}, "nothing is dropped"),
        ({"batches": 3, "twice": [0, 1]}, "need one more"),
        ({"batches": 3, "twice": [17, 18, 19, 20, 21]}, "27 rows"),
        ({}, "Give both"),
        (3, "Give both"),
    ],
    "08.2": [
        (loader_not_taken, "Which object deals rows out"),
        (model_not_prepared, "nothing averages their gradients"),
        (other_rate, "leave the learning rate alone"),
        (returns_text, "Return the trained model"),
    ],
    "08.3": [
        (lambda steps, ranks, with_optimizer, split: steps, "one step per rank"),
        (lambda steps, ranks, with_optimizer, split: steps * ranks, "one call is one step"),
        (lambda steps, ranks, with_optimizer, split: steps * ranks if with_optimizer else steps, "split_batches=True"),
        (lambda steps, ranks, with_optimizer, split: steps // ranks, "one step per rank"),
    ],
    "08.4": [
        (own_rows, "its own rows"),
        (gathers_all, "counted twice"),
        (mean_of_batches, "mean of the batches"),
        (counts_rows, "not a share"),
        (no_return, "Return one number"),
    ],
    "08.5": [
        (own_losses, "this rank's own"),
        (summed_losses, "sum over the ranks"),
        (unprepared_loader, "does not deal them out"),
        (unprepared_model, "nothing averages"),
        (other_clipping, "clip where it clips"),
        (raises, "raised an exception on a rank"),
    ],
}
