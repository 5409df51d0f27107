"""What lesson 10 repeats: rows of the task, one way to fine-tune, greedy answers and their scores."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.data.batches import IGNORED, ShuffledBatches
from course_utils.data.instructions import InstructionCollator, Template, encode, pad_left
from course_utils.training.base_lm import BASE_ROWS
from course_utils.training.intervals import Interval
from course_utils.training.lora import add_lora, lora_layers
from course_utils.training.paired import mean_interval
from course_utils.training.preference import dpo_loss, sequence_log_probs

MAX_LENGTH = 112  # tokens; a few rows are longer and lose the middle of their prompt


def take_rows(splits: Any, source: str = "local", held_out: int = 300) -> dict[str, Any]:
    """Of ``load_instructions``: training rows that the base has not met, and ``held_out`` of validation and test."""
    first = BASE_ROWS if source == "local" else 0
    last = min(first + 3_000, len(splits["train"]))
    rows = {name: splits[name].select(range(min(held_out, len(splits[name])))) for name in ("validation", "test")}
    return {"train": splits["train"].select(range(first, last))} | rows


def encode_rows(tokenizer: Any, template: Template, rows: Iterable[dict], max_length: int = MAX_LENGTH) -> list[dict]:
    """Examples with labels, one a row."""
    return [encode(tokenizer, *template.render(row), max_length=max_length) for row in rows]


def fine_tune(
    model: Any,
    examples: Sequence[dict],
    steps: int,
    learning_rate: float,
    seed: int = 0,
    batch_size: int = 32,
    pad_token_id: int = 0,
) -> list[float]:
    """Lesson 01's loop on a causal model, in place; only parameters that require a gradient are trained.

    Returns:
        The loss of each step: the mean over the batch's learnt tokens.
    """
    batches = ShuffledBatches(
        examples,
        batch_size,
        InstructionCollator(pad_token_id),
        seed=seed,
        lengths=[len(example["input_ids"]) for example in examples],
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=True)
    warmup = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / warmup) * (1 - s / steps))
    losses: list[float] = []
    model.train()
    while len(losses) < steps:
        for batch in batches:
            if len(losses) == steps:
                break
            loss = answer_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    model.eval()
    return losses


def answer_loss(model: Any, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """Cross-entropy of the learnt tokens; equal to the model's own loss, but the head meets only what is learnt."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = inner.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, :-1]
    targets = batch["labels"][:, 1:]
    learnt = targets.ne(IGNORED)
    return F.cross_entropy(inner.lm_head(hidden[learnt]), targets[learnt], reduction=reduction)


@torch.no_grad()
def answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 4, batch_size: int = 100
) -> list[list[int]]:
    """Greedy continuations of ``prompts``, token ids up to and with the end token (or ``max_new_tokens`` of them)."""
    found = []
    for start in range(0, len(prompts), batch_size):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + batch_size]]
        batch = pad_left(ids, tokenizer.pad_token_id)
        made = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row in made[:, batch["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            found.append(row[:end])
    return found


def scores(model: Any, tokenizer: Any, template: Template, rows: Any, max_new_tokens: int = 4) -> dict[str, float]:
    """``exact_match`` and ``stops`` (share of answers that end by themselves) on ``rows``, each from 0 to 1."""
    rendered = [template.render(row) for row in rows]
    made = answers(model, tokenizer, [prompt for prompt, _ in rendered], max_new_tokens)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
    hits = [text == answer.strip() for text, (_, answer) in zip(texts, rendered, strict=True)]
    stops = [tokenizer.eos_token_id in ids for ids in made]
    return {"exact_match": sum(hits) / len(hits), "stops": sum(stops) / len(stops)}


@torch.no_grad()
def text_loss(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 100) -> float:
    """Mean loss per token, in nats, of plain text: what a language model is judged by. ``exp`` of it: perplexity."""
    total, count = 0.0, 0
    for start in range(0, len(texts), batch_size):
        ids = [tokenizer(text)["input_ids"][:MAX_LENGTH] for text in texts[start : start + batch_size]]
        examples = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in ids]
        batch = InstructionCollator(tokenizer.pad_token_id)(examples)
        total += answer_loss(model, batch, reduction="sum").item()
        count += int(batch["labels"][:, 1:].ne(IGNORED).sum())
    return total / count


def unmasked(examples: Sequence[dict]) -> list[dict]:
    """The same examples with labels on every token, the prompt's too."""
    return [example | {"labels": list(example["input_ids"])} for example in examples]


def end_masked(examples: Sequence[dict], end: int) -> list[dict]:
    """What a collator does that takes every end token for padding: the end is no target any more."""
    hide = lambda labels: [IGNORED if label == end else label for label in labels]  # noqa: E731
    return [example | {"labels": hide(example["labels"])} for example in examples]


def masked_by_length(tokenizer: Any, prompt: str, answer: str) -> dict[str, list[int]]:
    """The usual mistake: as many tokens are masked as the prompt has *alone*."""
    count = len(tokenizer(prompt)["input_ids"])
    ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * count + ids[count:]}


def paired_interval(differences: Sequence[float]) -> Interval:
    """Mean and 95 % interval of differences between runs of the same seed (Student's t); one run has no interval."""
    if len(differences) < 2:
        return Interval(differences[0], float("nan"), float("nan"))
    return mean_interval(differences)


def unscale_refused(base: Any, batch: dict[str, Tensor]) -> str:
    """What torch's GradScaler says to adapters in float16: the message of its error, or "accepted"."""
    model = add_lora(fresh(base).half(), rank=4, alpha=8)
    for layer in lora_layers(model).values():
        layer.half()
    trained = [p for p in model.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    scaler.scale(answer_loss(model, batch)).backward()
    try:
        scaler.unscale_(optimizer)
    except ValueError as error:
        return str(error)
    return "accepted"


def pair_log_probs(model: Any, tokenizer: Any, triples: Sequence[tuple[str, str, str]]) -> tuple[Tensor, Tensor]:
    """log p of the chosen and of the rejected answers, (B,) each; triples are (prompt, chosen, rejected)."""
    collate = InstructionCollator(tokenizer.pad_token_id)
    sides = [[encode(tokenizer, row[0], row[side], MAX_LENGTH) for row in triples] for side in (1, 2)]
    return tuple(sequence_log_probs(model, collate(examples)) for examples in sides)


def train_dpo(
    start: Any, tokenizer: Any, triples: Sequence[tuple[str, str, str]], steps: int, rate: float = 2e-4, seed: int = 0
) -> tuple[Any, dict[str, list[float]]]:
    """DPO with 8 pairs a step from ``start``, which is also the reference: the trained copy, loss "
    "and margin by step."""
    policy = fresh(start).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    history: dict[str, list[float]] = {"loss": [], "margin": []}
    for _ in range(steps):
        chosen = [triples[i] for i in torch.randint(len(triples), (8,), generator=generator).tolist()]
        with torch.no_grad():
            reference = pair_log_probs(start, tokenizer, chosen)
        result = dpo_loss(*pair_log_probs(policy, tokenizer, chosen), *reference)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history["loss"].append(result.loss.item())
        history["margin"].append(result.margin)
    return policy.eval(), history


def share_of_short(model: Any, tokenizer: Any, template: Template, rows: Any) -> float:
    """Share of greedy answers that are a single word."""
    made = answers(model, tokenizer, [template.render(row)[0] for row in rows], max_new_tokens=8)
    return sum(len(tokenizer.decode(ids, skip_special_tokens=True).split()) == 1 for ids in made) / len(made)


def fresh(model: Any) -> Any:
    """A copy to train; the original stays as it is."""
    return copy.deepcopy(model)
