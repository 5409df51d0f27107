"""Clouds as recorded, and their collator."""

import pytest
import torch

from course_utils.data import load_point_clouds
from course_utils.data.clouds import CloudCollator, record_clouds


@pytest.fixture(scope="module")
def clouds():
    return load_point_clouds(20)["validation"].select(range(40))


def test_a_recorded_cloud_is_a_moved_part_of_the_cloud(clouds):
    recorded = record_clouds(clouds, fewest=5, spread=2.0, seed=3)
    sizes = [len(row["points"]) for row in recorded]
    assert min(sizes) >= 5 and max(sizes) <= 20 and len(set(sizes)) > 5
    assert list(recorded["label"]) == list(clouds["label"])
    for row, whole in zip(recorded, clouds, strict=True):
        back = torch.tensor(row["points"]) - torch.tensor(row["origin"])
        assert torch.allclose(back, torch.tensor(whole["points"])[: len(back)], atol=1e-5)
        assert row["origin"][2] == 0
    assert torch.tensor(recorded["origin"]).std(0)[:2].min() > 1


def test_seeds_and_ranges(clouds):
    assert record_clouds(clouds, seed=1)["points"] == record_clouds(clouds, seed=1)["points"]
    assert record_clouds(clouds, seed=1)["origin"] != record_clouds(clouds, seed=2)["origin"]
    for wrong in (0, 21):
        with pytest.raises(ValueError, match=f"fewest={wrong}"):
            record_clouds(clouds, fewest=wrong)
    with pytest.raises(ValueError, match="spread=-1"):
        record_clouds(clouds, fewest=5, spread=-1)


def test_a_batch_has_a_mask_and_each_clouds_own_points():
    rows = [{"points": torch.randn(n, 3), "label": n} for n in (2, 5, 1)]
    batch = CloudCollator()(rows)
    assert batch["points"].shape == (3, 5, 3) and batch["mask"].sum(1).tolist() == [2, 5, 1]
    assert batch["labels"].tolist() == [2, 5, 1]
    for i, row in enumerate(rows):
        assert torch.equal(batch["points"][i][batch["mask"][i]], row["points"])
        assert not batch["points"][i][~batch["mask"][i]].any()


def test_the_origin_is_subtracted_from_real_points_only():
    rows = [{"points": torch.ones(2, 3), "origin": [1.0, 2.0, 0.0]}, {"points": torch.ones(3, 3), "origin": [0.0] * 3}]
    batch = CloudCollator()(rows)
    assert batch["points"][0].tolist() == [[0, -1, 1], [0, -1, 1], [0, 0, 0]] and "labels" not in batch


def test_nothing_to_collate():
    with pytest.raises(ValueError, match="no clouds"):
        CloudCollator()([])
    with pytest.raises(ValueError, match="no points"):
        CloudCollator()([{"points": torch.zeros(0, 3)}])
