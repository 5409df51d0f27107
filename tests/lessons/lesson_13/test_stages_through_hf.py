"""Every stage, with and without offloading, through Trainer and Accelerate on two CPU ranks, and what ran."""

import copy

import pytest

from course_utils.lessons.lesson_13 import runs
from course_utils.parallel import deepspeed_runs, shared_ranks
from course_utils.parallel.deepspeed_hf import auto_config, train_accelerate, train_trainer

pytestmark = [
    pytest.mark.xdist_group("deepspeed"),
    pytest.mark.skipif(not deepspeed_runs.is_available(), reason="DeepSpeed is installed on Linux only"),
]
P = 119_232
CASES = [(1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all")]
THROUGH = {"Trainer": train_trainer, "Accelerate": train_accelerate}


def config(stage, offload):
    """``auto_config`` with every tensor cut, no clipping, torch's AdamW while offloading, and what waits on the CPU."""
    made = copy.deepcopy(auto_config(stage)) | {"gradient_clipping": 0.0, "zero_force_ds_cpu_optimizer": False}
    zero = made["zero_optimization"]
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    for block in {"none": (), "optimizer": ["optimizer"], "all": ["optimizer", "param"]}[offload]:
        zero[f"offload_{block}"] = {"device": "cpu", "pin_memory": deepspeed_runs.on_gpus()}
    return made


@pytest.mark.parametrize("tool", THROUGH)
@pytest.mark.parametrize(("stage", "offload"), CASES)
def test_a_stage_repeats_one_process_and_is_what_was_asked_for(stage, offload, tool):
    asked = config(stage, offload)
    for rank in shared_ranks(2)(THROUGH[tool], stage=stage, steps=2, config=asked):
        assert rank["from_alone"] < 2e-5 and rank["losses_from_alone"] < 1e-5
        assert (rank["world_size"], rank["wrapper"], rank["stage"]) == (2, "DeepSpeedEngine", stage)
        assert rank["distributed_type"] == "DEEPSPEED"
        zero = rank["resolved"]["zero_optimization"]
        waiting = {name: zero[name]["device"] for name in zero if name.startswith("offload_")}
        assert waiting == {name: "cpu" for name in asked["zero_optimization"] if name.startswith("offload_")}
        assert rank["shards"]["embedding"] == ([512 * 64 // 2] if stage == 3 else [512, 64])
        assert sum(rank["shards"]["optimizer"]) == P // 2
        if "bytes" in rank:
            due = runs.predicted(P, 2, stage)
            assert {kind: rank["bytes"][kind] for kind in ("parameters", "optimizer")} == {
                kind: due[kind] for kind in ("parameters", "optimizer")
            }
