"""A Trainer that generates while it evaluates, and token ids back to text (lesson 04).

Reference: transformers' page "Trainer", ``Seq2SeqTrainer`` and ``predict_with_generate``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer


def generation_trainer(
    model: Any,
    output_dir: str | Path,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    *,
    data_collator: Callable | None = None,
    compute_metrics: Callable | None = None,
    **settings: Any,
) -> Seq2SeqTrainer:
    """A Seq2SeqTrainer as quiet as ``quiet_trainer``; ``compute_metrics`` gets generated token ids (N, T).

    Args:
        **settings: go to Seq2SeqTrainingArguments, on top of ``predict_with_generate=True``.
    """
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
    from transformers.trainer_callback import PrinterCallback

    quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "dataloader_pin_memory": False}
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(output_dir=str(output_dir), **(quiet | {"predict_with_generate": True} | settings)),
        data_collator=data_collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def as_text(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """Token ids (N, T) as texts; -100, which pads predictions and labels, and special tokens are left out."""
    ids = np.asarray(ids)
    return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
