"""Learning rates by part: groups, frozen parts, the optimizer's state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.training.part_rates import freeze, parameters_by_part, part_groups, part_of, state_by_part


def model():
    return nn.ModuleDict({"tower": nn.Linear(3, 3), "tower_head": nn.Linear(3, 2), "rest": nn.LayerNorm(3)})


def test_part_of_takes_whole_names_and_the_longest():
    assert part_of("tower_head.weight", ["tower", "tower_head"]) == "tower_head"
    assert part_of("tower.layer.weight", ["tower", "tower.layer"]) == "tower.layer"
    assert part_of("rest.weight", ["tower"]) is None


def test_groups_have_rates_and_decay_for_matrices_only():
    rates = {"tower": 0.1, "tower_head": 0.2, "rest": 0.3}
    groups = part_groups(model(), rates, weight_decay=0.01)
    found = {(g["name"], g["lr"], g["weight_decay"]): sum(p.numel() for p in g["params"]) for g in groups}
    assert found == {
        ("tower", 0.1, 0.01): 9,
        ("tower", 0.1, 0.0): 3,
        ("tower_head", 0.2, 0.01): 6,
        ("tower_head", 0.2, 0.0): 2,
        ("rest", 0.3, 0.0): 6,
    }


def test_a_parameter_without_a_rate_and_a_frozen_part_are_refused():
    with pytest.raises(ValueError, match="'rest.weight' has no learning rate"):
        part_groups(model(), {"tower": 0.1, "tower_head": 0.1})
    some = model()
    freeze(some["tower"])
    with pytest.raises(ValueError, match="'tower', of which nothing is trained"):
        part_groups(some, {"tower": 0.1, "tower_head": 0.1, "rest": 0.1})


def test_frozen_parts_have_no_state_and_rate_0_has():
    for frozen, expected in ((True, 0), (False, 2 * 12)):
        some = model()
        rates = {"tower_head": 0.1, "rest": 0.1}
        if frozen:
            freeze(some["tower"])
        else:
            rates["tower"] = 0.0
        optimizer = torch.optim.AdamW(part_groups(some, rates))
        some["rest"](some["tower"](torch.randn(2, 3))).square().sum().add(
            some["tower_head"](torch.randn(2, 3)).sum()
        ).backward()
        optimizer.step()
        assert state_by_part(some, optimizer, ["tower", "tower_head"]) == {"tower": expected, "tower_head": 2 * 8}
        trained = parameters_by_part(some, ["tower"])["tower"]
        assert trained == ({"trainable": 0, "frozen": 12} if frozen else {"trainable": 12, "frozen": 0})
