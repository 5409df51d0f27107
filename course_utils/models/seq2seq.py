"""A small encoder-decoder with a tokenizer of whole words, for tasks with a few dozen words (lesson 04)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BartForConditionalGeneration, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token per word, split at spaces; every text ends in ``</s>``, which tells ``generate`` where to stop.

    Raises:
        ValueError: a word is empty, holds a space or occurs twice.
    """
    wrong = next((w for w in words if not w or " " in w or list(words).count(w) > 1 or w in SPECIAL_TOKENS), None)
    if wrong is not None:
        raise ValueError(f"words holds {wrong!r}; allowed: different words without spaces")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, model_input_names=["input_ids", "attention_mask"]
    )


def small_seq2seq(vocab_size: int, **overrides: Any) -> BartForConditionalGeneration:
    """BART's architecture (Lewis et al. 2020, arXiv:1910.13461) at width 128 with 2 + 2 layers, random weights.

    0.7 million parameters. ``init_std`` 0.05 and scaled embeddings matter at this size: with BART's own 0.02 the
    model writes nothing right after 200 steps. ``forced_eos_token_id`` is off, or the last word would be cut off.

    Args:
        vocab_size: entries of the tokenizer; ids as ``SPECIAL_TOKENS``.
        **overrides: fields of ``BartConfig``.

    Raises:
        ValueError: ``vocab_size`` leaves no room for a word.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size={vocab_size} is out of range; allowed: a whole number > {len(SPECIAL_TOKENS)}")
    from transformers import BartConfig, BartForConditionalGeneration

    settings = {
        "vocab_size": vocab_size,
        "d_model": 128,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 256,
        "decoder_ffn_dim": 256,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "scale_embedding": True,
        "init_std": 0.05,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
    }
    return BartForConditionalGeneration(BartConfig(**(settings | overrides)))
