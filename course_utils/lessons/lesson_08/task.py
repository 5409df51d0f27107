"""What the runs of lesson 08 share: tokenized rows, a small classifier without dropout, the weights in one number.

Kept by the process that loaded it (``functools.cache``): the lesson's ranks stay, and load their rows once.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from course_utils.data.batches import IGNORED

MAX_LENGTH = 32
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
# Dropout draws random numbers on every rank, others on two than on one: off, so that runs can be compared exactly.
WITHOUT_DROPOUT = {
    "local": {"embedding_dropout": 0.0, "classifier_dropout": 0.0},
    "hub": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
}


@functools.cache
def load_rows(source: str, split: str = "train") -> list[dict[str, Any]]:
    """Tokenized rows of the course's classification task: ``input_ids``, ``attention_mask``, ``labels``."""
    from course_utils.data import load_classification
    from course_utils.models import load_tokenizer

    rows = load_classification(source)[split]
    encoded = load_tokenizer(source)(list(rows["text"]), truncation=True, max_length=MAX_LENGTH)
    columns = zip(encoded["input_ids"], encoded["attention_mask"], rows["label"], strict=True)
    return [{"input_ids": ids, "attention_mask": mask, "labels": label} for ids, mask, label in columns]


@functools.cache
def collator(source: str) -> Any:
    """Rows -> a batch, padded to the longest of them."""
    from transformers import DataCollatorWithPadding

    from course_utils.models import load_tokenizer

    return DataCollatorWithPadding(load_tokenizer(source))


def new_loader(source: str, batch_size: int, seed: int, numbered: bool = False) -> DataLoader:
    """Training rows in an order that depends on ``seed`` only, the same on every rank; not prepared.

    Args:
        numbered: batches also hold each row's ``number`` in the data set.
    """
    rows = _numbered(load_rows(source)) if numbered else load_rows(source)
    order = torch.Generator().manual_seed(seed)
    return DataLoader(rows, batch_size, shuffle=True, generator=order, collate_fn=collator(source))


def validation_loader(source: str, count: int, batch_size: int) -> DataLoader:
    """The first ``count`` validation rows in their order, with the ``number`` of each; not prepared."""
    rows = _numbered(load_rows(source, "validation")[:count])
    return DataLoader(rows, batch_size, collate_fn=collator(source))


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"number": i} for i, row in enumerate(rows)]


def new_model(source: str, seed: int, num_labels: int = 10) -> nn.Module:
    """A classifier with new weights that depend on ``seed`` only; local: one layer of width 64."""
    from course_utils.models import load_classifier

    torch.manual_seed(seed)
    sizes = SMALL if source == "local" else {}
    return load_classifier(num_labels if source == "local" else 2, source, **sizes, **WITHOUT_DROPOUT[source])


def some_weights(model: nn.Module, every: int = 101) -> list[float]:
    """Every 101st weight of ``model``, wrapped or not: enough to compare two models, short enough to send home."""
    weights = torch.cat([p.detach().flatten().cpu() for p in model.parameters()])
    return weights[::every].tolist()


def farthest(first: list[float], second: list[float]) -> float:
    """Largest difference between two rows of numbers."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@functools.cache
def masked_batches(source: str, count: int, batch_size: int, seed: int) -> list[dict[str, Tensor]]:
    """``count`` batches for the masked language model, with as many targets as chance has it (lesson 02).

    The first ones hold short rows and the last ones long rows: the numbers of targets differ as they do in real data.
    """
    from transformers import DataCollatorForLanguageModeling

    from course_utils.models import load_tokenizer

    torch.manual_seed(seed)
    collate = DataCollatorForLanguageModeling(load_tokenizer(source), mlm_probability=0.15)
    rows = [{"input_ids": row["input_ids"]} for row in load_rows(source)[: 50 * count * batch_size]]
    rows.sort(key=lambda row: len(row["input_ids"]))
    parts = [rows[i * len(rows) // count :][:batch_size] for i in range(count)]
    return [dict(collate(part)) for part in parts]


def new_masked_lm(source: str, seed: int) -> nn.Module:
    """A masked language model with new weights; local: one layer of width 64, without dropout."""
    from course_utils.models import load_masked_lm

    torch.manual_seed(seed)
    if source == "hub":
        return load_masked_lm(source).eval()
    return load_masked_lm(source, **SMALL, embedding_dropout=0.0)


def count(batch: dict[str, Tensor]) -> int:
    """Targets in a batch: labels other than -100."""
    return int(batch["labels"].ne(IGNORED).sum())


def gradient_of_all(batches: list[dict[str, Tensor]], source: str, seed: int) -> Tensor:
    """Gradient of the mean loss over the targets of all ``batches`` of ``new_masked_lm``, in this process, flat."""
    model, targets = new_masked_lm(source, seed), sum(map(count, batches))
    for batch in batches:
        (model(**batch).loss * count(batch) / targets).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def validation_loss(model: nn.Module, source: str, rows: int = 400) -> float:
    """Mean loss on the first ``rows`` validation rows, computed by every rank for itself."""
    return _evaluate(model, load_rows(source, "validation")[:rows], source)[0]


def load_saved(source: str, seed: int, folder: str) -> nn.Module:
    """The classifier that ``accelerator.save_model`` wrote into ``folder``."""
    from safetensors.torch import load_model

    model = new_model(source, seed)
    load_model(model, f"{folder}/model.safetensors")
    return model.eval()


def accuracy_of_one_process(source: str, seed: int, folder: str, count: int) -> float:
    """Share of right answers of the saved classifier on the first ``count`` validation rows, in this process."""
    return _evaluate(load_saved(source, seed, folder), load_rows(source, "validation")[:count], source)[1]


def largest_class_share(source: str, count: int) -> float:
    """Accuracy of always answering with the class that is largest among the training rows."""
    labels = [row["labels"] for row in load_rows(source)]
    largest = max(set(labels), key=labels.count)
    asked = [row["labels"] for row in load_rows(source, "validation")[:count]]
    return asked.count(largest) / len(asked)


def classify(model: nn.Module, source: str, sentences: list[str]) -> list[tuple[str, int]]:
    """Each sentence with the class the model gives it."""
    from course_utils.models import load_tokenizer

    encoded = load_tokenizer(source)(sentences, truncation=True, max_length=MAX_LENGTH)
    rows = [{"input_ids": i, "attention_mask": m} for i, m in zip(*_columns(encoded), strict=True)]
    with torch.no_grad():
        predicted = model(**collator(source)(rows)).logits.argmax(-1)
    return list(zip(sentences, predicted.tolist(), strict=True))


def linear_rates(steps: int) -> list[float]:
    """Lesson 01's linear schedule with a tenth of warm-up and a peak of 1: the learning rate of each step."""
    from course_utils.training.schedules import linear_with_warmup

    return [linear_with_warmup(step, steps // 10, steps) for step in range(steps)]


def _columns(encoded: Any) -> tuple[list, list]:
    return encoded["input_ids"], encoded["attention_mask"]


@torch.no_grad()
def _evaluate(model: nn.Module, rows: list[dict[str, Any]], source: str) -> tuple[float, float]:
    """Mean loss and accuracy over ``rows``; DDP's wrapper is taken off, whose forward may exchange buffers."""
    model = getattr(model, "module", model)
    was_training = model.training
    model.eval()
    loss, right = 0.0, 0
    for i in range(0, len(rows), 100):
        batch = collator(source)(rows[i : i + 100])
        outputs = model(**batch)
        loss += outputs.loss.item() * len(batch["labels"])
        right += (outputs.logits.argmax(-1) == batch["labels"]).sum().item()
    model.train(was_training)
    return loss / len(rows), right / len(rows)
