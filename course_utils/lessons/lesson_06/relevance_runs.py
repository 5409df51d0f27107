"""One step of a small causal language model on rows with a relevance: is accumulated the full batch?"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor

from course_utils.data.batches import IGNORED
from course_utils.training.settings import logged, quiet_trainer
from course_utils.training.trainers import RelevanceTrainer

VOCABULARY = 50


def relevance_rows(count: int = 16) -> list[dict[str, Tensor]]:
    """Rows of 4 to 11 random tokens; ``labels`` are the tokens, ``relevance`` lies between 0 and 1, all (T,)."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for number in range(count):
        ids = torch.randint(4, VOCABULARY, (4 + (5 * number) % 8,), generator=generator)
        rows.append({"input_ids": ids, "labels": ids.clone(), "relevance": torch.rand(len(ids), generator=generator)})
    return rows


def pad_rows(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch (B, T): ids filled up with 0, labels with -100, relevance with 0."""
    fill = {"input_ids": 0, "labels": IGNORED, "relevance": 0.0}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }
    return batch | {"attention_mask": batch["labels"].ne(IGNORED).long()}


def first_step(rows: list[dict[str, Tensor]], accumulation: int, **settings: Any) -> tuple[float, float]:
    """Loss and gradient norm of one ``RelevanceTrainer`` step over all ``rows`` in ``accumulation`` micro-batches."""
    from course_utils.models import load_causal_lm

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = load_causal_lm(vocab_size=VOCABULARY, **size, num_key_value_heads=1, head_dim=8)
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            model,
            folder,
            rows,
            data_collator=pad_rows,
            trainer_class=RelevanceTrainer,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=len(rows) // accumulation,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_grad_norm=1e9,
            remove_unused_columns=False,
            use_cpu=True,
            **settings,
        )
        trainer.train()
    return logged(trainer, "loss")[0][1], logged(trainer, "grad_norm")[0][1]
