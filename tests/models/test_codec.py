"""The codec: its loss, real bytes, and what is lost where the coder's tables are too narrow."""

import pytest
import torch

from course_utils.data.collators import StackingCollator
from course_utils.data.digits import digit_splits
from course_utils.models.codec import Codec
from course_utils.training.settings import quiet_trainer
from course_utils.training.two_optimizers import TwoOptimizersTrainer


@pytest.fixture(scope="module")
def images():
    return {split: torch.from_numpy(found) for split, (found, _) in digit_splits().items()}


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    torch.manual_seed(0)
    rows = [{"pixels": image} for image in images["train"]]
    options = {"max_steps": 150, "per_device_train_batch_size": 64, "learning_rate": 1e-2, "use_cpu": True}
    folder = tmp_path_factory.mktemp("codec")
    trainer = quiet_trainer(
        Codec(100), folder, rows, data_collator=StackingCollator(), trainer_class=TwoOptimizersTrainer, **options
    )
    trainer.train()
    return trainer.model.eval()


def test_loss_is_rate_plus_quality_times_distortion(images):
    torch.manual_seed(0)
    output = Codec(lam=30).eval()(images["test"][:16])
    assert list(output) == ["loss", "decoded", "bits", "distortion"]
    assert torch.allclose(output.loss, output.bits + 30 * output.distortion)
    error = (output.decoded - images["test"][:16]).square().mean()
    assert torch.allclose(output.distortion, error) and output.decoded.shape == (16, 8, 8)


def test_bytes_hold_exactly_what_the_model_decodes(trained, images):
    pixels = images["test"]
    data = trained.compress(pixels)
    assert isinstance(data, bytes) and trained.outside(pixels) == 0
    with torch.no_grad():
        output = trained(pixels)
    assert torch.allclose(trained.decompress(data, len(pixels)), output.decoded, atol=1e-5)
    estimate = output.bits.item() * pixels.numel() / 8
    assert abs(len(data) / estimate - 1) < 0.02


def test_symbols_survive_the_coder_one_by_one(trained, images):
    for image in images["test"][:3]:
        data = trained.compress(image[None])
        again = trained.decompress(data, 1)
        assert torch.equal(again, trained.decoder(trained.bottleneck.values(trained.symbols(image[None]))).squeeze(1))


def test_narrow_tables_spoil_the_image_and_outside_says_so(trained, images):
    import copy

    narrow = copy.deepcopy(trained)
    with torch.no_grad():
        narrow.bottleneck.quantiles.copy_(torch.tensor([-1.0, 0.0, 1.0]).expand_as(narrow.bottleneck.quantiles))
    pixels = images["test"]
    assert narrow.outside(pixels) > 0.1
    decoded = narrow.decompress(narrow.compress(pixels), len(pixels))
    good = trained.decompress(trained.compress(pixels), len(pixels))
    assert (decoded - pixels).square().mean() > 2 * (good - pixels).square().mean()


def test_quality_must_be_positive():
    with pytest.raises(ValueError, match="lam=0"):
        Codec(lam=0)
