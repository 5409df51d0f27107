"""The planner against bytes counted on two real processes: DDP, FSDP2 and ZeRO on gloo."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from plan_ranks import tiny

from course_utils.launch import memory
from course_utils.launch.model_files import shape_of_config
from course_utils.launch.spec import Spec
from course_utils.parallel import run_ranks

RANKS = f"{Path(__file__).with_name('plan_ranks.py')}:held"
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPLlamaForCausalLM"}
WRAPPERS |= {"zero1": "DeepSpeedZeroOptimizer", "zero2": "DeepSpeedZeroOptimizer"}
WRAPPERS |= {"zero3": "DeepSpeedZeroOptimizer_Stage3"}

CASES = [("ddp", "bf16"), ("ddp", "bf16_weights"), ("fsdp2", "bf16"), ("fsdp2", "bf16_weights")]
ZERO_CASES = [("zero1", "bf16"), ("zero2", "fp32"), ("zero2", "bf16_weights"), ("zero3", "bf16")]


@pytest.fixture(scope="module")
def ranks():
    """What two ranks hold in each case; that they are two, wrapped as asked for, is asserted here."""
    cases = CASES + (ZERO_CASES if find_spec("deepspeed") else [])
    found = run_ranks(RANKS, 2, {"cases": cases}, timeout=400, environment=ENVIRONMENT)
    for rank in found:
        for strategy, precision in cases:
            of_case = rank[f"{strategy} {precision}"]
            assert (of_case["world"], of_case["wrapper"]) == (2, WRAPPERS[strategy])
    return found


def planned(strategy, precision, *components, accumulation=1):
    """The planner's bytes of these components."""
    shape = shape_of_config(tiny())
    spec = Spec(model=shape, strategy=strategy, precision=precision, gpus_per_node=2, accumulation=accumulation)
    count = memory.parameters(spec, shape)
    return {name: getattr(memory, name.replace(" ", "_"))(spec, count) for name in components}


def assert_held(ranks, case, expected):
    assert all(expected.values()), "a component that is nowhere proves nothing"
    for rank in ranks:
        assert {name: rank[case][name] for name in expected} == expected


@pytest.mark.parametrize(("strategy", "precision"), CASES[:2])
def test_ddp(ranks, strategy, precision):
    expected = planned(strategy, precision, "weights", "gradients", "optimizer", "buckets")
    assert_held(ranks, f"{strategy} {precision}", expected)


@pytest.mark.parametrize(("strategy", "precision"), CASES[2:])
def test_fsdp(ranks, strategy, precision):
    """Also the whole gradients that wait under ``no_sync``."""
    components = ("weights", "gradients", "optimizer", "unsharded gradients")
    assert_held(ranks, f"{strategy} {precision}", planned(strategy, precision, *components, accumulation=2))


@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is installed on Linux only")
@pytest.mark.parametrize(("strategy", "precision"), ZERO_CASES)
def test_zero(ranks, strategy, precision):
    components = ("weights", "optimizer", "master copies") + (("gradients",) if strategy == "zero3" else ())
    assert_held(ranks, f"{strategy} {precision}", planned(strategy, precision, *components))
