"""Runs of lesson 14: the stages in one call, a run of the vision-language model by the Trainer, other relevances."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

import course_utils
from course_utils.data.batches import IGNORED
from course_utils.data.visual_questions import (
    IMAGE,
    PATCHES,
    VisualQuestions,
    VqaCollator,
    scene_tokenizer,
    visual_questions,
)
from course_utils.models.vision_language import PatchReader, PatchScorer, VisionLanguageModel, text_config
from course_utils.training.part_rates import PartRatesTrainer, freeze
from course_utils.training.settings import quiet_trainer
from course_utils.training.vision_stages import (
    patch_scores,
    pretrain_tower,
    question_ids,
    tower_features,
    train_scorer,
)
from course_utils.training.vqa import answers, by_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES = {"projector": 3e-3, "language_model": 3e-3, "score_direction": 3e-3}
# Evenly spread first, so that the first k of this order cover the grid.
SPREAD = (5, 10, 0, 15, 3, 12, 6, 9, 1, 14, 4, 11, 2, 7, 8, 13)


@dataclass
class Stages:
    """Data, words, the frozen tower, and what it and the scorer say about every row of every split."""

    data: dict[str, VisualQuestions]
    tokenizer: PreTrainedTokenizerBase
    reader: PatchReader
    features: dict[str, Tensor]
    scorer: PatchScorer
    scores: dict[str, Tensor]


def prepare(seed: int = 0, tower_steps: int = 250, scorer_steps: int = 700) -> Stages:
    """Stages 1 and 2: about 10 CPU-seconds."""
    data, tokenizer = visual_questions(seed=seed), scene_tokenizer()
    vocabulary = tokenizer.get_vocab()
    reader = pretrain_tower(data["train"], tower_steps, seed)
    features = {split: tower_features(reader.tower, rows.images) for split, rows in data.items()}
    scorer = train_scorer(features["train"], data["train"], vocabulary, scorer_steps, seed)
    scores = {split: patch_scores(scorer, features[split], rows.questions, vocabulary) for split, rows in data.items()}
    return Stages(data, tokenizer, reader, features, scorer, scores)


def other_scores(how: str, rows: VisualQuestions, seed: int = 0) -> Tensor:
    """Scores (N, 16) that no network computed.

    Args:
        how: "random": drawn for each question; "uniform": the same order for all, spread over the grid; "oracle": the
            patches that decide the answer share a score of 1.

    Raises:
        ValueError: another ``how``.
    """
    if how == "random":
        drawn = torch.rand(len(rows), PATCHES, generator=torch.Generator().manual_seed(seed))
        return drawn / drawn.sum(1, keepdim=True)
    if how == "uniform":
        order = torch.empty(PATCHES)
        order[list(SPREAD)] = torch.arange(PATCHES, 0, -1.0)
        return (order / order.sum()).expand(len(rows), PATCHES)
    if how == "oracle":
        relevant = rows.relevant.float()
        return relevant / relevant.sum(1, keepdim=True)
    raise ValueError(f"how={how!r} is not known; allowed: 'random', 'uniform', 'oracle'")


def new_model(reader: PatchReader, tokenizer: PreTrainedTokenizerBase, seed: int) -> VisionLanguageModel:
    """Stage 3's start: the tower, frozen, a fresh projector and a fresh language model."""
    torch.manual_seed(seed)
    language_model = Qwen3ForCausalLM(text_config(len(tokenizer)))
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    return VisionLanguageModel(freeze(reader.tower), language_model, image, marks_scores=True)


def train_run(
    model: nn.Module,
    rows: VisualQuestions,
    collate: VqaCollator,
    steps: int,
    seed: int = 0,
    *,
    rates: dict[str, float] | None = None,
    trainer_class: type[PartRatesTrainer] = PartRatesTrainer,
    eval_rows: VisualQuestions | None = None,
    **settings: Any,
) -> PartRatesTrainer:
    """``PartRatesTrainer`` for ``steps`` steps of 64 questions, trained; ``settings`` go to TrainingArguments.

    Only with ``output_dir`` among them does the run leave files behind.
    """
    usual = {
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 256,
        "lr_scheduler_type": "linear",
        "warmup_steps": 25,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": min(25, steps),
        "remove_unused_columns": False,
        "use_cpu": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            model,
            settings.pop("output_dir", folder),
            rows,
            eval_rows,
            data_collator=collate,
            trainer_class=partial(trainer_class, rates=rates or RATES),
            max_steps=steps,
            seed=seed,
            **(usual | settings),
        )
        trainer.train()
    return trainer


def score(model: nn.Module, rows: VisualQuestions, collate: VqaCollator) -> dict[str, float]:
    """Accuracy of all questions and of each kind."""
    return by_kind(answers(model, rows, collate)[0], rows.kinds)


class NotRenormalised(PartRatesTrainer):
    """The bug of section 7: weights multiply the losses, but the divisor still counts targets."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple:
        batches, _ = super().get_batch_samples(*args, **kwargs)
        return batches, sum(self._targets(batch)[0].ne(IGNORED).sum() for batch in batches)


class EverythingIsLabel(VqaCollator):
    """The bug of section 8: every token but padding is a label, image tokens and question included."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(rows)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        batch["relevance"] = batch["attention_mask"].float()
        return batch


def other_images(stages: Stages, split: str) -> tuple[Tensor, Tensor]:
    """``(features, scores)`` where every question has the row before's image, its patches scored for this question."""
    features = stages.features[split].roll(1, 0)
    questions, vocabulary = stages.data[split].questions, stages.tokenizer.get_vocab()
    return features, patch_scores(stages.scorer, features, questions, vocabulary)


@torch.no_grad()
def scorer_alone(stages: Stages, split: str) -> dict[str, float]:
    """Accuracy of the scorer's own answers, by kind."""
    rows, vocabulary = stages.data[split], stages.tokenizer.get_vocab()
    logits = stages.scorer(stages.features[split], question_ids(rows.questions, vocabulary))[1]
    right = logits.argmax(-1) == torch.tensor([vocabulary[answer] for answer in rows.answers])
    return by_kind(right, rows.kinds)


def prediction_panel(
    rows: VisualQuestions, numbers: Sequence[int], collate: VqaCollator, tokenizer: PreTrainedTokenizerBase
) -> Callable[[nn.Module], Figure]:
    """A function that draws these rows' scenes with a model's answers, for ``PredictionImages``."""

    def draw(model: nn.Module) -> Figure:
        from course_utils.lessons.lesson_14 import figures

        words = said(model, rows, numbers, collate, tokenizer)
        shown = [f"{word} ({rows.answers[number]})" for word, number in zip(words, numbers, strict=True)]
        return figures.scenes(rows.images[list(numbers)], [rows.questions[n] for n in numbers], shown, judged=True)

    return draw


def said(
    model: nn.Module,
    rows: VisualQuestions,
    numbers: Sequence[int],
    collate: VqaCollator,
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """The model's answer words to these rows."""
    chosen = [rows[number] for number in numbers]
    return tokenizer.convert_ids_to_tokens(answers(model, chosen, collate)[1])


def measured() -> dict[str, Any]:
    """What ``bench/bench_relevance.py`` found over several seeds, with the processor it ran on."""
    folder = Path(course_utils.__file__).parents[1]
    return json.loads((folder / "bench" / "results" / "relevance.json").read_text())
