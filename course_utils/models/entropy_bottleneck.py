"""A learned entropy model: how many bits does a quantised latent cost? (lesson 07)

Source: Balle, Minnen, Singh, Hwang & Johnston 2018, "Variational image compression with a scale hyperprior", appendix
6.1: one cumulative distribution per channel, a tiny network made monotone by softplus weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 1e-9  # a likelihood is never less: its logarithm stays finite


class EntropyBottleneck(nn.Module):
    """Adds noise (training) or rounds (evaluation), and says how likely each latent was.

    ``quantiles`` (C, 1, 3) hold, per channel, the values below which lie ``tail / 2``, one half and ``1 - tail / 2`` of
    the latents. They bound the tables of the entropy coder, whose size is a whole number: no gradient of the rate
    reaches them, they have a loss of their own (``aux_loss``).

    Args:
        channels: C of the latent (B, C, ...).
        filters: widths of the distribution's network.
        init_scale: half-width of the initial distribution.
        tail: probability mass outside the outer quantiles.
    """

    def __init__(self, channels: int, filters: Sequence[int] = (3, 3, 3), init_scale: float = 10.0, tail: float = 1e-9):
        super().__init__()
        widths = [1, *filters, 1]
        scale = init_scale ** (1 / (len(widths) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for inside, outside in zip(widths, widths[1:], strict=False):
            start = math.log(math.expm1(1 / scale / outside))
            self.matrices.append(torch.full((channels, outside, inside), start))
            self.biases.append(torch.empty(channels, outside, 1).uniform_(-0.5, 0.5))
            if outside > 1:
                self.factors.append(torch.zeros(channels, outside, 1))
        self.quantiles = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]).repeat(channels, 1, 1))
        self.target = math.log(2 / tail - 1)  # the logit of 1 - tail / 2

    def logits(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Logit of the cumulative distribution at ``x`` (C, 1, n); ``frozen``: no gradient to the distribution."""
        for layer, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            matrix, bias = (matrix.detach(), bias.detach()) if frozen else (matrix, bias)
            x = F.softplus(matrix) @ x + bias
            if layer < len(self.factors):
                factor = self.factors[layer].detach() if frozen else self.factors[layer]
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x

    def likelihood(self, x: Tensor) -> Tensor:
        """Probability of the interval of width one around ``x`` (C, 1, n)."""
        below, above = self.logits(x - 0.5), self.logits(x + 0.5)
        sign = -torch.sign(below + above).detach()  # subtract on the side where the sigmoid is small: more digits
        return (torch.sigmoid(sign * above) - torch.sigmoid(sign * below)).abs().clamp_min(SMALLEST)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``y`` (B, C, ...) -> the latent with noise (training) or rounded, and its likelihood, both (B, C, ...)."""
        by_channel = y.transpose(0, 1)
        flat = by_channel.reshape(len(by_channel), 1, -1)
        if self.training:
            flat = flat + torch.empty_like(flat).uniform_(-0.5, 0.5)
        else:
            flat = torch.round(flat - self.medians) + self.medians
        shape = by_channel.shape
        return flat.reshape(shape).transpose(0, 1), self.likelihood(flat).reshape(shape).transpose(0, 1)

    @property
    def medians(self) -> Tensor:
        """(C, 1, 1): where rounding is centred; no gradient."""
        return self.quantiles[:, :, 1:2].detach()

    def aux_loss(self) -> Tensor:
        """How far the quantiles are from where the distribution, held fixed, has them; a scalar."""
        wanted = self.quantiles.new_tensor([-self.target, 0.0, self.target])
        return (self.logits(self.quantiles, frozen=True) - wanted).abs().sum()

    @torch.no_grad()
    def tables(self) -> list[tuple[int, Tensor]]:
        """Per channel ``(lowest, probabilities)``: symbol ``lowest + i`` has ``probabilities[i]``."""
        found = []
        low, middle, high = self.quantiles[:, 0].unbind(-1)
        first, last = -torch.ceil(middle - low).long().clamp_min(0), torch.ceil(high - middle).long().clamp_min(0)
        widest = torch.arange(int(first.min()), int(last.max()) + 1)
        likelihood = self.likelihood(widest.to(self.quantiles) + self.medians)[:, 0]  # (C, widest)
        for channel, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            start = a - int(widest[0])
            found.append((a, likelihood[channel, start : start + b - a + 1]))
        return found

    @torch.no_grad()
    def symbols(self, y: Tensor) -> Tensor:
        """Whole numbers (B, C, ...) that stand for the latent: its distance from the median, rounded."""
        medians = self.medians.reshape(1, -1, *[1] * (y.ndim - 2))
        return torch.round(y - medians).long()

    @torch.no_grad()
    def values(self, symbols: Tensor) -> Tensor:
        """The latent that ``symbols`` (B, C, ...) stand for."""
        return symbols + self.medians.reshape(1, -1, *[1] * (symbols.ndim - 2))
