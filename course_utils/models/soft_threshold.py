"""Soft threshold as an operator of our own: ``autograd.Function`` and ``torch.library.custom_op`` (lesson 07).

S(x, t) = sign(x) * max(|x| - t, 0): what is smaller than t becomes zero, the rest moves towards zero by t. With noise
that is small in some basis and a signal that is large in it, this removes noise: Donoho 1995, "De-noising by
soft-thresholding". torch has it with a constant t (``F.softshrink``); here t is a tensor that learns.
The two compiled versions stand in ``soft_threshold_native``. Reference: PyTorch's page "Custom Python operators".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _shrink(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.sign(x) * (x.abs() - threshold).clamp_min(0)


def _gradients(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Of x: grad where x survived. Of the threshold: each surviving x moved against its sign, summed over repeats."""
    through = torch.where(x.abs() > threshold, grad, 0)
    return through, (-through * torch.sign(x)).sum_to_size(threshold.shape)


class SoftThreshold(torch.autograd.Function):
    """First way: ``SoftThreshold.apply(x, threshold)``; under autocast both are cast to float32 first.

    x (...), threshold of a shape that broadcasts to x's; the result has x's shape.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, x: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(x, threshold)
        return _shrink(x, threshold)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _gradients(grad, *ctx.saved_tensors)


@torch.library.custom_op("course::soft_threshold", mutates_args=())
def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """Second way: an operator that torch knows by name, so that compile, autocast and export do too.

    Args:
        x: (...), any floating point type.
        threshold: of a shape that broadcasts to x's, >= 0.

    Returns:
        The shape of x.
    """
    return _shrink(x, threshold)


@soft_threshold.register_fake
def _(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("course::soft_threshold_backward", mutates_args=())
def soft_threshold_backward(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the threshold; an operator too, so that the compiler need not look inside."""
    return _gradients(grad, x, threshold)


@soft_threshold_backward.register_fake
def _(grad: Tensor, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(threshold)


def _save(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    return soft_threshold_backward(grad, *ctx.saved_tensors)


soft_threshold.register_autograd(_backward, setup_context=_save)
# In half precision the sum over all elements of a threshold's gradient leaves the format's range: compute in float32.
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("course::soft_threshold", _device, torch.float32)


def cosine_basis(side: int = 8) -> Tensor:
    """(side, side): row k is the k-th cosine wave of the orthonormal DCT-II; times its transpose it is the identity."""
    place, wave = torch.arange(side), torch.arange(side)[:, None]
    basis = torch.cos(torch.pi / side * (place + 0.5) * wave) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    return basis


class Denoiser(nn.Module):
    """Cosine transform, soft threshold, transform back: an image denoiser of 64 parameters, one per frequency.

    Args:
        start: every threshold's first value, > 0.
        operator: ``operator(x, threshold)``; any of the versions.
    """

    def __init__(self, start: float = 0.05, operator=soft_threshold, side: int = 8):
        super().__init__()
        self.operator = operator
        self.register_buffer("basis", cosine_basis(side))
        self.threshold = nn.Parameter(torch.full((side, side), start))

    def forward(self, noisy: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """``noisy`` and ``labels`` (the clean images) are (B, 8, 8); the loss is the mean squared error."""
        waves = self.basis @ noisy @ self.basis.T
        logits = self.basis.T @ self.operator(waves, self.threshold.clamp_min(0)) @ self.basis
        output = {"logits": logits}
        return output if labels is None else {"loss": nn.functional.mse_loss(logits, labels)} | output
