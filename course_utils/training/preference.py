"""Preference losses by hand: DPO from pairs, GRPO's advantages and loss from rewards (lesson 10).

Sources: Rafailov et al. 2023, "Direct Preference Optimization", arXiv:2305.18290, eq. 7; Shao et al. 2024,
"DeepSeekMath", arXiv:2402.03300, eq. 3 and section 4.1.2 (GRPO); Yu et al. 2025, "DAPO", arXiv:2503.14476, eq. 8
for the mean over tokens, which is TRL's default.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.data.batches import IGNORED


def token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """log p of each label, 0 where the label is -100.

    Args:
        logits: (B, T, V), of a causal model.
        labels: (B, T); position t is predicted by the logits of position t - 1.

    Returns:
        (B, T - 1).
    """
    targets = labels[:, 1:]
    picked = logits[:, :-1].float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return picked.masked_fill(targets == IGNORED, 0)


def sequence_log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log p(answer | prompt), (B,): the sum over the learnt tokens of each row."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return token_log_probs(logits, batch["labels"]).sum(-1)


class DPO(NamedTuple):
    """The mean loss, and how far each answer's log probability has moved from the reference, times beta."""

    loss: Tensor  # ()
    chosen_rewards: Tensor  # (B,)
    rejected_rewards: Tensor  # (B,)

    @property
    def margin(self) -> float:
        """Mean of chosen minus rejected reward."""
        return (self.chosen_rewards - self.rejected_rewards).mean().item()


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float = 0.1
) -> DPO:
    """-log sigmoid(beta (chosen's gain - rejected's gain)), a gain being log p under the model - under the reference.

    Args:
        chosen, rejected: (B,) log p of the preferred and of the other answer under the model that is trained.
        reference_chosen, reference_rejected: (B,) the same under the model at the start, without gradient.
        beta: how hard the model is held to the reference, > 0; smaller lets it go further.

    Raises:
        ValueError: ``beta`` is not above 0, or shapes differ.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta} is out of range; allowed: a number above 0")
    shapes = {tuple(x.shape) for x in (chosen, rejected, reference_chosen, reference_rejected)}
    if len(shapes) > 1:
        raise ValueError(f"the log probabilities have the shapes {sorted(shapes)}; allowed: one shape (B,)")
    chosen_rewards = beta * (chosen - reference_chosen)
    rejected_rewards = beta * (rejected - reference_rejected)
    loss = -F.logsigmoid(chosen_rewards - rejected_rewards).mean()
    return DPO(loss, chosen_rewards.detach(), rejected_rewards.detach())


def group_advantages(rewards: Tensor, group_size: int, scale: bool = True, epsilon: float = 1e-4) -> Tensor:
    """How much better each answer is than the other answers to its prompt: (r - mean) / (std + epsilon).

    Args:
        rewards: (N,), the answers to one prompt side by side.
        group_size: answers a prompt, >= 2.
        scale: divide by the group's standard deviation (unbiased).

    Raises:
        ValueError: ``group_size`` below 2, or N is not a multiple of it.
    """
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"group_size={group_size} for {len(rewards)} rewards; allowed: >= 2, a divisor of their number"
        )
    groups = rewards.float().view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if scale:
        centred = centred / (groups.std(1, keepdim=True) + epsilon)
    return centred.flatten()


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    beta: float = 0.0,
    reference_log_probs: Tensor | None = None,
) -> Tensor:
    """The clipped policy gradient, meaned over all answer tokens; with ``beta``, plus a pull to the reference.

    Args:
        log_probs: (N, T) log p of the answers' tokens under the model that is trained.
        old_log_probs: (N, T) under the model that wrote them.
        mask: (N, T), 1 where there is a token.
        advantages: (N,).
        clip: the ratio of the two probabilities counts between 1 - clip and 1 + clip only.
        beta: weight of the KL estimate exp(d) - d - 1, d = reference - log p.
        reference_log_probs: (N, T), needed where ``beta`` is not 0.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    gain = advantages[:, None]
    losses = -torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    if beta:
        d = reference_log_probs - log_probs
        losses = losses + beta * (torch.exp(d) - d - 1)
    return (losses * mask).sum() / mask.sum().clamp(min=1)
