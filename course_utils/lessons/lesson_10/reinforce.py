"""A short run of GRPO by hand: sample, reward, advantages, one step, again; recorded by bench/bench_grpo.py."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.data.instructions import Template, pad_left
from course_utils.lessons.lesson_10 import task
from course_utils.training.preference import group_advantages, grpo_loss

GROUP = 8  # answers a prompt


def recorded() -> dict[str, Any]:
    """What bench/bench_grpo.py has written."""
    root = Path(__file__).parents[3]
    return json.loads((root / "bench" / "results" / "grpo.json").read_text())


def reward(text: str, wanted: str, names: set[str]) -> float:
    """1 for the wanted name, 0.2 for another of ``names``, else 0."""
    return 1.0 if text == wanted else 0.2 if text in names else 0.0


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[str], new: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    """``GROUP`` answers to each prompt, side by side: the batch ``(N, T + new)``, and which of its last ``new`` tokens
    belong to the answer, end token included, ``(N, new)``."""
    batch = pad_left([tokenizer(prompt)["input_ids"][-task.MAX_LENGTH :] for prompt in prompts], tokenizer.pad_token_id)
    batch = {name: value.repeat_interleave(GROUP, 0) for name, value in batch.items()}
    end = tokenizer.eos_token_id
    ids = model.generate(
        **batch, do_sample=True, top_k=0, max_new_tokens=new, pad_token_id=tokenizer.pad_token_id, eos_token_id=end
    )
    made = ids[:, batch["input_ids"].shape[1] :]
    ended = made.eq(end).cumsum(1) - made.eq(end).long()  # end tokens before this one
    mask = ended.eq(0).long()
    return {"input_ids": ids, "attention_mask": torch.cat([batch["attention_mask"], mask], 1)}, mask


def answer_log_probs(model: Any, batch: dict[str, Tensor], new: int) -> Tensor:
    """log p of the last ``new`` tokens of each row, (N, new)."""
    inner = model.model(**batch).last_hidden_state[:, -new - 1 : -1]
    targets = batch["input_ids"][:, -new:]
    return model.lm_head(inner).float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def judged(model: Any, tokenizer: Any, template: Template, rows: Any) -> dict[str, float]:
    """On held-out rows, greedily: the share that is right, and the share of the answer that is given most often."""
    rendered = [template.render(row) for row in rows]
    model.eval()
    made = task.answers(model, tokenizer, [prompt for prompt, _ in rendered])
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
    right = sum(text == answer.strip() for text, (_, answer) in zip(texts, rendered, strict=True))
    return {"right": right / len(texts), "most_frequent": Counter(texts).most_common(1)[0][1] / len(texts)}


def grpo_run(
    start: Any,
    tokenizer: Any,
    template: Template,
    rows: Any,
    validation: Any,
    *,
    steps: int,
    rate: float,
    seed: int,
    prompts: int = 8,
    every: int = 10,
) -> dict[str, list[float]]:
    """Train a copy of ``start`` on sampled answers, ``prompts`` x ``GROUP`` a step.

    Returns:
        By step: ``reward`` (mean), ``silent`` (share of groups whose rewards are all equal). At step 0 and every
        ``every`` steps, on ``validation``: ``right`` and ``most_frequent``.
    """
    policy = task.fresh(start)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    rendered = [template.render(row) for row in rows]
    names = {answer.strip() for _, answer in rendered}
    history: dict[str, list[float]] = {"reward": [], "silent": [], "right": [], "most_frequent": []}
    for step in range(steps + 1):
        if step % every == 0:
            for name, value in judged(policy, tokenizer, template, validation).items():
                history[name].append(value)
        if step == steps:
            break
        chosen = [rendered[i] for i in torch.randint(len(rendered), (prompts,), generator=generator).tolist()]
        batch, mask = sample(policy, tokenizer, [prompt for prompt, _ in chosen])
        texts = tokenizer.batch_decode(batch["input_ids"][:, -mask.shape[1] :] * mask, skip_special_tokens=True)
        wanted = [answer.strip() for _, answer in chosen for _ in range(GROUP)]
        rewards = torch.tensor([reward(t.strip(), w, names) for t, w in zip(texts, wanted, strict=True)])
        log_probs = answer_log_probs(policy, batch, mask.shape[1])
        loss = grpo_loss(log_probs, log_probs.detach(), mask, group_advantages(rewards, GROUP))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history["reward"].append(rewards.mean().item())
        history["silent"].append((rewards.view(-1, GROUP).std(1) == 0).float().mean().item())
    return history
