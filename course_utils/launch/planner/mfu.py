"""What share of its peak a GPU reached in public training runs, and how each was counted (lesson 15).

``Spec.mfu`` is an assumption. These are measurements that others published, with enough of the model to count again:
this planner counts half of a causal model's attention, most publications all of it, which makes long sequences look
better.
"""

from __future__ import annotations

from typing import NamedTuple

LLM_FOUNDRY = "github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md (FSDP, bf16)"
TORCHTITAN = "github.com/pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md (FSDP, bf16, 500 W H100)"
LLAMA_3 = "Grattafiori et al. 2024, 'The Llama 3 Herd of Models', table 4 (4D parallel, bf16)"


class Measured(NamedTuple):
    """One published run; ``published`` is its MFU as printed there, without what checkpointing computes again."""

    model: str
    gpu: str  # the kind, as in ``course_utils.gpus``, without its memory
    gpus: int
    tokens: int  # of a sequence
    checkpointing: bool  # of whole layers or a selection
    published: float
    parameters: float
    layers: int
    width: int  # of queries
    counts_all_attention: bool | None  # None: not said
    source: str

    @property
    def share(self) -> float:
        """MFU in this planner's count: half of the attention's operations, where the source counted all of them."""
        if not self.counts_all_attention:
            return self.published
        dense, scores = 6 * self.parameters, 12 * self.layers * self.width * self.tokens
        return self.published * (dense + scores / 2) / (dense + scores)


def _mpt(billions: int, gpu: str, gpus: int, tokens: int, checkpointing: bool, published: float) -> Measured:
    parameters, layers, width = {7: (6.66e9, 32, 4096), 13: (12.85e9, 40, 5120), 30: (29.98e9, 48, 7168)}[billions]
    shape = (parameters, layers, width)
    return Measured(f"MPT {billions}B", gpu, gpus, tokens, checkpointing, published, *shape, True, LLM_FOUNDRY)


MEASURED = (
    _mpt(7, "H100", 8, 2048, False, 0.4644),
    _mpt(13, "H100", 64, 2048, False, 0.3986),
    _mpt(30, "H100", 8, 2048, True, 0.3811),
    _mpt(30, "H100", 32, 2048, True, 0.4392),
    _mpt(7, "H100", 8, 8192, True, 0.3714),
    _mpt(30, "H100", 8, 8192, True, 0.2992),
    Measured("Llama 3.1 8B, eager", "H100", 8, 8192, True, 0.33, 8.03e9, 32, 4096, True, TORCHTITAN),
    Measured("Llama 3.1 8B, compiled", "H100", 8, 8192, True, 0.39, 8.03e9, 32, 4096, True, TORCHTITAN),
    Measured("Llama 3 405B", "H100", 8192, 8192, False, 0.43, 405e9, 126, 16384, None, LLAMA_3),
    Measured("Llama 3 405B", "H100", 16384, 8192, False, 0.41, 405e9, 126, 16384, None, LLAMA_3),
    _mpt(7, "A100", 8, 2048, False, 0.6423),
    _mpt(13, "A100", 8, 2048, False, 0.5957),
    _mpt(30, "A100", 8, 2048, True, 0.5530),
    _mpt(7, "A100", 8, 8192, True, 0.5447),
    _mpt(30, "A100", 8, 8192, True, 0.3938),
)


def published_range(gpu: str) -> tuple[float, float] | None:
    """Smallest and largest measured share on this kind of GPU, in this planner's count; None: none is known here.

    Args:
        gpu: as ``Spec.gpu``, such as ``"H100-80GB"``.
    """
    found = [one.share for one in MEASURED if one.gpu == gpu.partition("-")[0]]
    return (min(found), max(found)) if found else None


def measured_table(gpu: str) -> str:
    """The measurements of one kind of GPU as text: as published, and in this planner's count."""
    lines = [f"{'model':24}{'GPUs':>7}{'tokens':>8}{'recomputes':>12}{'published':>11}{'our count':>11}"]
    for one in MEASURED:
        if one.gpu == gpu.partition("-")[0]:
            ours = f"{one.share:.2f}" if one.counts_all_attention is not None else "not said"
            again = "yes" if one.checkpointing else "no"
            numbers = f"{one.gpus:7,}{one.tokens:8,}{again:>12}{one.published:11.2f}{ours:>11}"
            lines.append(f"{one.model:24}{numbers}")
    return "\n".join(lines)
