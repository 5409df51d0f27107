"""What lesson 03's checkers train: a bag of words with dropout, whose ``forward`` swallows what it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Trainer

VOCABULARY, WIDTH, LABELS = 30, 8, 3
PAD = 0


class Bag(nn.Module):
    """Mean of the token vectors (B, W), dropout, one layer to logits (B, C).

    ``forward`` accepts any keyword and ignores it, as ModernBERT's classifier does: the Trainer then believes that the
    loss is divided by ``num_items_in_batch``.
    """

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **ignored: Any) -> dict[str, Tensor]:
        mask = input_ids.ne(PAD)[..., None].float()  # (B, T, 1)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        logits = self.head(self.dropout(mean))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fresh(dropout: float = 0.0, seed: int = 0) -> Bag:
    """A ``Bag`` with the weights of ``seed``; the global generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Bag(dropout)


def make_rows(count: int, weights: bool = False) -> list[dict[str, Any]]:
    """``count`` rows of 2 to 9 tokens with a label, and a ``weight`` of 0.5 to 2 where asked for."""
    generator = torch.Generator().manual_seed(count)
    rows = []
    for number in range(count):
        length = int(torch.randint(2, 10, (1,), generator=generator))
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        row: dict[str, Any] = {"input_ids": ids, "labels": number % LABELS}
        if weights:
            row["weight"] = 0.5 * (1 + number % 4)
        rows.append(row)
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad ``input_ids`` (B, T); every other column becomes a tensor (B,)."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": torch.tensor([row["input_ids"] + [PAD] * (width - len(row["input_ids"])) for row in rows])}
    return batch | {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}


def tiny_trainer(folder: str, rows: list[dict[str, Any]], **settings: Any) -> Trainer:
    """A quiet Trainer of a ``Bag`` with dropout on a CPU: 40 steps take a fifth of a second."""
    from course_utils.training.settings import quiet_trainer

    options = {"per_device_train_batch_size": 4, "learning_rate": 0.01, "use_cpu": True, "seed": 0} | settings
    return quiet_trainer(fresh(dropout=0.3), folder, rows, rows[:8], data_collator=collate, **options)
