"""Losses as pure functions, each honouring ``num_items_in_batch`` (lesson 06).

All take logits (..., C) and labels (...) of class numbers, where -100 marks what is no target, and return a scalar:

    sum over this micro-batch's targets of a loss per target / num_items_in_batch

``num_items_in_batch`` counts the targets of the whole window of accumulation, on all ranks; the micro-batches' losses
then add up to the full batch's. None divides by the micro-batch's own targets. Arithmetic is float32 at least; class
weights may have any floating type and lie anywhere, they are brought to the logits.

As a loss function of the Trainer or of lesson 01's loop: ``for_trainer(focal_loss, gamma=2.0)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.data.batches import IGNORED

Items = Tensor | float | int | None


def divide(losses: Tensor, labels: Tensor, num_items_in_batch: Items) -> Tensor:
    """The sum of ``losses`` / the window's targets: the only place where a loss of this module is divided.

    Args:
        losses: (...), 0 where there is no target.
        labels: (...); they are counted only when ``num_items_in_batch`` is None.
        num_items_in_batch: targets of the window on all ranks; None takes this micro-batch's own.
    """
    if num_items_in_batch is None:
        num_items_in_batch = labels.ne(IGNORED).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(losses.device)
    return losses.sum() / num_items_in_batch


def cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
    """-log p_y per target: what all others here reduce to.

    Args:
        logits: (..., C).
        labels: (...), whole numbers below C, or -100.
        num_items_in_batch: see the module.
    """
    return divide(_negative_log_likelihood(logits, labels), labels, num_items_in_batch)


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor, num_items_in_batch: Items = None
) -> Tensor:
    """-w_y log p_y per target. King & Zeng, "Logistic regression in rare events data" (2001), eq. 8.

    Divided by the number of targets. ``F.cross_entropy(weight=)`` divides by the sum of the batch's weights instead,
    which depends on what the batch happens to hold, so its micro-batches do not add up. With weights whose mean over
    the rows is 1 (``class_weights.inverse_frequency``) the two agree on the whole data set.

    Args:
        logits: (..., C).
        labels: (...).
        class_weights: (C,), >= 0; all 1 gives ``cross_entropy``.
        num_items_in_batch: see the module.
    """
    weights = _per_target(class_weights, logits, labels)
    return divide(weights * _negative_log_likelihood(logits, labels), labels, num_items_in_batch)


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    num_items_in_batch: Items = None,
) -> Tensor:
    """-w_y (1 - p_y)^gamma log p_y per target. Lin et al., arXiv:1708.02002, eq. 4 and 5, with a softmax.

    1 - p_y is computed as -expm1(log p_y), which keeps its digits where p_y is close to 1.

    Args:
        logits: (..., C).
        labels: (...).
        gamma: >= 0; 0 gives (weighted) cross-entropy.
        class_weights: (C,), the paper's alpha; None is 1.
        num_items_in_batch: see the module.

    Raises:
        ValueError: ``gamma`` below 0.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma} is out of range; allowed: a number >= 0")
    nll = _negative_log_likelihood(logits, labels)
    wrongness = -torch.expm1(-nll)  # 1 - p_y
    if 0 < gamma < 1:  # the derivative of x^gamma at 0 is infinite
        wrongness = wrongness.clamp(min=torch.finfo(wrongness.dtype).tiny)
    losses = wrongness**gamma * nll
    if class_weights is not None:
        losses = _per_target(class_weights, logits, labels) * losses
    return divide(losses, labels, num_items_in_batch)


def label_smoothing(logits: Tensor, labels: Tensor, epsilon: float = 0.1, num_items_in_batch: Items = None) -> Tensor:
    """Cross-entropy to (1 - epsilon) one-hot + epsilon / C. Szegedy et al., arXiv:1512.00567, section 7.

    Equal to ``F.cross_entropy(label_smoothing=epsilon)`` and to ``TrainingArguments(label_smoothing_factor=epsilon)``.

    Args:
        logits: (..., C).
        labels: (...).
        epsilon: from 0, which gives ``cross_entropy``, to 1.
        num_items_in_batch: see the module.

    Raises:
        ValueError: ``epsilon`` outside [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon={epsilon} is out of range; allowed: a number from 0 to 1")
    to_all = -_log_softmax(logits).mean(-1).masked_fill(labels == IGNORED, 0)
    losses = (1 - epsilon) * _negative_log_likelihood(logits, labels) + epsilon * to_all
    return divide(losses, labels, num_items_in_batch)


def logit_adjusted(
    logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float = 1.0, num_items_in_batch: Items = None
) -> Tensor:
    """Cross-entropy of logits + tau log prior, in training only. Menon et al., arXiv:2007.07314, eq. 10.

    The prior stands beside the network while it learns; at test time it is left out, and the network's own logits then
    favour no frequent class. With ``tau`` 1 this is "balanced softmax" (Ren et al., arXiv:2007.10740, eq. 4).

    Args:
        logits: (..., C).
        labels: (...).
        log_prior: (C,), logarithms of the classes' shares in the training data.
        tau: 0 gives ``cross_entropy``, as does a uniform prior.
        num_items_in_batch: see the module.
    """
    logits = _upcast(logits)
    return cross_entropy(logits + tau * log_prior.to(logits), labels, num_items_in_batch)


def relevance_weighted(logits: Tensor, labels: Tensor, relevance: Tensor, num_items_in_batch: Items = None) -> Tensor:
    """Mean of -log p_y with a weight per target: sum r_i l_i / sum r_i.

    Rho-1 (Lin et al., arXiv:2404.07965, eq. 4) with relevances between 0 and 1 in place of a choice of tokens. The
    divisor is the sum of relevances, so a relevance that is k times as large everywhere changes nothing.

    Args:
        logits: (..., C); of a causal model already shifted against the labels.
        labels: (...).
        relevance: (...), >= 0; equal everywhere gives ``cross_entropy``. Not differentiated: a loss could otherwise be
            lowered by calling hard targets irrelevant.
        num_items_in_batch: here the sum of the relevances of the window's targets; None takes the micro-batch's own.
    """
    weights = relevance.detach().to(logits.device, _at_least_float32(logits.dtype))
    weights = weights.masked_fill(labels == IGNORED, 0)
    total = (weights * _negative_log_likelihood(logits, labels)).sum()
    if num_items_in_batch is None:
        num_items_in_batch = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return total / num_items_in_batch


def distillation(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 2.0, num_items_in_batch: Items = None
) -> Tensor:
    """T^2 KL(teacher || student), both softened by the temperature T. Hinton et al., arXiv:1503.02531, section 2.

    The gradient of a softened softmax is about 1 / T^2 as large; the factor keeps it comparable with cross-entropy's.

    Args:
        logits: the student's, (..., C).
        teacher_logits: (..., C); not differentiated.
        labels: (...); only whether they are -100 counts.
        temperature: > 0.
        num_items_in_batch: see the module.

    Raises:
        ValueError: ``temperature`` not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} is out of range; allowed: a number > 0")
    student = _log_softmax(_upcast(logits) / temperature)
    teacher = _log_softmax(_upcast(teacher_logits.detach()).to(student) / temperature)
    losses = temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return divide(losses.masked_fill(labels == IGNORED, 0), labels, num_items_in_batch)


def multi_task(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """``(sum of weights[name] * parts[name], the unweighted parts detached, for the log)``.

    Args:
        parts: name -> scalar, each already divided by ``num_items_in_batch``: a weighted sum of those adds up as well.
        weights: name -> factor, one for each part.

    Raises:
        ValueError: the names differ.
    """
    if parts.keys() != weights.keys():
        raise ValueError(f"weights={sorted(weights)} are not the parts; allowed: {', '.join(sorted(parts))}")
    total = sum(weights[name] * part for name, part in parts.items())
    return total, {name: part.detach() for name, part in parts.items()}


def for_trainer(loss: Callable[..., Tensor], **settings: Any) -> Callable[..., Tensor]:
    """``loss`` as ``Trainer(compute_loss_func=)`` and lesson 01's ``train(loss_function=)`` call it.

    Args:
        loss: a function of this module that takes logits and labels.
        **settings: what it takes besides, ``gamma=2.0`` for example.

    Returns:
        ``(outputs, labels, num_items_in_batch=None) -> scalar``; the logits are ``outputs.logits``.
    """
    return partial(_call, partial(loss, **settings))


def _call(loss: Callable[..., Tensor], outputs: Any, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
    return loss(logits, labels, num_items_in_batch=num_items_in_batch)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _upcast(logits: Tensor) -> Tensor:
    return logits.to(_at_least_float32(logits.dtype))  # 16 bit would lose digits


def _log_softmax(logits: Tensor) -> Tensor:
    return _upcast(logits).log_softmax(-1)


def _negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y, (...); 0 where there is no target."""
    at_label = _log_softmax(logits).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -at_label.masked_fill(labels == IGNORED, 0)


def _per_target(class_weights: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The weight of each target's class, (...), in the logits' type (float32 at least) and on their device."""
    weights = class_weights.to(logits.device, _at_least_float32(logits.dtype))
    return weights[labels.clamp(min=0)]
