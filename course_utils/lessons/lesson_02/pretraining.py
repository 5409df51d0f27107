"""Lesson 02's look at pretraining: what the bench recorded, sentence features for a probe, guesses for hidden words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import course_utils

if TYPE_CHECKING:
    from datasets import DatasetDict

LONGEST = 32  # tokens of a sentence that the small encoder reads


def recorded() -> dict[str, Any]:
    """What ``bench/bench_pretraining.py`` measured."""
    folder = Path(course_utils.__file__).parents[1] / "bench" / "results"
    return json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))


def paired(report: dict[str, Any]) -> dict[str, tuple[list[float], float, float]]:
    """Setting -> gain of each seed, their mean, twice the standard error that the test rows leave.

    Both starts answer the same rows, so the error of their difference comes from the rows on which they disagree.
    """
    found = {}
    for setting in report["compared"]:
        task, labels = setting["task"], setting["labels"]
        by_start = {
            start: [
                run["accuracy"]
                for run in report["results"]
                if (run["task"], run["labels"], run["start"]) == (task, labels, start)
            ]
            for start in ("random", "pretrained")
        }
        gains = [new - old for new, old in zip(by_start["pretrained"], by_start["random"], strict=True)]
        found[f"{task}, {labels:,} labels"] = (gains, float(np.mean(gains)), 2 * setting["standard_error"])
    return found


@torch.no_grad()
def sentence_features(encoder: nn.Module, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """The mean of each sentence's token vectors, below and above the layer: (N, 2 * hidden size) for one layer.

    Sentences of similar length share a batch: length grouping helps without training too.
    """
    encoder.eval()
    ids = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
    order = np.argsort([len(row) for row in ids], kind="stable")
    features = np.zeros((len(ids), 2 * encoder.config.hidden_size), np.float32)
    for start in range(0, len(order), 100):
        places = order[start : start + 100]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in places]}, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        states = encoder(**batch, output_hidden_states=True).hidden_states
        vectors = torch.cat((states[0], states[-1]), dim=-1)  # (B, T, 2 * hidden size)
        features[places] = (vectors * mask).sum(1) / mask.sum(1)
    return features


def probe(encoder: nn.Module, tokenizer: Any, data: DatasetDict, labels: int = 2000) -> np.ndarray:
    """Logistic regression on the frozen encoder's sentence features, fitted on the first ``labels`` training rows.

    Returns:
        For each test row whether its answer is right.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = data["train"][:labels]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    model.fit(sentence_features(encoder, tokenizer, train["text"]), train["label"])
    return model.predict(sentence_features(encoder, tokenizer, data["test"]["text"])) == np.array(data["test"]["label"])


def word_weights(data: DatasetDict, labels: int = 2000) -> np.ndarray:
    """A linear model on TF-IDF with the same labels; returns as ``probe``."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    train = data["train"][:labels]
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = make_pipeline(counts, LinearSVC(C=0.3)).fit(train["text"], train["label"])
    return model.predict(list(data["test"]["text"])) == np.array(data["test"]["label"])


@torch.no_grad()
def guess(model: nn.Module, tokenizer: Any, sentence: str, word: str, best: int = 3) -> tuple[list[str], float]:
    """Hide ``word`` once in ``sentence``: the tokens that ``model`` finds likeliest, and the probability of ``word``.

    ``word`` must be one token of the vocabulary, or its first piece counts.
    """
    batch = tokenizer(sentence.replace(word, tokenizer.mask_token, 1), return_tensors="pt")
    place = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found = model.eval()(input_ids=ids, attention_mask=mask).logits[0, place].softmax(-1)
    hidden = tokenizer(word, add_special_tokens=False)["input_ids"][0]
    return tokenizer.convert_ids_to_tokens(found.topk(best).indices.tolist()), float(found[hidden])
