"""A run of a second whose result depends on everything a checkpoint must carry. Started by the kill tests:

python tests/training/tiny_run.py FOLDER KILL_POINT
"""

import os
import random
import signal
import sys
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from course_utils.data.batches import ShuffledBatches
from course_utils.training import checkpoint
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import AdamW
from course_utils.training.schedules import make_scheduler

STEPS = 12


class TinyClassifier(nn.Module):
    def __init__(self, dropout=0.3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels, ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)


def make_rows(count=35):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(6, generator=generator), i % 3) for i in range(count)]


def collate(rows, noise=True):
    """Draws from Python's and NumPy's generators, as data augmentation does."""
    x = torch.stack([x for x, _ in rows])
    if noise:
        x = x * (1 + 0.1 * random.random()) + 0.1 * float(np.random.randn())
    return {"x": x, "labels": torch.tensor([label for _, label in rows])}


def build(seed=0):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = TinyClassifier()
    optimizer = AdamW(model.parameters(), lr=0.05)
    scheduler = make_scheduler(optimizer, "cosine", 3, STEPS)
    return model, optimizer, scheduler, ShuffledBatches(make_rows(), 4, collate, seed=seed)


def run(folder, max_steps=STEPS, save_every=1, resume=False, seed=0, on_step=None):
    """9 batches an epoch in windows of 2: 5 steps an epoch, the last window is short."""
    model, optimizer, scheduler, batches = build(seed)
    config = LoopConfig(max_steps, accumulation=2, save_every=save_every, folder=folder, resume=resume)
    history = train(model, batches, optimizer, config, scheduler, on_step=on_step)
    return model, history


def die(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(_model, path):
    with open(path, "wb") as file:
        file.write(b"\x10" * 100)
    die()


def half_removed(folder, **_options):
    """Delete one file of the folder, as a ``shutil.rmtree`` that is killed on its way."""
    if os.path.isdir(folder):
        os.remove(os.path.join(folder, "state.pt"))
        die()


def die_at_second_rename():
    rename, calls = os.rename, []

    def replacement(source, target):
        calls.append(source)
        if len(calls) == 2:
            die()
        rename(source, target)

    return replacement


def arm(point):
    """Make this process kill itself at ``point``; "signal" waits for the parent to do it."""
    import safetensors.torch

    state = {"saves": 0}
    real = checkpoint.save_checkpoint

    def fifth_save(*args, **options):
        state["saves"] += 1
        if state["saves"] == 5:
            if point == "weights":
                safetensors.torch.save_model = half_a_file
            elif point == "state":
                torch.save = die
            elif point == "flush":
                checkpoint._flush_to_disk = die
            elif point == "rename":
                checkpoint.os.rename = die
            elif point in ("swap", "discard"):  # the second save of the same step has a folder to replace
                real(*args, **options)
                if point == "swap":
                    checkpoint.os.rename = die_at_second_rename()
                else:
                    checkpoint.shutil.rmtree = half_removed
        return real(*args, **options)

    import course_utils.training.loop as loop

    loop.save_checkpoint = fifth_save


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, point = sys.argv[1:]
    if point == "signal":
        run(folder, on_step=lambda record: print(record["step"], flush=True))
    else:
        arm(point)
        run(folder)
