"""Four-bit NormalFloat by hand: 16 levels from the quantiles of a normal, a scale for each block (lesson 10).

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, section 3 and
appendix E; the offset .9677 that leaves a level for exactly 0 is that of bitsandbytes' ``create_normal_map``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

OFFSET = 0.9677083  # share of a normal below the outermost level: the mean of 1 - 1/30 and 1 - 1/32, as bitsandbytes
BLOCK = 64


def nf4_levels() -> Tensor:
    """The 16 levels in [-1, 1], rising: 8 for positive numbers, 7 for negative ones, and 0.

    Quantiles of a normal distribution, scaled to [-1, 1]: dense where most weights are. They are not used equally
    often: a block's largest number is scaled to 1, so few of its numbers lie near the ends.
    """
    positive = torch.special.ndtri(torch.linspace(OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([positive, negative, torch.zeros(1, dtype=torch.float64)]).sort().values
    return (levels / levels.max()).float()


def int4_levels() -> Tensor:
    """16 evenly spaced levels in [-1, 1], 0 among them: the plain way, for comparison. One of them is below -1."""
    return torch.arange(-8, 8).float() / 7


class Quantized(NamedTuple):
    """Codes of 4 bits, two a byte; one scale for each block."""

    codes: Tensor  # uint8 (ceil(blocks * BLOCK / 2),)
    scales: Tensor  # float32 (blocks,): the largest absolute value of each block
    shape: torch.Size
    block: int
    levels: Tensor  # (16,)

    @property
    def bits_per_weight(self) -> float:
        """4 for the code, and the block's share of its 32-bit scale."""
        return 8 * (self.codes.numel() + 4 * self.scales.numel()) / self.shape.numel()


def quantize(weight: Tensor, block: int = BLOCK, levels: Tensor | None = None) -> Quantized:
    """Replace each number by the nearest level times its block's largest absolute value.

    Args:
        weight: any shape; blocks run over its flattened numbers, the last one is filled up with zeros.
        block: numbers that share a scale, even and >= 2.
        levels: (16,), rising; None: ``nf4_levels()``.

    Raises:
        ValueError: ``block`` is odd or below 2, or the weight holds infinities or NaN.
    """
    if block < 2 or block % 2:
        raise ValueError(f"block={block} is out of range; allowed: an even number >= 2")
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds infinities or NaN; allowed: finite numbers")
    levels = nf4_levels() if levels is None else levels
    flat = weight.detach().float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales = blocks.abs().amax(1)
    unit = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    middles = (levels[1:] + levels[:-1]) / 2  # between two levels: the nearest one is found by counting these
    codes = torch.bucketize(unit, middles).to(torch.uint8).view(-1, 2)
    return Quantized(codes[:, 0] * 16 + codes[:, 1], scales, weight.shape, block, levels)


def dequantize(quantized: Quantized) -> Tensor:
    """The float32 weight that the codes stand for."""
    codes = torch.stack([quantized.codes // 16, quantized.codes % 16], 1).long().view(-1, quantized.block)
    flat = (quantized.levels[codes] * quantized.scales[:, None]).flatten()
    return flat[: quantized.shape.numel()].view(quantized.shape)


def relative_error(weight: Tensor, quantized: Quantized) -> float:
    """Length of the error over length of the weight."""
    return ((dequantize(quantized) - weight).norm() / weight.norm()).item()


def quantize_scales(scales: Tensor, block: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantisation: the scales themselves in 8 bits, with one float for 256 of them (QLoRA, section 3).

    Returns:
        ``(codes int8 (n,), block scales float32, mean)``; 8 + 32 / 256 bits a scale in place of 32.
    """
    mean = scales.mean()
    centred = torch.nn.functional.pad(scales - mean, (0, -len(scales) % block)).view(-1, block)
    largest = centred.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (centred / largest[:, None] * 127).round().to(torch.int8).flatten()[: len(scales)]
    return codes, largest, mean


def restore_scales(codes: Tensor, largest: Tensor, mean: Tensor, block: int = 256) -> Tensor:
    """The scales that ``quantize_scales`` stored."""
    padded = torch.nn.functional.pad(codes.float(), (0, -len(codes) % block)).view(-1, block)
    return (padded / 127 * largest[:, None]).flatten()[: len(codes)] + mean


def quantize_model(model: torch.nn.Module, targets: tuple[str, ...], levels: Tensor | None = None) -> float:
    """Send the weights of the linear layers named in ``targets`` through 4 bits and back, in place.

    What a QLoRA base computes with; its memory is not saved here, because the restored weights are kept as float32.

    Returns:
        The relative error over all of them.
    """
    wrong = whole = 0.0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in targets:
            restored = dequantize(quantize(module.weight, levels=levels))
            wrong += (restored - module.weight).square().sum().item()
            whole += module.weight.square().sum().item()
            module.weight.data.copy_(restored)
    return (wrong / whole) ** 0.5 if whole else 0.0
