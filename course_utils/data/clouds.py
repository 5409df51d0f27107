"""Point clouds as a sensor records them, of different sizes and places, and how they are batched (lesson 07)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from course_utils.data.batches import check_not_empty

if TYPE_CHECKING:
    from datasets import Dataset


def record_clouds(clouds: Dataset, fewest: int = 16, spread: float = 1.0, seed: int = 0) -> Dataset:
    """Each cloud with a random number of its points, moved to a random place.

    Args:
        clouds: columns ``points`` (N, 3) and ``label``; the points of a cloud are in random order.
        fewest: a cloud keeps between this many points and all N, each number equally likely.
        spread: standard deviation of the x and y of a cloud's place, in the units of the points, >= 0.
        seed: of the numbers and places.

    Returns:
        A dataset with ``points`` (n, 3) as recorded, ``origin`` (3,), the place to subtract, and ``label``.

    Raises:
        ValueError: ``fewest`` below 1 or above N, or ``spread`` below 0.
    """
    from datasets import Dataset, Features, List, Value

    points = np.array(clouds.with_format("numpy")["points"], dtype=np.float32)
    most = points.shape[1]
    if not 1 <= fewest <= most:
        raise ValueError(f"fewest={fewest} is out of range; allowed: a whole number from 1 to {most}")
    if not spread >= 0:
        raise ValueError(f"spread={spread} is out of range; allowed: a number >= 0")
    generator = np.random.default_rng(seed)
    sizes = generator.integers(fewest, most + 1, size=len(points))
    origins = (spread * generator.standard_normal((len(points), 3)) * [1, 1, 0]).astype(np.float32)
    columns = {
        "points": [(cloud + o)[:n].tolist() for cloud, o, n in zip(points, origins, sizes, strict=True)],
        "origin": origins.tolist(),
        "label": list(clouds["label"]),
    }
    numbers = List(Value("float32"), length=3)
    features = Features({"points": List(numbers), "origin": numbers, "label": clouds.features["label"]})
    return Dataset.from_dict(columns, features=features)


class CloudCollator:
    """Batch clouds of any sizes: pad with zeros to the largest, and a mask that says which points are real.

    A feature has ``points`` (n, C), perhaps ``origin`` (C,), which is subtracted from its points, and ``label`` or
    ``labels``.
    """

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """B features -> ``points`` (B, N, C) float32, ``mask`` (B, N) bool, ``labels`` (B,) int64 where there are any.

        Raises:
            ValueError: no features, or a cloud without a point.
        """
        check_not_empty("features", features, "clouds")
        clouds = [torch.as_tensor(feature["points"], dtype=torch.float32) for feature in features]
        if not all(map(len, clouds)):
            raise ValueError("a cloud has no points; allowed: at least one point a cloud")
        origins = [torch.as_tensor(feature.get("origin", 0.0), dtype=torch.float32) for feature in features]
        sizes = torch.tensor([len(cloud) for cloud in clouds])
        centred = [cloud - origin for cloud, origin in zip(clouds, origins, strict=True)]
        batch = {
            "points": torch.nn.utils.rnn.pad_sequence(centred, batch_first=True),
            "mask": torch.arange(int(sizes.max())) < sizes[:, None],
        }
        name = next((name for name in ("label", "labels") if name in features[0]), None)
        if name:
            batch["labels"] = torch.tensor([int(feature[name]) for feature in features])
        return batch
