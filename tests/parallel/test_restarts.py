"""Ranks of ``recipes.finetune`` are killed with SIGKILL: torchrun starts them again, and the weights come out the same.

On two gloo ranks: every checkpoint is written by both, which is where half-written ones come from. FSDP2 in ``make
test``; DDP and DeepSpeed's ZeRO-2 too in ``make test-long``.
"""

import functools
import json
import os
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from course_utils.parallel import RanksFailed, cpu_site_folder, run_launched
from course_utils.parallel.convert import convert_checkpoint
from course_utils.parallel.deepspeed_hf import auto_config
from course_utils.parallel.deepspeed_runs import is_available
from course_utils.parallel.nodes import run_on_nodes
from course_utils.parallel.restarts import restart_options, run_with_restarts
from tests.launch.tiny_project import PARAMETERS, offline_project

PROGRAM = Path(__file__).with_name("killed_finetune.py")
STEPS, SAVE_EVERY = 8, 2
QUIET = ["--logging_steps=1", "--disable_tqdm=true", "--report_to=none", "--use_cpu", "--max_length=32"]
SIZES = [f"--max_steps={STEPS}", f"--save_steps={SAVE_EVERY}", "--per_device_train_batch_size=2"]
STRATEGIES = {
    "ddp": [],
    "fsdp2": ["--fsdp", '--fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"}'],
    "zero2": ["--deepspeed", json.dumps(auto_config(2))],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with offline_project(tmp_path_factory, "restarts") as made, pytest.MonkeyPatch.context() as environment:
        before = os.environ.get("PYTHONPATH")
        environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(cpu_site_folder()), before])))
        environment.setenv("KILLS", "[]")
        yield made


def arguments(project, name, strategy="fsdp2"):
    data = ["--task=causal_lm", f"--model_name_or_path={project.model}", f"--train_file={project.texts}/train.jsonl"]
    return [*data, *QUIET, *SIZES, *STRATEGIES[strategy], f"--output_dir={project.folder / name}"]


def weights(project, name):
    return load_file(project.folder / name / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(project):
    """For a strategy the weights of the run that nothing stopped."""

    @functools.cache
    def run(strategy):
        seen = run_launched(PROGRAM, arguments=arguments(project, strategy, strategy), echo=None, on_cpu=True)
        check(seen, attempt=0, strategy=strategy)
        assert seen[0]["resumed_from"] == 0
        return weights(project, strategy)

    return run


@pytest.fixture(scope="module")
def whole(uninterrupted):
    return uninterrupted("fsdp2")


def check(seen, attempt, strategy="fsdp2"):
    """Two ranks that hold what ``strategy`` divides trained to the end, in this attempt."""
    assert seen[0]["state"] == "finished"  # rank 0 writes it; rank 1 may look a moment before
    for rank in seen:
        assert (rank["attempt"], rank["steps"]) == (attempt, STEPS)
        assert (rank["world_size"], rank["strategy"]) == (2, strategy)
        assert rank["parameters_held"] == [PARAMETERS // (2 if strategy == "fsdp2" else 1)] * 2
        assert rank["optimizer_held"] == [PARAMETERS // (1 if strategy == "ddp" else 2)] * 2


def run_killed(project, name, kills, strategy="fsdp2"):
    """Run with these kills; what the ranks of the last attempt report, and the kills as they happened."""
    lines = []
    seen = run_with_restarts(
        PROGRAM,
        arguments=arguments(project, name, strategy),
        restarts=len(kills),
        environment={"KILLS": json.dumps(kills)},
        timeout=120 * (1 + len(kills)),
        echo=lines.append,
        on_cpu=True,
    )
    return seen, [tuple(found) for line in lines for found in re.findall(r"SIGKILL at step (\d+), (\w+)", line)]


def test_a_rank_killed_while_it_saves_goes_on_from_the_checkpoint_before(project, whole, tmp_path):
    """The sample: steps and places of the 20 kills below are drawn."""
    seen, happened = run_killed(project, "killed", [(1, 5, "write")])
    assert happened == [("6", "write")]
    check(seen, attempt=1)
    assert seen[0]["resumed_from"] == 4  # checkpoint-6 was there, half written
    assert same(weights(project, "killed"), whole)
    # Its last sharded checkpoint holds the very model that it saved whole.
    made = convert_checkpoint(project.folder / "killed" / f"checkpoint-{STEPS}", project.model, tmp_path / "converted")
    assert made.source == "FSDP or DCP, 2 files" and same(
        load_file(tmp_path / "converted" / "model.safetensors"), whole
    )


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "seed"), [*(("fsdp2", n) for n in range(4)), ("ddp", 0), ("zero2", 0)])
def test_five_kills_a_run_at_random_places(strategy, seed, project, uninterrupted):
    if strategy == "zero2" and not is_available():
        pytest.skip("DeepSpeed is not installed")
    draw = random.Random(seed)
    steps = sorted(draw.randint(1, STEPS) for _ in range(5))
    kills = [(draw.randrange(2), step, draw.choice(["step", "write", "mark"])) for step in steps]
    name = f"{strategy} random {seed}"
    seen, happened = run_killed(project, name, kills, strategy)
    assert len(happened) == 5, (kills, happened)
    check(seen, attempt=5, strategy=strategy)
    assert same(weights(project, name), uninterrupted(strategy))


def test_two_nodes_end_with_the_weights_of_one(project, whole):
    """Two torchruns on this machine, one rank each, which meet at one address."""
    seen = run_on_nodes(PROGRAM, nodes=2, processes=1, arguments=arguments(project, "nodes"))
    check(seen, attempt=0)
    assert same(weights(project, "nodes"), whole)


def test_more_failures_than_restarts_end_the_run(tmp_path):
    program = tmp_path / "always.py"
    program.write_text("import os, sys\nsys.exit('attempt ' + os.environ['TORCHELASTIC_RESTART_COUNT'])\n")
    with pytest.raises(RanksFailed, match="ended with exit code attempt 1"):
        run_with_restarts(program, restarts=1, echo=None, on_cpu=True, timeout=60)
    with pytest.raises(ValueError, match="restarts=-1 is out of range; allowed: a whole number >= 0"):
        restart_options(-1)


@pytest.mark.long  # 30 seconds of waiting; tests/parallel/test_launched.py has a rank that hangs without torch
def test_a_rank_that_hangs_is_shown_and_so_are_those_that_wait_for_it(tmp_path):
    program = tmp_path / "hangs.py"
    program.write_text(
        "import os, time, torch, torch.distributed as dist\n"
        "def reading_a_lost_disk():\n    time.sleep(300)\n"
        "dist.init_process_group('gloo')\n"
        "if dist.get_rank():\n    reading_a_lost_disk()\n"
        "dist.all_reduce(torch.ones(1))\n"
    )
    with pytest.raises(RanksFailed) as caught:
        run_launched(program, timeout=30, echo=None, on_cpu=True)
    message = str(caught.value)
    assert "killed after 30 s; rank(s) [0, 1] had not ended" in message
    zero, one = message.split("rank 1 was at:")
    assert "in all_reduce" in zero and "in reading_a_lost_disk" in one
