"""Solutions of lesson 01's exercises."""

import math

import torch
from torch import Tensor


def solution_1(m: Tensor, v: Tensor, step: int, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """Bias correction: after ``step`` updates from zero, the averages' weights sum to 1 - beta**step, not to 1."""
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return m_hat, v_hat


def solution_2(p: Tensor, direction: Tensor, lr: float, weight_decay: float) -> Tensor:
    """Decoupled decay: the weight itself shrinks, whatever Adam makes of the gradient."""
    decayed = p - lr * weight_decay * p
    return decayed - lr * direction


def solution_3(loss_sums: list[Tensor], counts: list[int]) -> Tensor:
    """Token-weighted accumulation: every target of the window weighs the same, so divide once by all of them."""
    return torch.stack(list(loss_sums)).sum() / sum(counts)


def solution_4(step: int, warmup_steps: int, max_steps: int) -> float:
    """Cosine schedule with warm-up: a straight rise to 1, then half a cosine wave down to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
