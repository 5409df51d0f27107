"""The vision-language model by hand: equal to LLaVA, keeps patches, is saved without tied tensors."""

from __future__ import annotations

import pytest
import torch

from course_utils.data.visual_questions import VqaCollator, scene_tokenizer, visual_questions
from course_utils.models.vision_language import (
    PatchScorer,
    VisionLanguageModel,
    llava_config,
    text_config,
    vision_config,
    vision_features,
)


@pytest.fixture(scope="module")
def tokenizer():
    return scene_tokenizer()


def build(tokenizer, marks_scores=False):
    from transformers import Qwen3ForCausalLM, SiglipVisionModel

    torch.manual_seed(0)
    language_model = Qwen3ForCausalLM(text_config(len(tokenizer)))
    tower = SiglipVisionModel(vision_config())
    return VisionLanguageModel(tower, language_model, tokenizer.convert_tokens_to_ids("<image>"), marks_scores)


@pytest.fixture(scope="module")
def rows():
    return visual_questions(scenes=20)["train"]


def test_equals_llava(tokenizer, rows):
    from transformers import LlavaForConditionalGeneration

    ours = build(tokenizer).eval()
    llava = LlavaForConditionalGeneration(llava_config(len(tokenizer), ours.image_token_id)).eval()
    llava.model.vision_tower.load_state_dict(ours.tower.state_dict())
    llava.model.multi_modal_projector.load_state_dict(ours.projector.state_dict())
    llava.model.language_model.load_state_dict(ours.language_model.model.state_dict())
    batch = VqaCollator(tokenizer)([rows[number] for number in range(4)])
    batch.pop("relevance")
    with torch.no_grad():
        a, b = ours(**batch), llava(**batch)
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.loss, b.loss)


def test_kept_patches_and_their_scores_reach_the_model(tokenizer, rows):
    model = build(tokenizer, marks_scores=True).eval()
    scores = torch.rand(len(rows), 16)
    batch = VqaCollator(tokenizer, 3, scores)([rows[0], rows[1]])
    batch.pop("relevance")
    with torch.no_grad():
        loss = model(**batch).loss
        features = vision_features(model.tower, batch["pixel_values"])
        cached = {**batch, "image_features": features}
        del cached["pixel_values"]
        torch.testing.assert_close(model(**cached).loss, loss)
        features = features.clone()
        features.scatter_(1, batch["kept"][..., None].expand(-1, -1, 64), 0.0)
        assert abs(model(**{**cached, "image_features": features}).loss - loss) > 1e-4
        assert abs(model(**{**batch, "kept_scores": 5 * batch["kept_scores"]}).loss - loss) > 1e-4


def test_a_wrong_number_of_image_tokens_is_refused(tokenizer, rows):
    batch = VqaCollator(tokenizer)([rows[0]])
    with pytest.raises(ValueError, match="16 image tokens for 1 x 2 patches"):
        build(tokenizer)(batch["input_ids"], batch["pixel_values"], kept=torch.tensor([[0, 1]]))


def test_saved_without_the_tied_tensor_and_loaded(tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = build(tokenizer), build(tokenizer)
    with torch.no_grad():
        model.language_model.model.embed_tokens.weight.add_(1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.language_model.lm_head.weight, model.language_model.lm_head.weight)


def test_scorer_is_a_distribution_over_patches():
    scorer = PatchScorer(11, 8, 16, torch.zeros(8), torch.ones(8))
    relevance, answer = scorer(torch.randn(3, 16, 8), torch.randint(11, (3, 5)))
    assert relevance.shape == (3, 16) and answer.shape == (3, 11)
    torch.testing.assert_close(relevance.sum(1), torch.ones(3))
