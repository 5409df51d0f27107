"""The stages before the vision-language model: short, but each must learn something and find its rows."""

from __future__ import annotations

import torch

from course_utils.data.visual_questions import scene_tokenizer, visual_questions
from course_utils.training.vision_stages import patch_scores, pretrain_tower, tower_features, train_scorer


def test_stages_learn_and_repeat():
    data, vocabulary = visual_questions(scenes=300)["train"], scene_tokenizer().get_vocab()
    reader = pretrain_tower(data, steps=60)
    with torch.no_grad():
        accuracy = (reader(data.images).logits.argmax(-1) == data.cells).float().mean()
    assert accuracy > (data.cells == 10).float().mean() + 0.05  # better than calling everything noise
    features = tower_features(reader.tower, data.images)
    assert features.shape == (300, 16, 64) and not features.requires_grad
    scores = [patch_scores(train_scorer(features, data, vocabulary, steps=5), features, data.questions, vocabulary)] * 2
    again = patch_scores(train_scorer(features, data, vocabulary, steps=5), features, data.questions, vocabulary)
    assert torch.equal(scores[0], again)
    torch.testing.assert_close(again.sum(1), torch.ones(300))
