"""Digits as scenes and as point clouds."""

import numpy as np
import pytest

from course_utils.data.digits import GRID, NUMBERS, PLACES, SIZE, digit_splits, load_digit_scenes, load_point_clouds


def test_no_image_is_in_two_splits():
    splits = digit_splits()
    assert sum(len(labels) for _, labels in splits.values()) == 1797
    seen = {split: {image.tobytes() for image in images} for split, (images, _) in splits.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]


def test_answers_about_places_are_true():
    """Every answer is checked against the nearest known digit image in the cell that is asked about."""
    images, labels = digit_splits()["train"]
    known = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    scenes = load_digit_scenes(scenes=200)["train"]
    asked = {"place": 0, "count": 0}
    for row in scenes:
        image = np.asarray(row["image"], dtype=np.float32)
        cells = image.reshape(GRID, SIZE, GRID, SIZE).transpose(0, 2, 1, 3).reshape(-1, SIZE, SIZE)
        digits = [known.get(np.ascontiguousarray(cell).tobytes()) for cell in cells]
        if row["question"].startswith("what is at the "):
            asked["place"] += 1
            digit = digits[PLACES.index(row["question"].removeprefix("what is at the ").removesuffix("?"))]
            assert row["answer"] == ("nothing" if digit is None else NUMBERS[digit])
        else:
            asked["count"] += 1
            name = row["question"].removeprefix("how many ").removesuffix("s are there?")
            assert row["answer"] == NUMBERS[digits.count(NUMBERS.index(name))]
    assert min(asked.values()) > 60


def test_scenes_repeat_for_a_seed_and_differ_between_seeds():
    first, again, other = (load_digit_scenes(scenes=20, seed=seed)["train"] for seed in (0, 0, 1))
    assert first["question"][:] == again["question"][:]
    assert np.array_equal(first["image"][:], again["image"][:])
    assert first["question"][:] != other["question"][:]


def test_point_clouds_lie_on_the_ink():
    images, labels = digit_splits()["test"]
    clouds = load_point_clouds(points=32, jitter=0.0)["test"]
    assert clouds["label"][:] == labels.tolist()
    for image, points in zip(images[:50], clouds["points"][:50], strict=True):
        points = np.asarray(points)
        assert points.shape == (32, 3)
        column = np.rint(points[:, 0] * 3.5 + 3.5).astype(int)
        row = np.rint(3.5 - points[:, 1] * 3.5).astype(int)
        assert np.allclose(image[row, column], points[:, 2])
        assert (points[:, 2] > 0).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: load_point_clouds(points=0), "points=0 is out of range"),
        (lambda: load_point_clouds(points=True), "points=True is out of range"),
        (lambda: load_point_clouds(jitter=-1), "jitter=-1 is out of range"),
        (lambda: load_digit_scenes(scenes=0), "scenes=0 is out of range"),
        (lambda: load_digit_scenes(empty=1.0), "empty=1.0 is out of range"),
    ],
)
def test_bad_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
