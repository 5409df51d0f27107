"""DeepSpeed through Trainer and Accelerate on two CPU ranks: what is resolved, what is ignored, what comes first."""

import pytest

from course_utils.parallel import deepspeed_runs, reference, shared_ranks
from course_utils.parallel.deepspeed_hf import auto_config, load_for_zero3, train_accelerate, train_trainer

pytestmark = [
    pytest.mark.xdist_group("deepspeed"),
    pytest.mark.skipif(not deepspeed_runs.is_available(), reason="DeepSpeed is installed on Linux only"),
]
P = 119_232


def test_the_trainer_fills_in_auto_and_repeats_one_process():
    found = shared_ranks(2)(train_trainer, stage=3, steps=2, accumulation=2, seed=1)[1]
    assert found["distributed_type"] == "DEEPSPEED" and found["from_alone"] < 2e-5
    resolved = found["resolved"]
    assert (resolved["train_batch_size"], resolved["train_micro_batch_size_per_gpu"]) == (8, 2)
    assert resolved["gradient_clipping"] == 0 and resolved["bf16"] == {"enabled": False}
    zero = resolved["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["stage3_param_persistence_threshold"]) == (64 * 64, 640)


def test_accelerate_fills_in_a_clipping_of_its_own():
    config = auto_config(1) | {"gradient_clipping": "auto"}
    resolved = shared_ranks(2)(train_accelerate, stage=1, steps=2, config=config)[0]["resolved"]
    assert resolved["gradient_clipping"] == 1.0 and resolved["train_micro_batch_size_per_gpu"] == 4
    plain = shared_ranks(2)(train_accelerate, stage=3, steps=2)[0]
    assert plain["distributed_type"] == "DEEPSPEED" and plain["from_alone"] < 2e-5


def test_the_cpu_flag_turns_deepspeed_into_ddp():
    found = shared_ranks(2)(train_accelerate, stage=2, steps=2, cpu_flag=True)
    assert {rank["wrapper"] for rank in found} == {"DistributedDataParallel"}


def test_an_optimizer_block_decays_norm_weights():
    own, block = (shared_ranks(2)(train_trainer, stage=2, steps=2, optimizer=kind)[0] for kind in ("trainer", "block"))
    decay = 2 * reference.LEARNING_RATE * reference.WEIGHT_DECAY
    assert (own["groups"], block["groups"]) == (2, 1)
    assert own["norm"] - block["norm"] == pytest.approx(decay, rel=0.1)


def test_a_model_is_built_in_slices_after_the_json_only(tmp_path):
    reference.new_model().save_pretrained(tmp_path)
    first, second = (shared_ranks(2)(load_for_zero3, folder=str(tmp_path), model_first=m)[0] for m in (False, True))
    assert first == {"whole": 0, "slices": P // 2} and second == {"whole": P, "slices": 0}


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer='sgd' is not known; allowed: reference, trainer, block"):
        train_trainer(optimizer="sgd")
