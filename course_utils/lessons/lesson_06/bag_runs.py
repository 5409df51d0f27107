"""Runs of a bag of embeddings with any loss, a second each: what lesson 06 compares losses with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from course_utils.data.batches import Batch, ShuffledBatches
from course_utils.models.bag import BagClassifier
from course_utils.training.class_weights import rare_classes, recalls
from course_utils.training.evaluation import macro_f1
from course_utils.training.loop import LoopConfig, train
from course_utils.training.schedules import make_scheduler
from course_utils.training.settings import quiet_trainer
from course_utils.training.trainers import PartsTrainer


def padded(tokenizer: Any, split: Any, max_length: int = 48) -> Batch:
    """A whole split as one batch: ``input_ids``, ``attention_mask`` (N, T) and ``labels`` (N,)."""
    tokens = tokenizer(list(split["text"]), truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    labels = torch.tensor(list(split["label"]))
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], "labels": labels}


def rows_of(split: Batch, numbers: Sequence[int]) -> Batch:
    """These rows of a padded split, cut at the longest."""
    numbers = torch.tensor(numbers)
    length = int(split["attention_mask"][numbers].sum(1).max())
    tokens = ("input_ids", "attention_mask")
    return {name: value[numbers, :length] if name in tokens else value[numbers] for name, value in split.items()}


def train_bag(
    split: Batch, loss: Callable, seed: int, max_steps: int, vocab_size: int, num_labels: int
) -> BagClassifier:
    """Lesson 01's loop with ``loss`` as its loss function: 64 rows a step, AdamW, rate 1e-2 falling to 0.

    Args:
        loss: ``(outputs, labels, num_items_in_batch) -> scalar``, as the Trainer takes it.
        seed: of the weights and of the order; runs with the same seed differ in the loss only.
    """
    torch.manual_seed(seed)
    model = BagClassifier(vocab_size, num_labels)
    batches = ShuffledBatches(range(len(split["labels"])), 64, lambda rows: rows_of(split, rows), seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    scheduler = make_scheduler(optimizer, "linear", warmup_steps=0, max_steps=max_steps)
    train(model, batches, optimizer, LoopConfig(max_steps), scheduler, loss_function=loss)
    return model.eval()


def distil(
    split: Batch,
    parts: Callable,
    weights: Mapping[str, float],
    seed: int,
    max_steps: int,
    vocab_size: int,
    num_labels: int,
) -> PartsTrainer:
    """A bag trained by ``PartsTrainer`` on a loss of several parts: settings of ``train_bag``, a log every 10 steps.

    Args:
        split: padded rows, with whatever else ``parts`` reads from a batch.
        parts, weights: as ``PartsTrainer`` takes them.
        seed: of the weights and of the order.
    """
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            BagClassifier(vocab_size, num_labels),
            folder,
            list(range(len(split["labels"]))),
            data_collator=lambda rows: rows_of(split, rows),
            trainer_class=partial(PartsTrainer, parts=parts, weights=weights),
            max_steps=max_steps,
            per_device_train_batch_size=64,
            learning_rate=1e-2,
            weight_decay=0.01,
            logging_steps=10,
            seed=seed,
            use_cpu=True,
        )
        trainer.train()
    return trainer


@torch.no_grad()
def logits_of(model: BagClassifier, split: Batch) -> Tensor:
    """Logits (N, C) of every row of a padded split."""
    return model(split["input_ids"], split["attention_mask"]).logits


def scores(logits: Tensor, labels: Tensor, counts: Tensor) -> dict[str, float]:
    """Accuracy, macro-F1 and the mean recall of the rarest 30 % of the classes.

    Args:
        logits: (N, C).
        labels: (N,).
        counts: (C,), rows of each class in the training split.
    """
    predicted = logits.argmax(-1)
    rare = recalls(predicted, labels, len(counts))[rare_classes(counts)]
    return {
        "accuracy": (predicted == labels).double().mean().item(),
        "macro_f1": macro_f1(predicted, labels, len(counts)),
        "rare_recall": rare.double().nanmean().item(),
    }
