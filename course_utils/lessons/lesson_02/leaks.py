"""What a test set reports when siblings of its rows are in the training set (lesson 02)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import DatasetDict


def split_by_file(files: Sequence[str], share: float, seed: int) -> np.ndarray:
    """True for test rows: whole files in random order until ``share`` of the rows is reached.

    Files with more than a hundredth of the rows stay in training: one of them would fill the test set.

    Args:
        files: the file of each row.
        share: of all rows, 0 to 1.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    names, counts = np.unique(files, return_counts=True)
    held, rows = set(), 0
    for place in rng.permutation(len(names)):
        if counts[place] <= 0.01 * len(files) and rows < share * len(files):
            held.add(names[place])
            rows += counts[place]
    return np.isin(files, list(held))


def split_by_row(by_file: np.ndarray, seed: int) -> np.ndarray:
    """As many test rows as ``by_file`` has, dealt out at random."""
    return np.random.default_rng(seed).permutation(by_file)


def scores(texts: Sequence[str], labels: Sequence[int], is_test: np.ndarray) -> dict[str, float]:
    """Test accuracy of two models on TF-IDF features, and of the first without close copies.

    Returns:
        ``nearest neighbour``: copies the label of the most similar training sentence; ``linear model``; ``without
        copies``: the nearest neighbour on test rows whose similarity to every training row is at most 0.9.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    texts, labels = np.asarray(texts), np.asarray(labels)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    known, asked = vectorizer.fit_transform(texts[~is_test]), vectorizer.transform(texts[is_test])
    similarity, nearest = [], []
    for start in range(0, asked.shape[0], 500):  # rows have length 1: their products are cosine similarities
        products = (asked[start : start + 500] @ known.T).toarray()
        similarity.append(products.max(1))
        nearest.append(products.argmax(1))
    right = labels[~is_test][np.concatenate(nearest)] == labels[is_test]
    far = np.concatenate(similarity) <= 0.9
    linear = LinearSVC(C=0.3).fit(known, labels[~is_test])
    return {
        "nearest neighbour": float(right.mean()),
        "linear model": float(linear.score(asked, labels[is_test])),
        "without copies": float(right[far].mean()),
    }


def compare(data: DatasetDict, draws: int = 3, share: float = 0.15) -> dict[str, dict[str, list[float]]]:
    """All rows of ``data`` split by row and by file, ``draws`` times each, with equally many test rows.

    Returns:
        Model (see ``scores``) -> split -> test accuracy of each draw.
    """
    from datasets import concatenate_datasets

    rows = concatenate_datasets(list(data.values()))
    texts, labels, files = (np.array(rows[name]) for name in ("text", "label", "file"))
    found: dict[str, dict[str, list[float]]] = {}
    for draw in range(draws):
        by_file = split_by_file(files, share, draw)
        for split, is_test in {"split by row": split_by_row(by_file, draw), "split by file": by_file}.items():
            for model, accuracy in scores(texts, labels, is_test).items():
                found.setdefault(model, {}).setdefault(split, []).append(accuracy)
    return found
