"""Launch files executed as they are written, on CPU processes, and judged from inside (exit codes prove nothing)."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from course_utils.launch import Spec, SpecError, write
from course_utils.launch.run_here import RunFailed, run_here
from course_utils.parallel.processes import kill, last_lines, start, wait
from tests.launch.tiny_project import PARAMETERS, ROWS, offline_project

HALF = PARAMETERS // 2
AGREES = 5e-6  # of losses near 6 and weights near 0.02 with DDP's, after 4 steps; measured: at most 5e-7
STEPS_OF_STOPPED_RUN = 60


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    # A name that a shell would take apart (without $, which datasets itself expands).
    with offline_project(tmp_path_factory, 'it\'s & a "lab"') as made:
        yield made


def spec_of(project, **fields):
    settings = {
        "model": str(project.model),
        "arguments": (f"--train_file={project.texts / 'train.jsonl'}", *QUIET),
        "micro_batch": 2,
        "accumulation": 2,
        "max_steps": 4,
        "save_every": 100,
        "sequence_length": 32,
        "precision": "fp32",
        "output_dir": "runs/my run",
    }
    return Spec(**(settings | fields))


SAMPLE = {"ddp", "fsdp1 grad-op", "fsdp2", "zero3 offload"}  # every script and family; the others run at night
QUIET = ("--logging_steps=1", "--learning_rate=1e-3", "--disable_tqdm=true", "--report_to=none")
FINETUNE_RUNS = {  # name: (script, fields of the spec, what must be seen from inside)
    "ddp": ("torchrun.sh", {"strategy": "ddp"}, {}),  # the reference itself
    "ddp accelerate": ("accelerate.sh", {"strategy": "ddp"}, {}),
    "fsdp1": ("torchrun.sh", {"strategy": "fsdp1"}, {"sharding": ["FULL_SHARD"]}),
    "fsdp1 grad-op": (
        "accelerate.sh",
        {"strategy": "fsdp1", "reshard_after_forward": False},
        {"sharding": ["SHARD_GRAD_OP"]},
    ),
    "fsdp2": ("torchrun.sh", {"strategy": "fsdp2"}, {"reshard_after_forward": True, "mesh": [2]}),
    "fsdp2 no reshard": (
        "torchrun.sh",
        {"strategy": "fsdp2", "reshard_after_forward": False},
        {"reshard_after_forward": False},
    ),
    "fsdp2 offload": ("accelerate.sh", {"strategy": "fsdp2", "offload": "all"}, {"offload": ["all"]}),
    "zero1": ("torchrun.sh", {"strategy": "zero1"}, {}),
    "zero2": ("torchrun.sh", {"strategy": "zero2"}, {}),
    "zero2 accelerate": ("accelerate.sh", {"strategy": "zero2"}, {}),
    "zero2 offload": ("deepspeed.sh", {"strategy": "zero2", "offload": "optimizer"}, {"offload": ["optimizer"]}),
    "zero3": ("torchrun.sh", {"strategy": "zero3"}, {"offload": []}),
    "zero3 accelerate": ("accelerate.sh", {"strategy": "zero3"}, {}),
    "zero3 offload": (
        "deepspeed.sh",
        {"strategy": "zero3", "offload": "all"},
        {"offload": ["optimizer", "parameters"]},
    ),
}
# strategy: distributed type, wrapper, parameters and Adam moments that each of two ranks holds
SEEN = {
    "ddp": ("MULTI_CPU", "DistributedDataParallel", PARAMETERS, PARAMETERS),
    "fsdp1": ("FSDP", "FullyShardedDataParallel", HALF, HALF),
    "fsdp2": ("FSDP", "FSDPLlamaForCausalLM", HALF, HALF),
    "zero1": ("DEEPSPEED", "DeepSpeedEngine", PARAMETERS, HALF),
    "zero2": ("DEEPSPEED", "DeepSpeedEngine", PARAMETERS, HALF),
    "zero3": ("DEEPSPEED", "DeepSpeedEngine", HALF, HALF),
}


@pytest.fixture(scope="module")
def ddp(project):
    """What DDP's run says, and its weights: the reference of the others."""
    spec = spec_of(project, strategy="ddp")
    return run_here(spec, folder=project.folder / "ddp"), weights(project.folder / "ddp" / spec.output_dir)


def weights(folder: Path):
    return load_file(folder / "model.safetensors")


def farthest(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def assert_rows_add_up(run, spec, processes=2):
    wanted = spec.on_cpu(processes).effective_batch
    assert run["effective_batch"] == wanted
    assert run["rows_seen"] == wanted * run["steps"]  # by the loader: unrelated ranks would have gone half as far


@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long) for name in FINETUNE_RUNS]
)
def test_finetune_runs_as_asked(name, project, ddp):
    script, fields, also = FINETUNE_RUNS[name]
    spec = spec_of(project, **fields)
    run = ddp[0] if name == "ddp" else run_here(spec, script, folder=project.folder / name)
    kind, wrapper, parameters, moments = SEEN[spec.strategy]
    assert (run["world_size"], run["backend"], run["device"]) == (2, "gloo", "cpu")
    assert (run["strategy"], run["distributed_type"], run["wrapper"]) == (spec.strategy, kind, wrapper)
    assert run["parameters"] == PARAMETERS
    assert run["parameters_held"] == [parameters] * 2 and run["optimizer_held"] == [moments] * 2
    assert {key: run[key] for key in also} == also
    assert_rows_add_up(run, spec)
    assert (run["state"], run["steps"], run["resumed_from"]) == ("finished", 4, 0)
    reference, reference_weights = ddp
    assert [step for step, _ in run["losses"]] == [1, 2, 3, 4] and run["losses"][3][1] < run["losses"][0][1] - 0.1
    assert max(abs(a - b) for (_, a), (_, b) in zip(run["losses"], reference["losses"], strict=True)) < AGREES
    # Whole and loadable, however it was sharded.
    assert farthest(weights(project.folder / name / spec.output_dir), reference_weights) < AGREES
    assert json.loads((project.folder / name / spec.output_dir / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.long
def test_two_copies_of_two_shards(project, ddp):
    spec = spec_of(project, strategy="fsdp2", replicas=2, accumulation=1, nodes=2, gpus_per_node=2)
    run = run_here(spec, processes=4)
    assert (run["world_size"], run["mesh"], run["parameters_held"]) == (4, [2, 2], [HALF] * 4)
    assert_rows_add_up(run, spec, processes=4)
    assert max(abs(a - b) for (_, a), (_, b) in zip(run["losses"], ddp[0]["losses"], strict=True)) < AGREES


@pytest.mark.parametrize(
    ("script", "strategy"), [pytest.param("torchrun.sh", "zero3", marks=pytest.mark.long), ("accelerate.sh", "fsdp2")]
)
def test_a_program_that_is_not_ours(script, strategy, project):
    """TRL's SFT script, unchanged: as many steps as make one epoch, and what its ranks were."""
    epoch = ROWS // spec_of(project, strategy=strategy).on_cpu(2).effective_batch
    arguments = (f"--dataset_name={project.texts}", *QUIET)
    spec = spec_of(project, program="trl.scripts.sft", strategy=strategy, arguments=arguments, max_steps=epoch)
    run = run_here(spec, script, folder=project.folder / f"trl {strategy}")
    kind, wrapper, parameters, moments = SEEN[strategy]
    assert (run["world_size"], run["strategy"], run["distributed_type"]) == (2, strategy, kind)
    assert run["wrapper"] == wrapper
    assert run["parameters_held"] == [parameters] * 2 and run["optimizer_held"] == [moments] * 2
    assert_rows_add_up(run, spec)
    assert run["steps"] == epoch
    assert run["losses"][-1][1] < run["losses"][0][1] - 0.1


@pytest.mark.long  # tests/recipes/test_finetune.py stops one process, files/test_slurm_cluster.py two machines
@pytest.mark.parametrize(("strategy", "to_whom"), [("ddp", "one rank"), ("fsdp2", "the script")])
def test_stopped_and_started_again_ends_with_the_same_weights(strategy, to_whom, project):
    arguments = spec_of(project).arguments
    spec = spec_of(project, strategy=strategy, max_steps=STEPS_OF_STOPPED_RUN, arguments=arguments)
    whole, halves = (project.folder / f"{strategy} {name}" for name in ("uninterrupted", "stopped"))
    run = run_here(spec, folder=whole)
    stopped = stop_in_the_middle(spec, halves, to_whom)
    assert stopped["state"] == "stopped" and 0 < stopped["steps"] < STEPS_OF_STOPPED_RUN
    assert not (halves / spec.output_dir / "model.safetensors").exists()
    resumed = run_here(spec, folder=halves)
    assert resumed["resumed_from"] == stopped["steps"] and resumed["steps"] == STEPS_OF_STOPPED_RUN
    assert resumed["losses"] == run["losses"]
    assert farthest(weights(halves / spec.output_dir), weights(whole / spec.output_dir)) == 0


def stop_in_the_middle(spec: Spec, folder: Path, to_whom: str) -> dict:
    """Start torchrun.sh, signal one rank (USR1) or the script (TERM) once it trains; what run.json says at the end."""
    write(spec.on_cpu(2), folder / "launch")
    report = folder / spec.output_dir / "run.json"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = start(["bash", "launch/torchrun.sh"], folder / "run.log", {**os.environ, "PATH": path}, folder)
    try:
        while script.poll() is None and not report.exists():
            time.sleep(0.02)
        assert report.exists(), last_lines(folder / "run.log")
        if to_whom == "one rank":
            os.kill(json.loads(report.read_text())["pid"][1], signal.SIGUSR1)
        else:
            script.terminate()
        assert wait([script], 120)
    finally:
        kill([script])
    aborted_after_work = "terminate called without an active exception" in (folder / "run.log").read_text()
    assert script.returncode == 0 or aborted_after_work, last_lines(folder / "run.log")
    return json.loads(report.read_text())


def test_failure_shows_the_programs_sentence_and_no_older_report(project):
    spec = spec_of(project, strategy="ddp", arguments=("--task=causal_lm", "--train_file=none.jsonl"))
    old = project.folder / "failing" / spec.output_dir / "run.json"
    old.parent.mkdir(parents=True)
    old.write_text('{"state": "finished"}')
    with pytest.raises(
        RunFailed, match=r"\(nothing written\); its log says:\nerror: train_file='none.jsonl' is no such file"
    ):
        run_here(spec, folder=project.folder / "failing")


def test_time_limit(project):
    with pytest.raises(RunFailed, match="killed after 1 s"):
        run_here(spec_of(project, strategy="ddp"), timeout=1)


def test_deepspeed_script_is_for_zero_only(project):
    with pytest.raises(SpecError, match="file='deepspeed.sh' does not exist for strategy='fsdp2'"):
        run_here(spec_of(project, strategy="fsdp2"), "deepspeed.sh")
