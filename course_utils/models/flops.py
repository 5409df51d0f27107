"""Floating-point operations of training: from a model's shape, and counted on one real batch (lessons 05 and 09)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from course_utils.models.shapes import ModelShape, matrix_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn


def training_flops_per_token(shape: ModelShape, length: int) -> float:
    """FLOPs that training takes per token, forward and backward, nothing recomputed: what MFU counts.

    ``6 N + 12 L H Q T`` (Chowdhery et al. 2022, "PaLM", appendix B): N weights of matrix multiplications, L layers, H
    heads of width Q, T tokens that each token attends to. A causal model attends to half of them on average.

    Args:
        shape: of the model; ``course_utils.models.configs.shape_of_config(model.config)``.
        length: tokens of a sequence, T >= 1.

    Raises:
        ValueError: ``length`` below 1.
    """
    if length < 1:
        raise ValueError(f"length={length} is out of range; allowed: a whole number >= 1")
    attended = length / 2 if shape.lm_head else length
    return 6 * matrix_parameters(shape) + 12 * shape.num_hidden_layers * shape.query_size * attended


def counted_flops(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """FLOPs of one forward and backward pass on ``batch``, counted operator by operator (torch's FlopCounterMode).

    Works for any module with a loss; the model's gradients are cleared. Fused attention counts all T x T scores, also
    where a causal mask leaves half of them out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = model(**batch)
        (output["loss"] if isinstance(output, dict) else output.loss).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()
