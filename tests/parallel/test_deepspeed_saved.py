"""DeepSpeed's checkpoints become Hugging Face folders, bit for bit."""

import pytest

from course_utils.parallel import deepspeed_runs, shared_ranks
from course_utils.parallel.deepspeed_saved import save_and_convert

pytestmark = [
    pytest.mark.xdist_group("deepspeed"),
    pytest.mark.skipif(not deepspeed_runs.is_available(), reason="DeepSpeed is installed on Linux only"),
]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_becomes_a_folder_with_the_engines_weights(stage, tmp_path):
    found = shared_ranks(2)(save_and_convert, stage=stage, steps=2, folder=str(tmp_path))[0]
    assert found["weights_apart"] == 0 and found["logits_apart"] < 1e-5
    assert {"config.json", "model.safetensors"} <= found["model"].keys()
    assert sum("optim_states" in name for name in found["files"]) == 2
    assert found["refuses_tied"] and found["unseen"][1] < found["unseen"][0]
