"""scikit-learn's digits, 1,797 real 8x8 images, as scenes to ask questions about and as point clouds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import DatasetDict

GRID = 3  # cells per side of a scene
SIZE = 8  # pixels per side of a digit
PLACES = tuple(
    f"{row} {column}".replace("middle middle", "centre")
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def digit_splits(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """``{split: (images (N, 8, 8) float32 in [0, 1], labels (N,) int64)}``; no image is in two splits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, SIZE, SIZE) / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(labels))
    bounds = np.cumsum([round(share * len(labels)) for share in SHARES.values()])[:-1]
    return {split: (images[rows], labels[rows]) for split, rows in zip(SHARES, np.split(order, bounds), strict=True)}


def load_digit_scenes(scenes: int = 4000, empty: float = 0.3, seed: int = 0) -> DatasetDict:
    """Questions about 3x3 scenes of digits: columns ``image`` (24, 24) float32, ``question``, ``answer`` (str).

    Half the questions ask what is at a place (answer: a digit's name or "nothing"), half how many of a digit there are.

    Args:
        scenes: scenes in the training split; validation and test have a seventh and two sevenths as many.
        empty: probability of an empty cell, 0 <= empty < 1.
        seed: of the split and of the scenes.

    Raises:
        ValueError: an argument out of range.
    """
    _at_least_one("scenes", scenes)
    if not 0 <= empty < 1:
        raise ValueError(f"empty={empty} is out of range; allowed: a probability from 0 to below 1")
    from datasets import Array2D, Dataset, DatasetDict, Features, Value

    side = GRID * SIZE
    features = Features(
        {"image": Array2D((side, side), "float32"), "question": Value("string"), "answer": Value("string")}
    )
    made = {}
    for number, (split, (images, labels)) in enumerate(digit_splits(seed).items()):
        generator = np.random.default_rng([seed, number])
        count = max(1, round(scenes * SHARES[split] / SHARES["train"]))
        rows = [_scene(images, labels, empty, generator) for _ in range(count)]
        made[split] = Dataset.from_dict({key: [row[key] for row in rows] for key in features}, features=features)
    return DatasetDict(made)


def _scene(images: np.ndarray, labels: np.ndarray, empty: float, generator: np.random.Generator) -> dict:
    chosen = generator.integers(len(labels), size=GRID * GRID)
    filled = generator.random(GRID * GRID) >= empty
    cells = np.where(filled[:, None, None], images[chosen], np.float32(0))
    image = cells.reshape(GRID, GRID, SIZE, SIZE).transpose(0, 2, 1, 3).reshape(GRID * SIZE, GRID * SIZE)
    if generator.random() < 0.5:
        place = int(generator.integers(GRID * GRID))
        question = f"what is at the {PLACES[place]}?"
        answer = NUMBERS[labels[chosen[place]]] if filled[place] else "nothing"
    else:
        # Ask about a digit that is there more often than chance would, or "zero" would answer most questions.
        present = labels[chosen[filled]]
        digit = int(generator.choice(present)) if len(present) and generator.random() < 0.7 else generator.integers(10)
        question = f"how many {NUMBERS[digit]}s are there?"
        answer = NUMBERS[int((present == digit).sum())]
    return {"image": image, "question": question, "answer": answer}


def load_point_clouds(points: int = 64, jitter: float = 0.5, seed: int = 0) -> DatasetDict:
    """Digits as point clouds: columns ``points`` (points, 3) float32 and ``label`` (0 to 9).

    A point is a pixel drawn with a probability in proportion to its ink: x to the right, y upwards (both about
    -1 to 1), and the ink, 0 to 1, as the third coordinate.

    Args:
        points: points per cloud.
        jitter: uniform noise added to a pixel's position, in pixels to either side.
        seed: of the split and of the drawing.

    Raises:
        ValueError: an argument out of range.
    """
    _at_least_one("points", points)
    if not 0 <= jitter <= SIZE:
        raise ValueError(f"jitter={jitter} is out of range; allowed: pixels from 0 to {SIZE}")
    from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

    features = Features({"points": Array2D((points, 3), "float32"), "label": ClassLabel(num_classes=10)})
    made = {}
    for number, (split, (images, labels)) in enumerate(digit_splits(seed).items()):
        generator = np.random.default_rng([seed, number])
        clouds = [_cloud(image, points, jitter, generator) for image in images]
        made[split] = Dataset.from_dict({"points": clouds, "label": labels}, features=features)
    return DatasetDict(made)


def _cloud(image: np.ndarray, points: int, jitter: float, generator: np.random.Generator) -> np.ndarray:
    ink = image.ravel().astype(np.float64)
    pixels = generator.choice(ink.size, size=points, p=ink / ink.sum())
    row, column = np.divmod(pixels, SIZE)
    noise = generator.uniform(-jitter, jitter, size=(2, points))
    middle = (SIZE - 1) / 2
    x = (column + noise[0] - middle) / middle
    y = (middle - row + noise[1]) / middle
    return np.stack([x, y, ink[pixels]], axis=1).astype(np.float32)


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} is out of range; allowed: a whole number >= 1")
