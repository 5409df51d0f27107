"""The run that every way of training on several processes must repeat (lessons 11 to 13).

A small decoder without dropout, fixed rows of unequal length, a few AdamW steps: in one process the loop is twenty
lines, and its losses and weights are what data parallel, FSDP and DeepSpeed are compared with.

    alone = train_alone(steps=10)                     # {"losses": [...], "weights": Tensor}
    mine = share(global_batch, rank, world_size)      # what a rank trains on
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.data.batches import IGNORED, Batch

VOCAB_SIZE = 512
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
MAX_LENGTH = 24
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
# A gradient that ought to be 0 is rounding noise of 1e-9, another one for each order of adding. AdamW divides by its
# size plus eps: torch's 1e-8 makes noticeable steps of it, and two right runs would differ by chance.
EPS = 1e-6


def new_model(seed: int = 0, **overrides: Any) -> nn.Module:
    """A Qwen3 decoder of width 64 with 2 layers and no dropout; its weights depend on ``seed`` only.

    Args:
        **overrides: configuration fields.
    """
    from course_utils.models import load_causal_lm

    torch.manual_seed(seed)
    return load_causal_lm(vocab_size=VOCAB_SIZE, **(SMALL | {"num_key_value_heads": 1} | overrides))


def new_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW as every compared run uses it: one group, torch's loop over tensors (``foreach=False``)."""
    return adamw(model.parameters())


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """``new_optimizer``'s settings for some parameters."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, eps=EPS, weight_decay=WEIGHT_DECAY, foreach=False)


@functools.cache
def rows(source: str = "local") -> list[list[int]]:
    """Token ids of the classification task's training sentences, at most ``MAX_LENGTH`` each, shortest 4."""
    from course_utils.data import load_classification

    texts = list(load_classification(source)["train"][:2000]["text"])
    return [ids for ids in encode(texts, source) if len(ids) >= 4]


def encode(texts: list[str], source: str = "local") -> list[list[int]]:
    """Token ids of ``texts``, at most ``MAX_LENGTH`` each.

    The tokenizer knows more words than this model: ids are folded into its vocabulary, the special ones kept.
    """
    from course_utils.models import load_tokenizer

    encoded = load_tokenizer(source)(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return [[i if i < 8 else 8 + i % (VOCAB_SIZE - 8) for i in ids] for ids in encoded]


def global_batches(steps: int, size: int = 8, seed: int = 0, source: str = "local") -> list[Batch]:
    """``steps`` batches of ``size`` rows, padded to one length: ids, mask, labels, (size, T) each.

    Each batch's rows are sorted by length, so that the ranks' shares hold different numbers of targets: an average of
    averages then differs from the mean over all targets (lesson 01).
    """
    order = torch.randperm(len(rows(source)), generator=torch.Generator().manual_seed(seed)).tolist()
    batches = []
    for step in range(steps):
        chosen = [rows(source)[order[(step * size + i) % len(order)]] for i in range(size)]
        batches.append(_padded(sorted(chosen, key=len)))
    return batches


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """The rows of rank ``rank``: the first of ``world_size`` equal parts for rank 0, and so on.

    Raises:
        ValueError: the rows cannot be shared out equally.
    """
    size = len(batch["input_ids"])
    if size % world_size:
        raise ValueError(f"world_size={world_size} does not divide {size} rows; allowed: a divisor of {size}")
    part = size // world_size
    return {name: value[rank * part : (rank + 1) * part] for name, value in batch.items()}


def count_targets(batch: Batch) -> int:
    """Positions that are predicted: the first of a row is not, and labels of -100 are not."""
    return int(batch["labels"][:, 1:].ne(IGNORED).sum())


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy summed over the targets of ``batch``, in nats; ``model`` may be wrapped."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def train_alone(
    steps: int = 10,
    size: int = 8,
    seed: int = 0,
    source: str = "local",
    accumulation: int = 1,
    max_grad_norm: float = 0,
) -> dict[str, Any]:
    """The reference: ``losses`` (a float a step, mean over all targets) and the final ``weights``, flat, in float32.

    Args:
        accumulation: micro-batches a step, contiguous shares of the global batch as ``world_size`` ranks would get.
        max_grad_norm: 0 does not clip.
    """
    model = new_model(seed)
    optimizer, losses = new_optimizer(model), []
    for batch in global_batches(steps, size, seed, source):
        targets, total = count_targets(batch), 0.0
        for i in range(accumulation):
            loss = summed_loss(model, share(batch, i, accumulation)) / targets
            loss.backward()
            total += loss.item()
        if max_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return {"losses": losses, "weights": flat_weights(model)}


@torch.no_grad()
def flat_weights(model: nn.Module) -> Tensor:
    """All parameters of an unsharded model in one row, float32, tied ones once."""
    return torch.cat([p.detach().flatten().float().cpu() for p in model.parameters()])


def hash_of(weights: Tensor) -> str:
    """A hash of every byte of flat ``weights``: equal where, and only where, all of them are equal to the bit."""
    return hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()


def _padded(chosen: list[list[int]]) -> Batch:
    length = max(map(len, chosen))
    ids = torch.zeros(len(chosen), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(chosen):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}
