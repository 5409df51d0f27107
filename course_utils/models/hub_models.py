"""The public models and tokenizers behind ``source="hub"``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course_utils.hub import HUB_NAMES, from_hub

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def load_hub_tokenizer(name: str = HUB_NAMES["encoder"]) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to model ``name``.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with from_hub(name, "model"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name)


def load_hub_classifier(name: str = HUB_NAMES["encoder"], num_labels: int = 2, **config_overrides: Any) -> nn.Module:
    """The pretrained encoder ``name`` with a new classification head of ``num_labels`` outputs, in float32.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with from_hub(name, "model"):
        import torch
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=num_labels, dtype=torch.float32, **config_overrides
        )


def load_hub_masked_lm(name: str = HUB_NAMES["encoder"], **config_overrides: Any) -> nn.Module:
    """The pretrained encoder ``name`` with its masked-language-model head, in float32.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with from_hub(name, "model"):
        import torch
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32, **config_overrides)


def load_hub_causal_lm(name: str = HUB_NAMES["causal_lm"], dtype: str = "float32") -> nn.Module:
    """The pretrained causal language model ``name``.

    Args:
        dtype: of the weights. transformers 5 would keep the checkpoint's own (bfloat16 for Qwen3), in which AdamW's
            small updates are lost to rounding: float32 is the default here.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with from_hub(name, "model"):
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
