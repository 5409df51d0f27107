"""The chunked loss equals the full one in value and gradient, and never holds all logits."""

import pytest
import torch
from torch.nn import functional as F

from course_utils.models import load_causal_lm
from course_utils.training.chunked_cross_entropy import causal_loss, chunked_cross_entropy
from course_utils.training.saved_tensors import LiveTensors, SavedTensors


def make(rows=37, width=6, words=23, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(words, width, dtype=dtype, generator=generator, requires_grad=True)
    labels = torch.randint(words, (rows,), generator=generator)
    labels[::5] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("chunk", [1, 7, 36, 37, 1000])
@pytest.mark.parametrize("items", [None, 50, torch.tensor(11)])
def test_equals_the_full_loss_in_float64(chunk, items):
    hidden, weight, labels = make()
    divisor = (labels != -100).sum() if items is None else items
    full = F.cross_entropy(hidden @ weight.T, labels, reduction="sum") / divisor
    ours = chunked_cross_entropy(hidden, weight, labels, items, chunk)
    assert torch.allclose(ours, full, rtol=1e-14)
    wanted, got = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (full, ours))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_in_16_bit_sums_are_fp32():
    hidden, weight, labels = (t.detach() if t.is_floating_point() else t for t in make())
    low = [t.bfloat16().requires_grad_() for t in (hidden, weight)]
    loss = chunked_cross_entropy(*low, labels, chunk=8)
    loss.backward()
    exact = F.cross_entropy(low[0].double() @ low[1].double().T, labels)
    assert loss.dtype == torch.float32 and abs(loss.item() - exact.item()) < 0.02
    assert low[1].grad.dtype == torch.bfloat16


def test_large_scores_do_not_overflow():
    hidden, weight, labels = make()
    loss = chunked_cross_entropy(1e4 * hidden.float(), weight.float(), labels, chunk=8)
    assert torch.isfinite(loss)


def test_all_labels_ignored_is_not_a_number_as_in_torch():
    hidden, weight, labels = make()
    assert torch.isnan(chunked_cross_entropy(hidden, weight, torch.full_like(labels, -100)))


def test_keeps_and_holds_no_logits():
    hidden, weight, labels = make(rows=512, words=2000, dtype=torch.float32)
    with SavedTensors(inputs=(hidden, weight, labels)) as saved:
        loss = chunked_cross_entropy(hidden, weight, labels, chunk=32)
    assert saved.bytes == 4 * (hidden.numel() + weight.numel())
    del loss
    with LiveTensors() as live:
        chunked_cross_entropy(hidden, weight, labels, chunk=32).backward()
    all_logits = 4 * 512 * 2000
    assert live.peak < all_logits / 4


def test_a_models_loss_without_its_logits():
    torch.manual_seed(0)
    model = load_causal_lm(vocab_size=90, num_hidden_layers=1, hidden_size=32, intermediate_size=48)
    ids = torch.randint(5, 90, (3, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["labels"][0, 6:] = -100
    gradients = []
    for loss in (model(**batch).loss, causal_loss(model, batch, chunk=5)):
        model.zero_grad()
        loss.backward()
        gradients.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert abs(gradients[0][0] - gradients[1][0]) < 1e-6
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-6)


def test_refuses_shapes_that_do_not_fit():
    hidden, weight, labels = make()
    with pytest.raises(ValueError, match="chunk=0"):
        chunked_cross_entropy(hidden, weight, labels, chunk=0)
    with pytest.raises(ValueError, match="do not fit"):
        chunked_cross_entropy(hidden, weight, labels[1:])
    with pytest.raises(ValueError, match="do not fit"):
        chunked_cross_entropy(hidden, weight[:, 1:], labels)
