"""PointNet: invariances, masks, what the Trainer asks for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.data.clouds import CloudCollator
from course_utils.models.point_net import PointNet


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PointNet(widths=(8, 16), num_classes=4).eval()


def cloud(points, seed=0):
    return torch.randn(1, points, 3, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(points=st.integers(1, 40), seed=st.integers(0, 99))
def test_order_and_repetition_change_nothing(points, seed):
    torch.manual_seed(seed)
    model, x = PointNet(widths=(8, 16)), cloud(points, seed)
    expected = model(x).logits
    order = torch.randperm(points, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(model(x[:, order]).logits, expected, atol=1e-6)
    assert torch.allclose(model(x.repeat(1, 2, 1)).logits, expected, atol=1e-6)
    critical = model.features(x)[1].unique()
    assert torch.allclose(model(x[:, critical]).logits, expected, atol=1e-6)


def test_a_batch_of_different_sizes_equals_each_cloud_alone(model):
    clouds = [cloud(n, n)[0] for n in (3, 9, 1)]
    batch = CloudCollator()([{"points": c} for c in clouds])
    alone = torch.cat([model(c[None]).logits for c in clouds])
    assert torch.allclose(model(**batch).logits, alone, atol=1e-6)


def test_padding_far_away_is_seen_without_a_mask_and_not_with_it(model):
    padded = torch.cat([cloud(5), torch.full((1, 3, 3), 50.0)], dim=1)
    mask = torch.arange(8)[None] < 5
    assert torch.allclose(model(padded, mask).logits, model(cloud(5)).logits, atol=1e-6)
    assert not torch.allclose(model(padded).logits, model(cloud(5)).logits, atol=1e-2)


def test_loss_only_with_labels_and_first(model):
    assert model(cloud(5)).loss is None and list(model(cloud(5))) == ["logits"]
    output = model(cloud(5), labels=torch.tensor([2]))
    assert list(output) == ["loss", "logits"]
    assert torch.allclose(output.loss, -output.logits.log_softmax(-1)[0, 2])


@pytest.mark.parametrize(
    ("points", "mask", "message"),
    [
        (torch.zeros(5, 3), None, "batch, points, coordinates"),
        (torch.zeros(2, 5, 3), torch.ones(2, 4, dtype=torch.bool), r"allowed: \(2, 5\)"),
        (torch.zeros(1, 5, 3), torch.zeros(1, 5, dtype=torch.bool), "without points"),
    ],
)
def test_what_does_not_fit_is_said(model, points, mask, message):
    with pytest.raises(ValueError, match=message):
        model(points, mask)


def test_sizes_out_of_range():
    with pytest.raises(ValueError, match="widths"):
        PointNet(widths=())
    with pytest.raises(ValueError, match="num_classes=1"):
        PointNet(num_classes=1)
