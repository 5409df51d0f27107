"""A rank dies under the scripts as they are written: they start again so many times at most, and nothing is lost.

torchrun.sh and accelerate.sh on two gloo ranks; slurm.sbatch on two real daemons is in test_slurm_cluster.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from course_utils.launch import Spec, write
from tests.launch.tiny_project import make_project

PROGRAM = Path(__file__).with_name("crashing_finetune.py")
QUIET = ("--task=causal_lm", "--disable_tqdm=true", "--report_to=none")
DIES_ONCE = """\
import os, signal
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
open(f"seen-{attempt}-{rank}", "w").close()
if (rank, attempt) == ("1", "0"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script, folder, **environment):
    """Run ``launch/<script>`` in ``folder``, with the programs of this environment in front."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment |= {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = ["bash", f"launch/{script}"]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )


def test_a_killed_rank_is_started_again_once_and_the_script_ends_well(tmp_path):
    (tmp_path / "dies.py").write_text(DIES_ONCE)
    spec = Spec(program="dies.py", trainer_flags=False, strategy="ddp").on_cpu(2)
    write(spec.but(max_restarts=2), tmp_path / "launch")
    done = start("torchrun.sh", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "failed (exitcode: -9) local_rank: 1" in done.stderr
    assert {path.name[:6] for path in tmp_path.glob("seen-*")} == {"seen-0", "seen-1"}  # no third attempt
    assert len(list(tmp_path.glob("seen-1-*"))) == 2


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("crashes") / "a project"
    make_project(root)
    return root


def trained(project, name, script, crash, restarts=2):
    """A run of 6 steps that saves after every second one; what the script said, and the folder of the run."""
    spec = Spec(
        program=str(PROGRAM), model=str(project / "model"), strategy="ddp", precision="fp32", output_dir=f"runs/{name}",
        arguments=("--train_file=texts/train.jsonl", *QUIET), sequence_length=32, micro_batch=2, max_steps=6,
        save_every=2, logging_steps=1, learning_rate=1e-3, log_dir=f"logs {name}",
    )  # fmt: skip
    flags = ("--model_name_or_path=model", "--max_length=32", "--learning_rate=1e-3")
    spec = spec.on_cpu(2).but(max_restarts=restarts, preflight="warn", learning_rate=None)
    spec = spec.but(arguments=(*spec.arguments, *flags))
    write(spec, project / "launch", overwrite=True)
    home = {"HF_HOME": str(project.parent / "hf"), "HF_HUB_OFFLINE": "1"}
    done = start(script, project, CRASH=json.dumps(crash), **home)
    return done, project / "runs" / name


def starts(output):
    lines = Path(f"{output}-starts.txt").read_text().splitlines()
    return sorted(set(lines))


@pytest.fixture(scope="module")
def whole(project):
    done, output = trained(project, "whole", "torchrun.sh", [1, [], "kill"])
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((output / "run.json").read_text())
    assert (report["state"], report["world_size"]) == ("finished", 2)
    assert report["preflight"]["problems"] == json.loads((output / "preflight.json").read_text())["problems"]
    assert min(report["preflight"]["bandwidth"].values()) > 0
    return load_file(output / "model.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill", "exit"])
@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh"])
def test_a_rank_that_dies_twice_ends_with_the_uninterrupted_weights(script, how, project, whole):
    done, output = trained(project, f"{script} {how}", script, [1, [3, 3], how])
    assert done.returncode == 0, done.stderr[-3000:]
    assert starts(output) == [
        f"start {attempt}, rank {rank}, from step {2 * bool(attempt)}" for attempt in range(3) for rank in range(2)
    ]
    found = load_file(output / "model.safetensors")
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.long
@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh"])
def test_a_rank_that_always_crashes_ends_the_run_and_its_error_file_says_why(script, project):
    done, output = trained(project, f"always {script}", script, [1, [3] * 9, "raise"])
    assert done.returncode != 0
    assert {line[:7] for line in starts(output)} == {"start 0", "start 1", "start 2"}
    errors = sorted((project / f"logs always {script}").rglob("error.json"))
    said = [json.loads(file.read_text())["message"]["message"] for file in errors if file.parent.name == "1"]
    assert said == ["RuntimeError: rank 1 crashes in step 3"] * 3  # from checkpoint-2 each time
    assert [file.parent.parent.name for file in errors if file.parent.name == "1"] == [f"attempt_{n}" for n in range(3)]
    assert not (output / "model.safetensors").exists()
