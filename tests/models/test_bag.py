"""The bag of embeddings: shapes, padding and order do not count, its loss, what the Trainer makes of it."""

import pytest
import torch
from torch.nn import functional as F

from course_utils.models.bag import BagClassifier


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BagClassifier(20, 4, width=8)


def test_equals_a_masked_mean_of_vectors(model):
    ids, mask = torch.tensor([[3, 5, 0, 0], [7, 7, 2, 9]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    vectors = model.embedding.weight
    means = torch.stack([vectors[[3, 5]].mean(0), vectors[[7, 7, 2, 9]].mean(0)])
    expected = model.classifier(model.hidden(means).relu())
    assert torch.allclose(model(ids, mask).logits, expected, atol=1e-6)


def test_padding_and_order_do_not_count(model):
    ids = torch.tensor([[3, 5, 8]])
    logits = model(ids).logits
    padded = model(torch.tensor([[3, 5, 8, 1, 1]]), torch.tensor([[1, 1, 1, 0, 0]])).logits
    assert logits.shape == (1, 4)
    assert torch.allclose(logits, padded, atol=1e-6)
    assert torch.allclose(logits, model(ids.flip(1)).logits, atol=1e-6)


def test_an_empty_text_is_finite(model):
    outputs = model(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))
    assert torch.isfinite(outputs.logits).all()


def test_loss_is_the_mean_over_targets(model):
    ids, labels = torch.randint(20, (5, 3)), torch.tensor([0, 3, -100, 1, 2])
    outputs = model(ids, labels=labels)
    assert outputs.loss.item() == pytest.approx(
        F.cross_entropy(outputs.logits[labels != -100], labels[labels >= 0]).item()
    )
    assert "loss" not in model(ids)
    outputs.loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_the_trainer_divides_for_it(model, tmp_path):
    from course_utils.training.settings import quiet_trainer

    assert not quiet_trainer(model, tmp_path, use_cpu=True).model_accepts_loss_kwargs


@pytest.mark.parametrize("sizes", [(0, 2), (5, 0), (5, 2, 0)])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="=0 is out of range; allowed: a whole number >= 1"):
        BagClassifier(*sizes)
