"""The planner against bytes counted on two real processes: DDP, FSDP2 and ZeRO on gloo."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from course_utils.launch.planner import memory, speed
from course_utils.launch.planner.reduction import Reduction
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of_config
from course_utils.models.shapes import parameter_count
from course_utils.parallel import run_ranks
from tests.launch.planner.plan_ranks import tiny

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


# What each ZeRO stage sends in a step of 2 micro-batches, in numbers per parameter. ZeRO-3 keeps a model as small as
# this one gathered from the forward to the backward pass; a larger one is gathered twice.
SENT = {
    "zero1": {"all_reduce": 1.0, "all_gather_into_tensor": 1.0},
    "zero2": {"all_reduce": 2.0, "all_gather_into_tensor": 1.0},
    "zero3": {"reduce_scatter_tensor": 2.0, "all_gather_into_tensor": 2.0},
}


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


def test_fsdp_that_reduces_in_fp32(ranks):
    """Whole gradients wait in the type of the reduction."""
    shape = shape_of_config(tiny())
    spec = Spec(model=shape, gpus_per_node=2, accumulation=2)
    waiting = memory.unsharded_gradients(spec, memory.parameters(spec, shape), Reduction(fp32=True))
    assert waiting == 4 * parameter_count(shape)
    assert_held(ranks, "fsdp2 bf16", {"unsharded gradients, fp32 reduction": waiting})


@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is installed on Linux only")
@pytest.mark.parametrize(("strategy", "precision"), ZERO_CASES)
def test_zero(ranks, strategy, precision):
    components = ("weights", "optimizer", "master copies") + (("gradients",) if strategy == "zero3" else ())
    assert_held(ranks, f"{strategy} {precision}", planned(strategy, precision, *components))


@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is installed on Linux only")
@pytest.mark.parametrize(("strategy", "precision"), ZERO_CASES)
def test_zero_sends_what_the_planner_counts(ranks, strategy, precision):
    """DeepSpeed's own calls: an all-reduce, which counts twice, in the stages 1 and 2."""
    shape = shape_of_config(tiny())
    spec = Spec(model=shape, strategy=strategy, precision=precision, gpus_per_node=2, accumulation=2)
    size = memory.bytes_of(spec).gathered * parameter_count(shape)
    sent = speed.messages(spec, shape, memory.parameters(spec, shape))
    counted = {1: 0.0, 2: 0.0}  # numbers per parameter by passes: an all-reduce makes two
    for found in sent:
        counted[found.passes] += found.data / size if found.ranks > 1 else 0
    for rank in ranks:
        sent = rank[f"{strategy} {precision}"]["sent"]
        assert sent == SENT[strategy]
        if strategy == "zero3":
            sent = sent | {"all_gather_into_tensor": 2 * sent["all_gather_into_tensor"]}
        passes = {1: 0.0, 2: 0.0}
        for name, total in sent.items():
            passes[2 if name == "all_reduce" else 1] += total
        assert passes == pytest.approx(counted, abs=0.01)
