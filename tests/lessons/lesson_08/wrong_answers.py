"""Wrong answers to lesson 08's exercises, each with words of the hint it must get. Ranks import them by name."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from course_utils.training.evaluation import macro_f1


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


def classes_of(model, x):
    with torch.no_grad():
        return model(x).argmax(-1)


def scored(accelerator, model, loader, gather, mode=False, back=True):
    """Macro-F1 of what ``gather`` makes of each batch's predictions and labels."""
    was_training = model.training
    model.train(mode)
    both = [gather((classes_of(model, x), y)) for x, y in loader]
    model.train(was_training if back else mode)
    return macro_f1(*(torch.cat(column) for column in zip(*both, strict=True)), 3)


def own_rows(accelerator, model, loader):
    return scored(accelerator, model, loader, tuple)


def gathers_all(accelerator, model, loader):
    return scored(accelerator, model, loader, accelerator.gather)


def mean_of_ranks(accelerator, model, loader):
    return accelerator.reduce(torch.tensor(own_rows(accelerator, model, loader)), "mean").item()


def mean_of_batches(accelerator, model, loader):
    model.eval()
    parts = [accelerator.gather_for_metrics((classes_of(model, x), y)) for x, y in loader]
    model.train()
    return sum(macro_f1(*part, 3) for part in parts) / len(parts)


def is_accuracy(accelerator, model, loader):
    model.eval()
    right = [accelerator.gather_for_metrics(classes_of(model, x) == y) for x, y in loader]
    model.train()
    return torch.cat(right).float().mean().item()


def with_dropout(accelerator, model, loader):
    return scored(accelerator, model, loader, accelerator.gather_for_metrics, mode=True)


def left_in_eval(accelerator, model, loader):
    return scored(accelerator, model, loader, accelerator.gather_for_metrics, back=False)


def no_return(accelerator, model, loader):
    own_rows(accelerator, model, loader)


def loop(accelerator, model, optimizer, scheduler, loader, clip=0.5, exchange="mean", each="", share=2):
    """``each``: what is done at every micro-batch instead of once a step."""
    losses, total = [], 0.0
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            total += (accelerator.reduce(loss.detach(), exchange) if exchange else loss).item() / share
            if accelerator.sync_gradients or each == "clip":
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if accelerator.sync_gradients or each == "schedule":
                scheduler.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                losses.append(total)
                total = 0.0
    return model, losses


def own_losses(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), exchange=None)


def summed_losses(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), share=1)


def unprepared_loader(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler), loader)


def unprepared_model(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, model, *accelerator.prepare(optimizer, scheduler, loader))


def other_clipping(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), clip=5.0)


def clips_every_part(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), clip=0.2, each="clip")


def moves_twice(accelerator, model, optimizer, scheduler, loader):
    return loop(accelerator, *accelerator.prepare(model, optimizer, scheduler, loader), each="schedule")


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
        (mean_of_ranks, "mean of the ranks"),
        (mean_of_batches, "mean of the batches"),
        (is_accuracy, "That is the accuracy"),
        (with_dropout, "is dropout off"),
        (left_in_eval, "in the mode it was in"),
        (no_return, "Return one number"),
    ],
    "08.5": [
        (own_losses, "this rank's own"),
        (summed_losses, "a sum over two"),
        (unprepared_loader, "does not deal them out"),
        (unprepared_model, "nothing averages"),
        (other_clipping, "clip where it clips"),
        (clips_every_part, "clip where it clips"),
        (moves_twice, "moves once per step"),
        (raises, "raised an exception on a rank"),
    ],
}
