"""Training with 16-bit weights: why small updates vanish, and two cures (lesson 09).

A bf16 number has 8 significant bits, so the next number after 1 is 1 + 2**-7. An update below half of that, rounded to
nearest, changes nothing. Master weights: an fp32 copy takes the update, the model gets its rounded copy (Micikevicius
et al. 2018, arXiv:1710.03740, section 3.1). Stochastic rounding: round up with the probability that makes the mean
right (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", arXiv:1502.02551, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_LOWER = 16  # bits of an fp32 number that bf16 does not have


def round_stochastically(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``x`` in bf16, rounded up or down at random so that the mean is ``x``.

    bf16 is the upper half of fp32's bits. A random number is added to the lower half, then that half is cut off: the
    addition carries into the upper half with the probability that the lower half stands for.

    Args:
        x: fp32, any shape, finite.
        generator: source of randomness.

    Raises:
        ValueError: ``x`` is not fp32.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x has dtype {x.dtype}; allowed: torch.float32")
    bits = x.view(torch.int32)
    noise = torch.randint(0, 1 << _LOWER, bits.shape, dtype=torch.int32, device=x.device, generator=generator)
    return ((bits + noise) & -(1 << _LOWER)).view(torch.float32).to(torch.bfloat16)


class MasterWeights:
    """An optimizer over fp32 copies of 16-bit weights.

    ``step()`` brings the gradients to the copies, lets ``make_optimizer``'s optimizer update these, and writes them
    back, rounded to nearest. 16-bit models trained by DeepSpeed or Megatron keep such copies.

    Args:
        parameters: of the model, 16-bit.
        make_optimizer: takes the fp32 copies, returns a torch optimizer.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], make_optimizer: Callable[[list[Tensor]], object]):
        self.weights = [p for p in parameters if p.requires_grad]
        self.copies = [p.detach().float().clone() for p in self.weights]
        self.optimizer = make_optimizer(self.copies)

    @torch.no_grad()
    def step(self) -> None:
        """One update of the copies, and of the model's weights from them."""
        for weight, copy in zip(self.weights, self.copies, strict=True):
            copy.grad = None if weight.grad is None else weight.grad.float()
        self.optimizer.step()
        for weight, copy in zip(self.weights, self.copies, strict=True):
            weight.copy_(copy)
            copy.grad = None

    def zero_grad(self) -> None:
        """Drop the model's gradients."""
        for weight in self.weights:
            weight.grad = None


class StochasticRounding:
    """An optimizer step on fp32 copies that are thrown away, written back with ``round_stochastically``.

    No copy lives between steps: weights take 2 bytes. The optimizer's moments are fp32 here.

    Args:
        parameters: of the model, bf16.
        make_optimizer: takes fp32 tensors, returns a torch optimizer; its state is kept.
        seed: of the rounding.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], make_optimizer: Callable[[list[Tensor]], object], seed: int = 0
    ):
        self.weights = [p for p in parameters if p.requires_grad]
        self._views = [torch.empty(0, dtype=torch.float32) for _ in self.weights]
        self.optimizer = make_optimizer(self._views)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self) -> None:
        """One update; each weight goes to one of its two neighbours in bf16."""
        for weight, view in zip(self.weights, self._views, strict=True):
            view.grad = None
            view.data = weight.float()
            view.grad = None if weight.grad is None else weight.grad.float()
        self.optimizer.step()
        for weight, view in zip(self.weights, self._views, strict=True):
            weight.copy_(round_stochastically(view.data, self.generator))
            view.grad = None
            view.data = torch.empty(0)

    def zero_grad(self) -> None:
        """Drop the model's gradients."""
        for weight in self.weights:
            weight.grad = None
