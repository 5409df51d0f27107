"""Questions about scenes of digits, with their answers as tokens: what a vision-language model learns from (lesson 14).

A scene is 4x4 cells of 8x8 pixels. Four to eight cells hold a real digit, the others a digit whose pixels were
shuffled: as much ink, nothing to read. Rows and columns have names of their own ("second row", "column C").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course_utils.data.batches import IGNORED, check_not_empty
from course_utils.data.digits import NUMBERS, SHARES, SIZE, digit_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GRID = 4  # cells per side of a scene
PATCHES = GRID * GRID
SIDE = GRID * SIZE  # pixels per side of a scene
NOISE = 10  # the label of a cell that holds no digit
KINDS = ("at", "count", "largest")
KIND_SHARES = (0.6, 0.15, 0.25)
ROWS, COLUMNS = ("first", "second", "third", "fourth"), ("A", "B", "C", "D")
FEWEST, MOST = 4, 8  # digits in a scene
FILLER = ("well", "so", "look", "now", "right", "okay", "hm", "see")
PAD, UNKNOWN, IMAGE, END = "<pad>", "<unknown>", "<image>", "<end>"
_WORDS = "what is in the row column ? how many digits are there which digit largest"
WORDS = tuple(dict.fromkeys([PAD, UNKNOWN, IMAGE, END, *_WORDS.split(), *ROWS, *COLUMNS, *NUMBERS, *FILLER]))


@dataclass
class VisualQuestions:
    """N questions, each about a scene of its own; an item is a row for ``VqaCollator``.

    Attributes:
        images: (N, 1, 32, 32) float32, ink from 0 to 1.
        cells: (N, 16) int64, the digit in each cell, row by row, or ``NOISE``.
        questions, answers: N texts; an answer is filler, if any, and then one number word.
        kinds: N of ``KINDS``.
        relevant: (N, 16) bool, the cells that decide the answer: what an oracle would look at.
        split: the name of the split; scores of patches are looked up by it and by the row's number.
    """

    images: Tensor
    cells: Tensor
    questions: list[str]
    answers: list[str]
    kinds: list[str]
    relevant: Tensor
    split: str = ""

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {
            "pixel_values": self.images[row],
            "question": self.questions[row],
            "answer": self.answers[row],
            "kind": self.kinds[row],
            "relevant": self.relevant[row],
            "row": int(row),
            "split": self.split,
        }


def visual_questions(scenes: int = 8000, filler: int = 0, seed: int = 0) -> dict[str, VisualQuestions]:
    """``{split: VisualQuestions}``; the digits of a split come from images that no other split has.

    Three kinds: what stands at a place (60 %), how many digits there are (15 %), which digit is the largest (25 %).

    Args:
        scenes: in the training split; validation and test have a seventh and two sevenths as many.
        filler: random words of ``FILLER`` in front of each answer.
        seed: of the split of images and of the scenes.

    Raises:
        ValueError: an argument out of range.
    """
    for name, value, lowest in (("scenes", scenes, 1), ("filler", filler, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"{name}={value!r} is out of range; allowed: a whole number >= {lowest}")
    found = {}
    for number, (split, (images, labels)) in enumerate(digit_splits(seed).items()):
        generator = np.random.default_rng([seed, number])
        count = max(1, round(scenes * SHARES[split] / SHARES["train"]))
        made = _questions(*_scenes(images, labels, count, generator), generator)
        chatter = np.random.default_rng(
            [seed, number, 1]
        )  # its own: with and without filler the questions are the same
        words = chatter.choice(FILLER, size=(count, filler))
        made.answers = [" ".join([*map(str, row), answer]) for row, answer in zip(words, made.answers, strict=True)]
        made.split = split
        found[split] = made
    return found


def _scenes(
    images: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """``(count, 32, 32)`` pixels and ``(count, 16)`` labels."""
    chosen = generator.integers(len(labels), size=(count, PATCHES))
    digits = generator.integers(FEWEST, MOST + 1, size=count)
    is_digit = generator.random((count, PATCHES)).argsort(1).argsort(1) < digits[:, None]
    pixels = images[chosen].reshape(count, PATCHES, SIZE * SIZE)
    shuffled = generator.permuted(pixels, axis=2)
    cells = np.where(is_digit[..., None], pixels, shuffled).reshape(count, GRID, GRID, SIZE, SIZE)
    return cells.transpose(0, 1, 3, 2, 4).reshape(count, SIDE, SIDE), np.where(is_digit, labels[chosen], NOISE)


def _questions(scenes: np.ndarray, cells: np.ndarray, generator: np.random.Generator) -> VisualQuestions:
    kinds = [str(kind) for kind in generator.choice(KINDS, size=len(cells), p=KIND_SHARES)]
    questions, answers, relevant = [], [], np.zeros(cells.shape, dtype=bool)
    for row, kind in enumerate(kinds):
        is_digit = cells[row] != NOISE
        if kind == "at":
            place = int(generator.choice(np.flatnonzero(is_digit)))
            questions.append(f"what is in the {ROWS[place // GRID]} row column {COLUMNS[place % GRID]} ?")
            answer, relevant[row, place] = cells[row, place], True
        elif kind == "count":
            questions.append("how many digits are there ?")
            answer, relevant[row] = is_digit.sum(), is_digit
        else:
            questions.append("which digit is the largest ?")
            answer = cells[row][is_digit].max()
            relevant[row] = cells[row] == answer
        answers.append(NUMBERS[answer])
    images = torch.from_numpy(np.ascontiguousarray(scenes, dtype=np.float32))[:, None]
    return VisualQuestions(images, torch.from_numpy(cells), questions, answers, kinds, torch.from_numpy(relevant))


def scene_tokenizer() -> PreTrainedTokenizerBase:
    """One token a word of ``WORDS``, cut at spaces; ``<image>`` stands for one patch, ``<end>`` closes an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[IMAGE],
    )


class VqaCollator:
    """Rows to a batch: image tokens, question, answer, end; only the answer and its end are labels.

    The batch has ``pixel_values`` (B, 1, 32, 32), ``input_ids``, ``attention_mask`` and ``labels`` (B, T), padded at
    the right, and ``relevance`` (B, T), the weight of each target in the loss. Where the rows carry scores of their
    patches, the best ``keep`` are named in ``kept`` (B, keep), in the order of the grid, and their scores in
    ``kept_scores`` (B, keep).

    Args:
        tokenizer: ``scene_tokenizer()``.
        keep: image tokens, 1 to 16; 16 keeps every patch. Several numbers: one of them for each batch, drawn.
        scores: (N, 16), one score a patch for the row's number ``row``; needed for a ``keep`` below 16.
        filler_weight: relevance of an answer's filler words; that of the number word and of the end is 1.
        features: (N, 16, V) outputs of a frozen tower, computed once; in the batch in place of ``pixel_values``.
        seed: of the draws of ``keep``.

    Raises:
        ValueError: ``keep`` out of range, or below 16 without ``scores``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        keep: int | Sequence[int] = PATCHES,
        scores: Tensor | None = None,
        filler_weight: float = 1.0,
        features: Tensor | None = None,
        seed: int = 0,
    ):
        choices = [keep] if isinstance(keep, int) else list(keep)
        if not choices or not all(1 <= number <= PATCHES for number in choices):
            raise ValueError(f"keep={keep} is out of range; allowed: whole numbers from 1 to {PATCHES}")
        if min(choices) < PATCHES and scores is None:
            raise ValueError(f"keep={keep} needs scores to choose by; allowed without: {PATCHES}")
        self.tokenizer, self.choices, self.scores = tokenizer, choices, scores
        self._generator = torch.Generator().manual_seed(seed)
        self.filler_weight, self.features = filler_weight, features
        self._numbers = dict(tokenizer.get_vocab())

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        check_not_empty("rows", rows, "questions")
        keep = self.choices[0]
        if len(self.choices) > 1:
            keep = self.choices[int(torch.randint(len(self.choices), (), generator=self._generator))]
        examples = [self.example(row["question"], row["answer"], keep) for row in rows]
        fill = {"input_ids": self._numbers[PAD], "labels": IGNORED, "relevance": 0.0, "attention_mask": 0}
        longest = max(len(example["input_ids"]) for example in examples)
        batch = {
            name: torch.tensor([e[name] + [value] * (longest - len(e[name])) for e in examples])
            for name, value in fill.items()
        }
        numbers = torch.tensor([row["row"] for row in rows])
        if self.features is None:
            batch["pixel_values"] = torch.stack([row["pixel_values"] for row in rows])
        else:
            batch["image_features"] = self.features[numbers]
        if self.scores is not None:
            batch["kept"], batch["kept_scores"] = best_patches(self.scores[numbers], keep)
        return batch

    def example(self, question: str, answer: str, keep: int) -> dict[str, list]:
        """One row as lists: ids, labels, relevance and mask, all of its own length."""
        prompt = [self._numbers[IMAGE]] * keep + self.ids(question)
        target = [*self.ids(answer), self._numbers[END]]
        weights = [1.0 if word in NUMBERS else self.filler_weight for word in answer.split()]
        return {
            "input_ids": prompt + target,
            "labels": [IGNORED] * len(prompt) + target,
            "relevance": [0.0] * len(prompt) + [*weights, 1.0],
            "attention_mask": [1] * (len(prompt) + len(target)),
        }

    def ids(self, text: str) -> list[int]:
        """Token ids of a text; the same as the tokenizer's, without its overhead for each row."""
        unknown = self._numbers[UNKNOWN]
        return [self._numbers.get(word, unknown) for word in text.split()]


def best_patches(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The ``keep`` patches of the highest score, in the order of the grid, and their scores: (B, keep) each."""
    kept = scores.topk(keep, dim=-1).indices.sort(dim=-1).values
    return kept, scores.gather(-1, kept)


def by_patch(images: Tensor) -> Tensor:
    """Sums over each patch: (B, 1, 32, 32) -> (B, 16), in the order of the grid."""
    return images.reshape(-1, GRID, SIZE, GRID, SIZE).sum(dim=(2, 4)).flatten(1)
