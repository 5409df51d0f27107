"""Losses against closed forms, torch and scipy; derivatives; special cases; micro-batches that add up."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_utils.training import losses
from course_utils.training.losses import (
    cross_entropy,
    distillation,
    focal_loss,
    for_trainer,
    label_smoothing,
    logit_adjusted,
    multi_task,
    relevance_weighted,
    weighted_cross_entropy,
)

CLASSES = 5
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
PRIOR = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=torch.float64).log()


def batch(shape=(12,), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(*shape, CLASSES, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(CLASSES, shape, generator=generator)
    labels.view(-1)[1::4] = -100
    return logits, labels


def extras(shape=(12,), seed=1):
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return relevance, torch.randn(*shape, CLASSES, generator=generator, dtype=torch.float64)


def calls(shape=(12,)):
    """Loss -> a function of (logits, labels, rows, num_items); ``rows`` chooses what belongs to the rows."""
    relevance, teacher = extras(shape)
    return {
        "cross_entropy": lambda x, y, r, n: cross_entropy(x, y, n),
        "weighted": lambda x, y, r, n: weighted_cross_entropy(x, y, WEIGHTS, n),
        "focal": lambda x, y, r, n: focal_loss(x, y, 2.0, WEIGHTS, n),
        "focal 0.5": lambda x, y, r, n: focal_loss(x, y, 0.5, None, n),
        "smoothing": lambda x, y, r, n: label_smoothing(x, y, 0.1, n),
        "adjusted": lambda x, y, r, n: logit_adjusted(x, y, PRIOR, 0.7, n),
        "relevance": lambda x, y, r, n: relevance_weighted(x, y, relevance[r], n),
        "distillation": lambda x, y, r, n: distillation(x, teacher[r], y, 3.0, n),
    }


ALL = list(calls())
EVERY = slice(None)


def by_hand(name, logits, labels):
    """The loss of each target with NumPy, from the papers' formulas."""
    relevance, teacher = (value.numpy() for value in extras())
    x = logits.numpy()
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    found = []
    for row, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        q = p[row, label]
        if name == "cross_entropy":
            found.append(-np.log(q))
        elif name == "weighted":
            found.append(-WEIGHTS[label].item() * np.log(q))
        elif name == "focal":
            found.append(-WEIGHTS[label].item() * (1 - q) ** 2 * np.log(q))
        elif name == "focal 0.5":
            found.append(-((1 - q) ** 0.5) * np.log(q))
        elif name == "smoothing":
            target = np.full(CLASSES, 0.1 / CLASSES)
            target[label] += 0.9
            found.append(-(target * np.log(p[row])).sum())
        elif name == "adjusted":
            shifted = x[row] + 0.7 * PRIOR.numpy()
            found.append(np.log(np.exp(shifted).sum()) - shifted[label])
        elif name == "relevance":
            found.append(-relevance[row] * np.log(q))
        elif name == "distillation":
            soft = [np.exp(z / 3) / np.exp(z / 3).sum() for z in (teacher[row], x[row])]
            found.append(9 * (soft[0] * np.log(soft[0] / soft[1])).sum())
    return sum(found), len(found)


@pytest.mark.parametrize("name", ALL)
def test_equals_the_closed_form(name):
    logits, labels = batch()
    total, count = by_hand(name, logits, labels)
    loss = calls()[name]
    assert loss(logits, labels, EVERY, 7).item() == pytest.approx(total / 7, rel=1e-12)
    if name == "relevance":
        count = extras()[0][labels != -100].sum().item()
    assert loss(logits, labels, EVERY, None).item() == pytest.approx(total / count, rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_gradcheck(name):
    logits, labels = batch()
    assert torch.autograd.gradcheck(lambda x: calls()[name](x, labels, EVERY, 7), logits.requires_grad_())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("pieces", [2, 3, 12])
def test_micro_batches_add_up(name, pieces):
    """Loss and gradient, with different numbers of targets in each piece; some have none."""
    logits, labels = batch()
    items = (labels != -100).sum()
    whole = logits.clone().requires_grad_()
    calls()[name](whole, labels, EVERY, items).backward()
    parts = logits.clone().requires_grad_()
    total = 0
    for rows in torch.arange(12).chunk(pieces):
        loss = calls()[name](parts[rows], labels[rows], rows, items)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(calls()[name](logits, labels, EVERY, items).item(), rel=1e-12)
    assert torch.allclose(parts.grad, whole.grad, atol=1e-14)


def test_torchs_weighted_mean_does_not_add_up():
    logits, labels = batch()
    whole = F.cross_entropy(logits, labels, weight=WEIGHTS)
    pieces = [F.cross_entropy(x, y, weight=WEIGHTS) for x, y in zip(logits.chunk(3), labels.chunk(3), strict=True)]
    assert abs(sum(pieces) / 3 / whole - 1) > 0.01


@pytest.mark.parametrize("name", ALL)
def test_any_shape_in_front(name):
    flat, cube = calls((12,))[name], calls((3, 4))[name]
    logits, labels = batch()
    shaped = cube(logits.view(3, 4, CLASSES), labels.view(3, 4), EVERY, None)
    assert torch.allclose(shaped, flat(logits, labels, EVERY, None))


@pytest.mark.parametrize("name", ALL)
def test_a_batch_without_targets_is_zero_and_so_is_its_gradient(name):
    logits, labels = batch()
    logits.requires_grad_()
    loss = calls()[name](logits, torch.full_like(labels, -100), EVERY, None)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_whatever_the_type_of_logits_and_weights(name, dtype):
    logits, labels = batch(dtype=dtype)
    loss = calls()[name](logits, labels, EVERY, 7)
    exact = calls()[name](logits.double(), labels, EVERY, 7)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_finite_far_out(name):
    """Sure and right, sure and wrong: no infinity, no NaN, in the loss and in its gradient."""
    logits = torch.tensor([[200.0, 0, 0, 0, 0], [-200.0, 0, 0, 0, 0]], requires_grad=True)
    loss = calls((2,))[name](logits, torch.zeros(2, dtype=torch.long), EVERY, 2)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    "special",
    [
        lambda x, y: weighted_cross_entropy(x, y, torch.ones(CLASSES)),
        lambda x, y: focal_loss(x, y, gamma=0.0),
        lambda x, y: focal_loss(x, y, 0.0, torch.ones(CLASSES)),
        lambda x, y: label_smoothing(x, y, epsilon=0.0),
        lambda x, y: logit_adjusted(x, y, PRIOR, tau=0.0),
        lambda x, y: logit_adjusted(x, y, torch.full((CLASSES,), -1.6), tau=2.0),
        lambda x, y: relevance_weighted(x, y, torch.full((12,), 0.3)),
    ],
    ids=["weights 1", "gamma 0", "gamma 0, alpha 1", "epsilon 0", "tau 0", "flat prior", "equal relevance"],
)
def test_special_cases_are_cross_entropy(special):
    logits, labels = batch()
    assert special(logits, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)


def test_focal_with_gamma_0_is_weighted_cross_entropy():
    logits, labels = batch()
    assert torch.allclose(focal_loss(logits, labels, 0.0, WEIGHTS), weighted_cross_entropy(logits, labels, WEIGHTS))


def test_smoothing_equals_torchs_and_the_trainers():
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels = batch()
    found = label_smoothing(logits, labels, 0.2, 9)
    trainers = LabelSmoother(0.2)({"logits": logits}, labels, num_items_in_batch=9)
    assert found.item() == pytest.approx(trainers.item(), rel=1e-6)
    mean = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert label_smoothing(logits, labels, 0.2).item() == pytest.approx(mean.item(), rel=1e-12)


def test_weights_equal_torchs_summed():
    logits, labels = batch()
    total = F.cross_entropy(logits, labels, weight=WEIGHTS, reduction="sum")
    assert weighted_cross_entropy(logits, labels, WEIGHTS, 1).item() == pytest.approx(total.item(), rel=1e-12)


def test_relevance_has_no_scale_and_no_gradient():
    logits, labels = batch()
    relevance = extras()[0].requires_grad_()
    loss = relevance_weighted(logits.requires_grad_(), labels, relevance)
    loss.backward()
    assert relevance.grad is None
    assert loss.item() == pytest.approx(relevance_weighted(logits, labels, 100 * relevance).item(), rel=1e-12)


def test_irrelevant_targets_get_no_gradient():
    logits, labels = batch()
    relevance = torch.ones(12)
    relevance[::2] = 0
    relevance_weighted(logits.requires_grad_(), labels, relevance).backward()
    assert logits.grad[::2].abs().max() == 0 < logits.grad[labels != -100].abs().max()


def test_distillation_is_zero_at_the_teacher_and_keeps_its_size_over_temperatures():
    logits, labels = batch()
    teacher = extras()[1].requires_grad_()
    assert distillation(teacher.detach(), teacher, labels).item() == pytest.approx(0, abs=1e-12)
    sizes = []
    for temperature in (8.0, 64.0):
        student = logits.clone().requires_grad_()
        distillation(student, teacher, labels, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)  # without T^2 it would fall to a 64th
    assert teacher.grad is None


def test_multi_task():
    parts = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(3.0)}
    total, logged = multi_task(parts, {"a": 0.5, "b": 2})
    assert total.item() == 7 and total.requires_grad
    assert {name: value.item() for name, value in logged.items()} == {"a": 2, "b": 3}
    assert not logged["a"].requires_grad
    with pytest.raises(ValueError, match="not the parts; allowed: a, b"):
        multi_task(parts, {"a": 1})


def test_for_trainer_takes_both_kinds_of_outputs():
    logits, labels = batch()
    loss = for_trainer(focal_loss, gamma=1.0)
    expected = focal_loss(logits, labels, 1.0, num_items_in_batch=4)
    assert loss({"logits": logits}, labels, num_items_in_batch=torch.tensor(4.0)).item() == expected.item()
    assert loss(SimpleNamespace(logits=logits), labels, num_items_in_batch=4).item() == expected.item()
    assert loss({"logits": logits}, labels).item() == focal_loss(logits, labels, 1.0).item()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: focal_loss(x, y, gamma=-1), "gamma=-1 .*allowed: a number >= 0"),
        (lambda x, y: focal_loss(x, y, gamma=float("nan")), "gamma=nan"),
        (lambda x, y: label_smoothing(x, y, epsilon=1.5), "epsilon=1.5 .*from 0 to 1"),
        (lambda x, y: distillation(x, x, y, temperature=0), "temperature=0 .*> 0"),
    ],
)
def test_bad_settings(call, words):
    with pytest.raises(ValueError, match=words):
        call(*batch())


def test_module_names_its_sources():
    for name in ("weighted_cross_entropy", "focal_loss", "label_smoothing", "logit_adjusted", "distillation"):
        text = getattr(losses, name).__doc__
        assert "(..., C)" in text and ("arXiv" in text or "King & Zeng" in text), name
