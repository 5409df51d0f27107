"""Simple codecs that the learned one is compared with: fewer grey levels, and cosine waves."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from course_utils.models.soft_threshold import cosine_basis


def _psnr(decoded: Tensor, images: Tensor) -> float:
    return -10 * math.log10((decoded - images).square().mean().item())


def grey_levels(images: Tensor, levels: int) -> tuple[float, float]:
    """``(bits per pixel, PSNR in dB)`` of images (N, 8, 8) in [0, 1] with ``levels`` >= 2 grey levels, zlib's best."""
    rounded = torch.round(images * (levels - 1))
    size = len(zlib.compress(rounded.to(torch.uint8).numpy().tobytes(), 9))
    return 8 * size / images.numel(), _psnr(rounded / (levels - 1), images)


def cosine_waves(seen: Tensor, images: Tensor, step: float) -> tuple[float, float]:
    """``(bits per pixel, PSNR in dB)`` of cosine waves rounded to multiples of ``step``.

    The bits are those of an ideal coder that has counted each wave's symbols on the images ``seen``, half a count added
    to every symbol that occurs.
    """
    basis = cosine_basis(images.shape[-1])
    known, symbols = (torch.round(basis @ i @ basis.T / step).long() for i in (seen, images))
    offset, width = symbols.min().minimum(known.min()), int(symbols.max().maximum(known.max())) + 1
    width -= int(offset)
    bits = 0.0
    for wave in range(images[0].numel()):
        counts = torch.bincount(known.flatten(1)[:, wave] - offset, minlength=width) + 0.5
        bits -= (counts / counts.sum())[symbols.flatten(1)[:, wave] - offset].log2().sum().item()
    return bits / images.numel(), _psnr(basis.T @ (symbols * step) @ basis, images)


def baselines(seen: Tensor, images: Tensor) -> dict[str, list[tuple[float, float]]]:
    """Both at a few settings: what it is called -> ``(bits per pixel, PSNR in dB)`` from few bits to many."""
    return {
        "grey levels + zlib": [grey_levels(images, levels) for levels in (2, 3, 4)],
        "cosine waves": [cosine_waves(seen, images, step) for step in (0.9, 0.6, 0.4, 0.3)],
    }
