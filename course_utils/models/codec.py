"""A codec for the 8x8 digits: a network writes an image as few whole numbers, another reads them (lesson 07).

Source: Balle, Laparra & Simoncelli 2017, "End-to-end Optimized Image Compression": train on rate + lambda * distortion,
with uniform noise in place of rounding. The rate comes from ``EntropyBottleneck``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from course_utils.models import range_coder
from course_utils.models.entropy_bottleneck import EntropyBottleneck

SIDE = 8  # pixels


@dataclass
class CodecOutput(ModelOutput):
    """``loss``, ``bits`` per pixel and ``distortion`` (mean squared error) are scalars; ``decoded`` is (B, 8, 8)."""

    loss: Tensor | None = None
    decoded: Tensor | None = None
    bits: Tensor | None = None
    distortion: Tensor | None = None


class Codec(nn.Module):
    """Images (B, 8, 8) in [0, 1] -> latent (B, C, 2, 2) -> images.

    Args:
        lam: lambda, the weight of the squared error against a bit per pixel, > 0.
        channels: C of the latent.
        width: channels of the hidden layers.

    Raises:
        ValueError: ``lam`` is not positive.
    """

    def __init__(self, lam: float = 100.0, channels: int = 8, width: int = 32):
        super().__init__()
        if not lam > 0:
            raise ValueError(f"lam={lam} is out of range; allowed: a number above 0")
        self.lam = lam
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 3, stride=2, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )
        self.bottleneck = EntropyBottleneck(channels)

    def forward(self, pixels: Tensor) -> CodecOutput:
        """``loss`` = bits per pixel + lam * mean squared error."""
        latent, likelihood = self.bottleneck(self.encoder(pixels.unsqueeze(1)))
        decoded = self.decoder(latent).squeeze(1)
        bits = -likelihood.log2().sum() / pixels.numel()
        distortion = nn.functional.mse_loss(decoded, pixels)
        return CodecOutput(bits + self.lam * distortion, decoded, bits, distortion)

    def aux_loss(self) -> Tensor:
        """The quantiles' own loss, a scalar that depends on no image."""
        return self.bottleneck.aux_loss()

    @torch.no_grad()
    def symbols(self, pixels: Tensor) -> Tensor:
        """The whole numbers (B, C, 2, 2) that the images are written as, before they meet the coder's tables."""
        return self.bottleneck.symbols(self.encoder(pixels.unsqueeze(1)))

    def _tables(self) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Per channel: lowest symbol and highest symbol, (C,) each, and the coder's counts."""
        tables = self.bottleneck.tables()
        lowest = torch.tensor([low for low, _ in tables])
        highest = lowest + torch.tensor([len(p) - 1 for _, p in tables])
        return lowest, highest, [range_coder.counts(p.tolist()) for _, p in tables]

    def outside(self, pixels: Tensor) -> float:
        """Share of the symbols that the coder's tables have no place for; they are clamped to the nearest that has."""
        lowest, highest, _ = self._tables()
        symbols = self.symbols(pixels)
        low, high = (bound.reshape(1, -1, 1, 1) for bound in (lowest, highest))
        return ((symbols < low) | (symbols > high)).double().mean().item()

    @torch.no_grad()
    def compress(self, pixels: Tensor) -> bytes:
        """The images as bytes: their symbols, clamped to the tables, through the range coder."""
        lowest, highest, counts = self._tables()
        low, high = (bound.reshape(1, -1, 1, 1) for bound in (lowest, highest))
        indices = self.symbols(pixels).clamp(low, high) - low
        return range_coder.encode(indices.flatten().tolist(), _per_symbol(counts, indices.shape))

    @torch.no_grad()
    def decompress(self, data: bytes, count: int) -> Tensor:
        """``count`` images (count, 8, 8) out of the bytes that ``compress`` made."""
        lowest, _, counts = self._tables()
        shape = (count, len(counts), SIDE // 4, SIDE // 4)
        indices = torch.tensor(range_coder.decode(data, _per_symbol(counts, shape))).reshape(shape)
        return self.decoder(self.bottleneck.values(indices + lowest.reshape(1, -1, 1, 1))).squeeze(1)


def _per_symbol(counts: list[list[int]], shape: tuple[int, ...]) -> list[list[int]]:
    """The table of every symbol of a latent of ``shape`` (B, C, 2, 2), in the order of ``flatten``."""
    images, _, rows, columns = shape
    return [table for table in counts for _ in range(rows * columns)] * images
