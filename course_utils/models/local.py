"""Small models built from a configuration, or the hub's pretrained ones; both through the same functions.

Local models start from random weights: seed before you build one (``teach.start`` does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course_utils.hub import check_source
from course_utils.models.tokenizer import VOCAB_SIZE

if TYPE_CHECKING:
    from transformers import ModernBertConfig, PreTrainedModel

HIDDEN, HEADS = 128, 4
CAUSAL_VOCAB_SIZE = 4_096


def encoder_config(**overrides: Any) -> ModernBertConfig:
    """ModernBERT (Warner et al. 2024, arXiv:2412.13663) at width 128 and 4 layers: rotary positions, pre-norm, GeGLU.

    Pre-norm trains at learning rates around 1e-3, where a post-norm encoder of the same size (DistilBERT's) stalls:
    500 steps of 32 rows at 1e-3 with linear decay make a good classifier of the course's corpus (lesson 01).
    """
    from transformers import ModernBertConfig

    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 512,
        # Depth and dropout: compared on the validation split, 3 seeds each (bench/bench_classifier.py says what else).
        "embedding_dropout": 0.2,
        "classifier_dropout": 0.1,
        "classifier_pooling": "mean",
        "pad_token_id": 0,
        "cls_token_id": 2,
        "bos_token_id": 2,
        "sep_token_id": 3,
        "eos_token_id": 3,
    }
    return ModernBertConfig(**(settings | overrides))


def load_classifier(num_labels: int, source: str = "local", **overrides: Any) -> PreTrainedModel:
    """A sequence classifier: ``model(input_ids, attention_mask, labels)`` gives ``.loss`` and ``.logits`` (B, labels).

    Local: ``encoder_config(**overrides)``, 1.7 million parameters, random weights. Hub: DistilBERT with a new head.

    Args:
        num_labels: classes, >= 2.
        **overrides: configuration fields, local or hub.

    Raises:
        ValueError: unknown ``source`` or ``num_labels`` below 2.
        ConnectionError: ``source="hub"`` without a network.
    """
    check_source(source)
    if num_labels < 2:
        raise ValueError(f"num_labels={num_labels} is out of range; allowed: a whole number >= 2")
    if source == "hub":
        from course_utils.models.hub_models import load_hub_classifier

        return load_hub_classifier(num_labels=num_labels, **overrides)
    from transformers import ModernBertForSequenceClassification

    return ModernBertForSequenceClassification(encoder_config(num_labels=num_labels, **overrides))


def load_masked_lm(source: str = "local", **overrides: Any) -> PreTrainedModel:
    """The encoder with a masked-language-model head: logits (B, T, vocabulary). Hub: DistilBERT, pretrained.

    Raises:
        ValueError: unknown ``source``.
        ConnectionError: ``source="hub"`` without a network.
    """
    check_source(source)
    if source == "hub":
        from course_utils.models.hub_models import load_hub_masked_lm

        return load_hub_masked_lm()
    from transformers import ModernBertForMaskedLM

    return ModernBertForMaskedLM(encoder_config(**overrides))


def load_causal_lm(source: str = "local", vocab_size: int = CAUSAL_VOCAB_SIZE, **overrides: Any) -> PreTrainedModel:
    """A causal language model: logits (B, T, vocabulary).

    Local: Qwen3's architecture (Qwen team 2025, arXiv:2505.09388) at width 128 and 4 layers, 1.3 million parameters,
    random weights. Hub: Qwen3-0.6B, pretrained.

    Raises:
        ValueError: unknown ``source``.
        ConnectionError: ``source="hub"`` without a network.
    """
    check_source(source)
    if source == "hub":
        from course_utils.models.hub_models import load_hub_causal_lm

        return load_hub_causal_lm()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "use_cache": False,  # generation turns it on; in training it only warns
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return Qwen3ForCausalLM(Qwen3Config(**(settings | overrides)))
