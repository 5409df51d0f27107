"""The stages before the vision-language model: short, but each must learn something and find its rows."""

from __future__ import annotations

import torch

from course_utils.data.visual_questions import scene_tokenizer, visual_questions
from course_utils.training import vision_stages
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


def test_a_scorer_that_is_stuck_starts_again_and_the_lowest_loss_is_kept(monkeypatch):
    data, vocabulary = visual_questions(scenes=300)["train"], scene_tokenizer().get_vocab()
    features, starts = torch.randn(len(data), 16, 64), []
    monkeypatch.setattr(vision_stages, "fit", lambda *_, seed, **__: starts.append(seed))  # learns nothing
    kept = train_scorer(features, data, vocabulary, seed=7)
    assert starts == [7, 107, 207]
    ids = vision_stages.question_ids(data.questions, vocabulary)
    words = torch.tensor([vocabulary[answer.split()[-1]] for answer in data.answers])
    losses = {}
    monkeypatch.setattr(vision_stages, "STARTS", 1)
    for start in (7, 107, 207):
        scorer = train_scorer(features, data, vocabulary, seed=start)
        losses[start] = torch.nn.functional.cross_entropy(scorer(features, ids)[1], words).item()
        if torch.equal(scorer.place, kept.place):
            chosen = start
    assert losses[chosen] == min(losses.values())
    monkeypatch.setattr(vision_stages, "STUCK", 100.0)
    monkeypatch.setattr(vision_stages, "STARTS", 3)
    starts.clear()
    train_scorer(features, data, vocabulary, seed=7)
    assert starts == [7]  # one that learned is kept
