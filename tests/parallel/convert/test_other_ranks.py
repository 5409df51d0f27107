"""Going on with another number of processes: DCP folders do, DeepSpeed's say that they do not."""

import pytest
import torch

from course_utils.parallel import RanksFailed, cpu_site_folder, reference, run_ranks
from tests.parallel.convert import make

# Losses are averaged over two shares instead of one batch: float32 sums in another order, then AdamW.
ALIKE = 1e-5  # of weights near 0.02 that moved by 6 steps of 1e-3; measured: 2 -> 1: 2e-6, 1 -> 2: 1e-7


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def furthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def uninterrupted():
    model = reference.new_model()
    make.train(model, reference.new_optimizer(model), reference.global_batches(2 * make.STEPS), 0, 1)
    return weights(model)


def test_two_ranks_go_on_from_one_process(made, uninterrupted):
    resumed = {name: torch.tensor(value) for name, value in made.seen["resumed"].items()}
    assert furthest(uninterrupted, resumed) < ALIKE
    assert furthest(uninterrupted, weights(reference.new_model())) > 1e-3


def test_one_process_goes_on_from_two_ranks(made, uninterrupted, tmp_path):
    """Accelerate's FSDP2 checkpoint: two folders, model and optimizer."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = reference.new_model(seed=5)
    optimizer = make.two_groups(model)
    state, moments = get_state_dict(model, optimizer)
    dcp.load(loaded := {"model": state}, checkpoint_id=made.folder / "fsdp2" / "pytorch_model_fsdp_0", no_dist=True)
    dcp.load(stored := {"optimizer": moments}, checkpoint_id=made.folder / "fsdp2" / "optimizer_0", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=stored["optimizer"])
    make.train(model, optimizer, reference.global_batches(2 * make.STEPS)[make.STEPS :], 0, 1)

    alone = reference.new_model()
    make.train(alone, make.two_groups(alone), reference.global_batches(2 * make.STEPS), 0, 1)
    assert furthest(weights(alone), weights(model)) < ALIKE


def load_with_deepspeed(folder):
    """One process asks DeepSpeed for a checkpoint of two ranks."""
    from accelerate.state import AcceleratorState

    from course_utils.parallel import reference
    from tests.parallel.convert import make

    AcceleratorState._reset_state(reset_partial_state=True)
    model = reference.new_model()
    accelerator = make._accelerator("zero2")
    model, _ = accelerator.prepare(model, reference.new_optimizer(model))
    accelerator.load_state(folder)


def test_deepspeed_says_no(made):
    with pytest.raises(RanksFailed) as caught:
        run_ranks(
            load_with_deepspeed,
            1,
            {"folder": str(made.folder / "zero2")},
            timeout=240,
            environment={"PYTHONPATH": str(cpu_site_folder())},
        )
    assert "DP world size of 2 but the current world size is 1" in str(caught.value)
    assert "Automatic adjustment of ZeRO's optimizer state partitioning with a new world size is not" in str(
        caught.value
    )
