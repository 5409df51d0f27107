"""A vision-language model by hand: patches -> projector -> causal language model, and a scorer that chooses patches.

The form is LLaVA's (Liu et al., "Visual instruction tuning", arXiv:2304.08485, section 4.1; two-layer projector:
arXiv:2310.03744): the vision tower's output for a patch goes through a small network and takes the place of one
``<image>`` token. Lesson 14 builds it and shows that it equals ``LlavaForConditionalGeneration``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, PreTrainedModel, Qwen3Config, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import ModelOutput

from course_utils.data.batches import IGNORED

WIDTH = 64


@dataclass
class VisionLanguageOutput(ModelOutput):
    """``loss`` where there were labels; ``logits`` (B, T, vocabulary)."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Projector(nn.Module):
    """From the tower's width V to the language model's width D: (B, P, V) -> (B, P, D)."""

    def __init__(self, vision_width: int, text_width: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(features)))


class VisionLanguageModel(nn.Module):
    """Image tokens take the place of ``<image>``; the rest is a causal language model.

    Args:
        tower: a vision encoder of transformers, (B, 1, H, W) -> ``last_hidden_state`` (B, P, V).
        language_model: a causal language model of transformers of width D.
        image_token_id: number of the token ``<image>``.
        marks_scores: learn a direction (D,) that is added to a kept patch's token, times its score.
    """

    loss_type = "ForCausalLM"  # logits at position t are for token t + 1: ``RelevanceTrainer`` reads this

    def __init__(
        self, tower: nn.Module, language_model: PreTrainedModel, image_token_id: int, marks_scores: bool = False
    ):
        super().__init__()
        width = language_model.config.hidden_size
        self.tower, self.language_model, self.image_token_id = tower, language_model, image_token_id
        self.projector = Projector(tower.config.hidden_size, width)
        self.score_direction = nn.Parameter(0.1 * torch.randn(width)) if marks_scores else None
        self.register_state_dict_post_hook(_leave_out_tied)
        self.register_load_state_dict_pre_hook(_put_in_tied)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        image_features: Tensor | None = None,
        kept: Tensor | None = None,
        kept_scores: Tensor | None = None,
    ) -> VisionLanguageOutput:
        """Logits of every position, and the mean loss over labels.

        Args:
            input_ids: (B, T); as many ``<image>`` tokens a row as patches are kept.
            pixel_values: (B, 1, H, W).
            attention_mask: (B, T), 0 on padding.
            labels: (B, T), -100 where there is no target.
            image_features: (B, P, V), the tower's output computed before, in place of ``pixel_values``.
            kept: (B, k), numbers of the patches that become tokens; None: all P.
            kept_scores: (B, k), their scores, for a model that marks them.

        Raises:
            ValueError: the number of ``<image>`` tokens is not that of the image's patches.
        """
        if image_features is None:
            image_features = vision_features(self.tower, pixel_values)
        tokens = self.image_tokens(image_features, kept, kept_scores)
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        is_image = input_ids == self.image_token_id
        if int(is_image.sum()) != tokens.shape[0] * tokens.shape[1]:
            raise ValueError(
                f"input_ids hold {int(is_image.sum())} image tokens for {tokens.shape[0]} x {tokens.shape[1]} patches; "
                "allowed: one for each kept patch"
            )
        embeddings = embeddings.masked_scatter(is_image[..., None], tokens.to(embeddings))
        logits = self.language_model(inputs_embeds=embeddings, attention_mask=attention_mask).logits
        return VisionLanguageOutput(None if labels is None else next_token_loss(logits, labels), logits)

    def image_tokens(self, image_features: Tensor, kept: Tensor | None, kept_scores: Tensor | None) -> Tensor:
        """The projected patches that are kept, (B, k, D)."""
        if kept is not None:
            image_features = image_features.gather(1, kept[..., None].expand(-1, -1, image_features.shape[-1]))
        tokens = self.projector(image_features)
        if self.score_direction is not None and kept_scores is not None:
            tokens = tokens + kept_scores[..., None] * self.score_direction
        return tokens


_TIED = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")


def _leave_out_tied(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """One tensor with two names is refused by safetensors: it is saved under the embedding's."""
    output, inputs = (prefix + name for name in _TIED)
    if output in state and inputs in state and state[output].data_ptr() == state[inputs].data_ptr():
        del state[output]


def _put_in_tied(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    output, inputs = (prefix + name for name in _TIED)
    if output not in state and inputs in state:
        state[output] = state[inputs]


def vision_features(tower: nn.Module, pixel_values: Tensor) -> Tensor:
    """The tower's last layer, (B, P, V), before its final norm: what LLaVA takes with ``vision_feature_layer=-1``."""
    return tower(pixel_values, output_hidden_states=True).hidden_states[-1]


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of labels (B, T) other than -100, predicted one position earlier by logits (B, T, C)."""
    flat = logits[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=IGNORED)


def vision_config(**overrides: Any) -> SiglipVisionConfig:
    """SigLIP's vision tower (Zhai et al., arXiv:2303.15343) for scenes of 32x32 pixels: 16 patches, width 64."""
    settings = {
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vision_use_head": False,
    }
    return SiglipVisionConfig(**(settings | overrides))


def text_config(vocab_size: int, pad_token_id: int = 0, eos_token_id: int = 3, **overrides: Any) -> Qwen3Config:
    """Qwen3 of width 64 and 2 layers. The usual initial spread, 0.02, is too small for this width: 0.1 trains."""
    settings = {
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        "use_cache": False,
        "bos_token_id": None,
    }
    settings |= {"vocab_size": vocab_size, "pad_token_id": pad_token_id, "eos_token_id": eos_token_id}
    return Qwen3Config(**(settings | overrides))


def llava_config(vocab_size: int, image_token_id: int) -> LlavaConfig:
    """The same model as transformers' own class: tower, two-layer projector, Qwen3; 16 image tokens."""
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(vocab_size),
        image_token_index=image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


class PatchReader(nn.Module):
    """The tower with a label for each patch: what it is pretrained with. (B, 1, H, W) -> logits (B, P, classes)."""

    def __init__(self, tower: SiglipVisionModel, classes: int):
        super().__init__()
        self.tower, self.head = tower, nn.Linear(tower.config.hidden_size, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> VisionLanguageOutput:
        logits = self.head(self.tower(pixel_values).last_hidden_state)  # behind the final norm
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return VisionLanguageOutput(loss, logits)


class PatchScorer(nn.Module):
    """How relevant is each patch to the question? Learned from answers only, never from where they stand.

    The question is a bag of words. Its query is compared with a key for each patch, made of what it shows and where it
    is; the softmax over patches is the relevance. To learn it, the relevance-weighted mean of the patches' values must
    give the answer ("attention pooling").

    Args:
        vocab_size: of the tokenizer.
        vision_width: V.
        patches: P.
        mean, std: (V,) of the features over training patches: they are standardised first.
    """

    def __init__(self, vocab_size: int, vision_width: int, patches: int, mean: Tensor, std: Tensor, width: int = WIDTH):
        super().__init__()
        self.words = nn.EmbeddingBag(vocab_size, width, mode="mean")
        self.read, self.value = nn.Linear(vision_width, width), nn.Linear(vision_width, width)
        self.place = nn.Parameter(torch.randn(patches, width))
        self.query, self.answer = nn.Linear(width, width), nn.Linear(2 * width, vocab_size)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, features: Tensor, question_ids: Tensor) -> tuple[Tensor, Tensor]:
        """``(relevance (B, P), answer logits (B, vocabulary))``.

        Args:
            features: (B, P, V) of the tower.
            question_ids: (B, L), padded with 0, which counts as a word like any other.
        """
        features = (features - self.mean) / self.std
        words = self.words(question_ids)
        keys = self.read(features) + self.place
        relevance = (keys @ self.query(words)[..., None]).squeeze(-1).mul(keys.shape[-1] ** -0.5).softmax(-1)
        seen = (relevance[..., None] * self.value(features)).sum(1)
        return relevance, self.answer(torch.cat([seen, words], dim=-1))
