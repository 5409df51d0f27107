"""The stages before a vision-language model learns to answer: a tower that reads patches, a scorer that finds them.

Stage 1 pretrains the vision tower with a label for each patch, stage 2 trains the scorer on the frozen tower's features
from answers alone (lesson 14). What a frozen tower says about an image never changes, so it is computed once.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from course_utils.data.visual_questions import NOISE, PATCHES, UNKNOWN, VisualQuestions
from course_utils.models.vision_language import PatchReader, PatchScorer, vision_config, vision_features
from course_utils.training.schedules import make_scheduler

STUCK, STARTS = 1.0, 3  # of a scorer: a training loss that says "other patches", and how often it may begin


def fit(parameters: list[nn.Parameter], loss_of, rows: int, steps: int, batch: int, rate: float, seed: int) -> None:
    """AdamW on random batches, the rate falling to 0: ``loss_of(numbers of the rows)`` is minimised."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, fused=True)
    scheduler = make_scheduler(optimizer, "linear", warmup_steps=0, max_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        loss = loss_of(torch.randint(rows, (batch,), generator=generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def pretrain_tower(data: VisualQuestions, steps: int = 250, seed: int = 0) -> PatchReader:
    """Stage 1: a fresh tower learns which digit each patch holds, 48 scenes a step; it is ``reader.tower``."""
    from transformers import SiglipVisionModel

    torch.manual_seed(seed)
    reader = PatchReader(SiglipVisionModel(vision_config()), NOISE + 1)
    fit(
        list(reader.parameters()),
        lambda rows: reader(data.images[rows], data.cells[rows]).loss,
        len(data),
        steps,
        batch=48,
        rate=2e-3,
        seed=seed,
    )
    return reader.eval()


@torch.no_grad()
def tower_features(tower: nn.Module, images: Tensor) -> Tensor:
    """What the tower says about every patch of every image, (N, 16, V)."""
    return torch.cat([vision_features(tower, chunk) for chunk in images.split(512)])


def question_ids(questions: list[str], vocabulary: dict[str, int]) -> Tensor:
    """(N, L) token ids, filled up with 0."""
    unknown = vocabulary[UNKNOWN]
    rows = [torch.tensor([vocabulary.get(word, unknown) for word in question.split()]) for question in questions]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def train_scorer(
    features: Tensor, data: VisualQuestions, vocabulary: dict[str, int], steps: int = 700, seed: int = 0
) -> PatchScorer:
    """Stage 2: a scorer on the frozen features, 256 questions a step; only answers are given, no places.

    Now and then a start keeps to wrong patches: 3 of 36 did, and ended with a training loss above 1.6, the others below
    0.5. So a loss above ``STUCK`` brings another start, ``STARTS`` in all; the scorer of the lowest loss is returned.
    """
    flat = features.flatten(0, 1)
    questions = question_ids(data.questions, vocabulary)
    words = torch.tensor([vocabulary[answer.split()[-1]] for answer in data.answers])

    def loss(scorer: PatchScorer, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scorer(features[rows], questions[rows])[1], words[rows])

    found: dict[float, PatchScorer] = {}  # by training loss
    for start in range(seed, seed + 100 * STARTS, 100):
        torch.manual_seed(start)
        scorer = PatchScorer(len(vocabulary), features.shape[-1], PATCHES, flat.mean(0), flat.std(0))
        fit(list(scorer.parameters()), partial(loss, scorer), len(data), steps, batch=256, rate=1e-2, seed=start)
        with torch.no_grad():
            found[loss(scorer, torch.arange(len(data))).item()] = scorer
        if min(found) < STUCK:
            break
    return found[min(found)].eval()


@torch.no_grad()
def patch_scores(scorer: PatchScorer, features: Tensor, questions: list[str], vocabulary: dict[str, int]) -> Tensor:
    """The relevance of each patch to its question, (N, 16), each row adding up to 1."""
    return scorer(features, question_ids(questions, vocabulary))[0]
