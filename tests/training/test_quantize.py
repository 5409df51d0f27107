"""NF4 by hand: the published levels, the nearest level, sizes, errors."""

import pytest
import torch

from course_utils.training import quantize

# QLoRA (arXiv:2305.14314), appendix E.
PUBLISHED = """
-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0
"""


def test_the_levels_are_the_published_ones():
    published = torch.tensor([float(number) for number in PUBLISHED.split()])
    assert (quantize.nf4_levels() - published).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(64,), (3, 64), (5, 7), (130,), (1,)])
def test_every_number_gets_its_nearest_level(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = quantize.dequantize(quantize.quantize(weight))
    assert found.shape == weight.shape
    flat, levels = weight.flatten(), quantize.nf4_levels()
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        candidates = levels * block.abs().max()
        nearest = candidates[(block[:, None] - candidates).abs().argmin(1)]
        assert torch.allclose(found.flatten()[start : start + 64], nearest, atol=1e-6)


def test_zeros_and_the_largest_are_exact_and_the_size_is_four_and_a_half_bits():
    weight = torch.randn(64, 64)
    weight[0, :5] = 0
    small = quantize.quantize(weight)
    found = quantize.dequantize(small)
    assert small.bits_per_weight == 4.5 and small.codes.dtype == torch.uint8
    assert torch.equal(found[0, :5], torch.zeros(5)) and torch.isclose(found.abs().max(), weight.abs().max())
    assert torch.equal(quantize.dequantize(quantize.quantize(torch.zeros(64))), torch.zeros(64))


def test_normal_weights_lose_less_than_with_even_levels():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    nf4 = quantize.relative_error(weight, quantize.quantize(weight))
    even = quantize.relative_error(weight, quantize.quantize(weight, levels=quantize.int4_levels()))
    assert 0.08 < nf4 < 0.1 < even < 0.13


def test_scales_survive_eight_bits():
    scales = torch.rand(700) + 1
    restored = quantize.restore_scales(*quantize.quantize_scales(scales))
    assert (restored - scales).abs().max() < 0.01


@pytest.mark.parametrize(
    ("block", "weight"), [(3, torch.ones(4)), (0, torch.ones(4)), (64, torch.tensor([float("nan")]))]
)
def test_what_cannot_be_quantised_is_refused(block, weight):
    with pytest.raises(ValueError, match="allowed"):
        quantize.quantize(weight, block)
