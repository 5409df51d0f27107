"""The run that the distributed lessons repeat: what its pieces promise."""

from __future__ import annotations

import pytest
import torch

from course_utils.parallel import reference


def test_shares_are_the_batch_and_hold_different_numbers_of_targets():
    batch = reference.global_batches(1)[0]
    shares = [reference.share(batch, rank, 2) for rank in range(2)]
    for name, value in batch.items():
        assert torch.equal(torch.cat([part[name] for part in shares]), value)
    targets = [reference.count_targets(part) for part in shares]
    assert sum(targets) == reference.count_targets(batch) and targets[0] < targets[1]


def test_rows_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match="world_size=3 does not divide 8 rows; allowed: a divisor of 8"):
        reference.share(reference.global_batches(1)[0], 0, 3)


def test_the_loss_is_the_models_own_and_training_lowers_it():
    model, batch = reference.new_model(), reference.global_batches(1)[0]
    own = model(**batch).loss
    assert torch.allclose(reference.summed_loss(model, batch) / reference.count_targets(batch), own, atol=1e-6)
    losses = reference.train_alone(steps=12)["losses"]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5


def test_accumulation_changes_nothing_but_the_order_of_sums():
    whole, parts = reference.train_alone(4), reference.train_alone(4, accumulation=2)
    assert (whole["weights"] - parts["weights"]).abs().max() < 1e-5
    other = reference.train_alone(4, seed=1)
    assert (whole["weights"] - other["weights"]).abs().max() > 1e-3


def test_the_same_seed_gives_the_same_weights():
    assert torch.equal(reference.train_alone(2)["weights"], reference.train_alone(2)["weights"])
