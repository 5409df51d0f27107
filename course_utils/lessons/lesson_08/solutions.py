"""Solutions of lesson 08's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from course_utils.training.evaluation import macro_f1

# One process: 7 full batches and [21]. Filled up: [21, 0, 1]; the ninth, so that three ranks have three: [2, 3, 4].
solution_1 = {"batches": 3, "twice": [0, 1, 2, 3, 4]}


def solution_2(accelerator, model, rows):
    """What prepare returns is what the loop must use: the loader too."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(rows, batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return model


def solution_3(optimizer_steps, num_processes, with_optimizer=True, split=False):
    """One step per rank and call, unless a setting says otherwise."""
    multiplied = with_optimizer and not split
    return optimizer_steps * num_processes if multiplied else optimizer_steps


def solution_4(accelerator, model, loader):
    """Dropout off; predictions and labels of all ranks without the repeated rows; one score; the mode as it was."""
    was_training = model.training
    model.eval()
    predicted, labels = [], []
    for x, y in loader:
        with torch.no_grad():
            classes = model(x).argmax(-1)
        classes, y = accelerator.gather_for_metrics((classes, y))
        predicted.append(classes)
        labels.append(y)
    model.train(was_training)
    return macro_f1(torch.cat(predicted), torch.cat(labels), 3)


def solution_5(accelerator, model, optimizer, scheduler, loader):
    """Only the last micro-batch of a step exchanges, clips, moves the schedule and closes a loss."""
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
    losses, total = [], 0.0
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            total += accelerator.reduce(loss.detach(), "mean").item() / 2
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(total)
                total = 0.0
    return model, losses
