"""slurm.sbatch, submitted as written to a real controller with two nodes (``slurm_cluster``), judged by artefacts."""

import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from course_utils.launch import Spec, write
from course_utils.launch.check.slurm import rows
from course_utils.launch.spec.settings import slurm_port
from course_utils.parallel.processes import free_ports
from tests.launch.files import slurm_cluster
from tests.launch.tiny_project import PARAMETERS, make_project

HOLD = 6  # the step in which a run is interrupted; no multiple of save_every
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
QUIET = ("--task=causal_lm", "--logging_steps=1", "--learning_rate=1e-3", "--disable_tqdm=true", "--report_to=none")


class Cluster:
    """SLURM's commands in the project's root, as a user types them."""

    def __init__(self, environment, root):
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        self.environment = environment | {"PATH": path, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        self.environment["HF_HOME"] = str(root.parent / "hf")
        self.root = root

    def call(self, *command, cwd=None, **environment):
        environment = self.environment | environment
        done = subprocess.run(
            command, cwd=cwd or self.root, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout + done.stderr

    def sbatch(self, folder, *options, **environment):
        return self.call("sbatch", "--parsable", *options, f"{folder}/slurm.sbatch", **environment).strip()

    def job(self, number):
        text = self.call("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"([\w/:]+)=(\S*)", text))

    def log(self, number):
        return next(self.root.glob(f"*-{number}.out")).read_text()

    def ends_of_logs(self):
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.root.glob("*.out")))

    def until(self, condition, what, seconds=240):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds} s: {what}\n{self.call('squeue')}\n{self.ends_of_logs()}")
            time.sleep(0.2)
        return found

    def over(self, number):
        return self.until(lambda: (job := self.job(number))["JobState"] in OVER and job, f"end of job {number}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("slurm") / "it's a project"
    make_project(root)
    with slurm_cluster.cluster() as environment:
        yield Cluster(environment, root)


def spec_of(cluster, name, **fields):
    settings = {
        "name": name,
        "program": str(Path(__file__).with_name("slurm_program.py")),
        "arguments": ("--model_name_or_path=model", "--max_length=32", "--train_file=texts/train.jsonl", *QUIET),
        "model": str(cluster.root / "model"),
        "output_dir": f"runs/{name} $(x)",
        "strategy": "fsdp2",
        "device": "cpu",
        "precision": "fp32",
        "nodes": 2,
        "gpus_per_node": 1,
        "cpus_per_gpu": 3,
        "micro_batch": 2,
        "accumulation": 2,
        "sequence_length": 32,
        "max_steps": 10,
        "save_every": 4,
        "time_limit": 5,
        "preflight": "off",
        "port": free_ports(1)[0],
    }
    return Spec(**(settings | fields))


def submit(cluster, spec, **environment):
    with contextlib.chdir(cluster.root):
        write(spec, f"launch {spec.name}")
    return cluster.sbatch(f"launch {spec.name}", **environment)


LAUNCHERS = {  # stand-ins for torchrun: what slurm.sbatch makes of programs that do not behave
    "fails": 'if [ "$SLURM_PROCID" = 1 ]; then exit 3; fi; sleep 600',  # machine 0 would wait for machine 1 for ever
    "saves nothing": "trap 'exit 0' USR1; while sleep 0.1; do :; done",
    "deaf": 'mkdir -p runs/deaf; date > "runs/deaf/$SLURM_RESTART_COUNT-$SLURM_PROCID"; sleep 600',
}


@pytest.fixture(scope="module")
def misbehaved(cluster):
    """A job of each such program, warned (but "fails") once it runs; in the background of the real ones."""
    jobs = {}
    for name, text in LAUNCHERS.items():
        folder = cluster.root / "stand-ins" / name
        folder.mkdir(parents=True)
        (folder / "torchrun").write_text(f'#!/usr/bin/env bash\ntouch "$(dirname "$0")/$SLURM_PROCID"\n{text}\n')
        (folder / "torchrun").chmod(0o755)
        path = f"{folder}:{cluster.environment['PATH']}"
        spec = spec_of(cluster, name.replace(" ", "-"), strategy="ddp", warning=30, output_dir=f"runs/{name}")
        jobs[name] = submit(cluster, spec, PATH=path)
    for name in ("saves nothing", "deaf"):
        folder = cluster.root / "stand-ins" / name
        cluster.until(lambda folder=folder: (folder / "0").exists() and (folder / "1").exists(), f"{name} runs")
        time.sleep(0.5)
        cluster.call("scancel", "--batch", "--signal=USR1", jobs[name])
    return jobs


class Run:
    """A job of ``slurm_program.py`` and what it left behind."""

    def __init__(self, cluster, name, **environment):
        self.cluster, self.spec = cluster, spec_of(cluster, name)
        self.output = cluster.root / self.spec.output_dir
        self.number = submit(cluster, self.spec, **environment)

    def seen(self, stay):
        """What the ranks of one stay wrote down, rank 0 first."""
        return [json.loads(path.read_text()) for path in sorted(self.output.glob(f"seen/stay{stay}-rank*.json"))]

    def wait_until_held(self):
        def held():
            assert self.cluster.job(self.number)["JobState"] not in OVER, self.cluster.log(self.number)
            return [rank.get("held") for rank in self.seen(0)] == [True, True]

        self.cluster.until(held, f"step {HOLD} of {self.spec.name}")

    def finish(self):
        self.job = self.cluster.over(self.number)
        assert self.job["JobState"] == "COMPLETED", self.cluster.log(self.number)
        self.report = json.loads((self.output / "run.json").read_text())
        return self


@pytest.fixture(scope="module")
def runs(cluster, misbehaved):
    """The same training three times at once: left alone, requeued by somebody, warned by SLURM's own clock.

    ``misbehaved`` is here for the sake of time only: those jobs sleep while these compute.
    """
    whole = Run(cluster, "whole")
    warned, requeued = Run(cluster, "warned", HOLD=str(HOLD)), Run(cluster, "requeued", HOLD=str(HOLD))
    warned.wait_until_held()
    # Two to one minutes left, of which two are for the warning: it is due when SLURM looks next (every 30 s).
    minutes = int(cluster.job(warned.number)["RunTime"].split(":")[1])
    cluster.call("scontrol", "update", f"jobid={warned.number}", f"timelimit={minutes + 2}")
    requeued.wait_until_held()
    cluster.call("scontrol", "requeue", requeued.number)
    cluster.until(lambda: cluster.job(warned.number)["Restarts"] == "1", "the warned job queues itself again")
    cluster.call("scontrol", "update", f"jobid={warned.number}", "timelimit=5")
    return {run.spec.name: run.finish() for run in (whole, warned, requeued)}


def test_a_job_trains_on_both_machines_as_one_run(runs):
    run = runs["whole"]
    nodes = [(rank["SLURMD_NODENAME"], rank["SLURM_PROCID"]) for rank in run.seen(0)]
    assert nodes == [(slurm_cluster.NODES[0], "0"), (slurm_cluster.NODES[1], "1")]
    first = {(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in run.seen(0)}
    assert first == {(slurm_cluster.NODES[0], str(slurm_port(run.spec, int(run.number))))}
    assert {rank["SLURM_CPUS_PER_TASK"] for rank in run.seen(0)} == {"3"}
    assert run.job["Restarts"] == "0"
    assert run.report["state"] == "finished"
    assert (run.report["world_size"], run.report["backend"]) == (2, "gloo")
    assert (run.report["strategy"], run.report["parameters_held"]) == ("fsdp2", [PARAMETERS // 2] * 2)
    assert run.report["effective_batch"] == run.spec.effective_batch == 8


@pytest.mark.parametrize(("name", "signal"), [("warned", "SIGUSR1"), ("requeued", "SIGTERM")])
def test_an_interrupted_job_saves_comes_back_and_ends_like_the_whole_one(runs, name, signal):
    run, whole = runs[name], runs["whole"]
    assert run.job["Restarts"] == "1"
    assert [set(rank["signals"]) for rank in run.seen(0)] == [{signal}, {signal}]  # every rank was told
    assert {rank["begins_at"] for rank in run.seen(1)} == {HOLD}  # where it stopped: no multiple of 4
    assert {rank["SLURMD_NODENAME"] for rank in run.seen(1)} == set(slurm_cluster.NODES)
    assert (run.report["resumed_from"], run.report["state"]) == (HOLD, "finished")
    assert run.report["losses"] == whole.report["losses"]
    assert len(run.report["losses"]) == run.spec.max_steps
    weights, expected = (load_file(one.output / "model.safetensors") for one in (run, whole))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)
    assert f"stopped at step {HOLD} of" in run.cluster.log(run.number)  # the second stay did not overwrite it


def test_the_controller_reads_a_gpu_job_as_asked(cluster):
    spec = Spec(name="big.job-1", nodes=2, gpus_per_node=8, time_limit=90, partition="gpu-long", strategy="ddp")
    with contextlib.chdir(cluster.root):
        write(spec, "launch gpu")
        found = [row for row in rows(spec, Path("launch gpu")) if not row.same]
    job = cluster.job(number := cluster.sbatch("launch gpu", "--hold"))
    cluster.call("scancel", number)
    assert found == []
    assert (job["JobName"], job["Partition"], job["TimeLimit"]) == ("big.job-1", "gpu-long", "01:30:00")
    assert (job["NumNodes"], job["NumTasks"], job["CPUs/Task"]) == ("2-2", "2", str(8 * spec.cpus_per_gpu))
    assert (job["NtasksPerN:B:S:C"], job["TresPerNode"]) == ("1:0:*:*", "gres:gpu:8")
    assert (job["Requeue"], job["BatchFlag"], job["MinMemoryNode"]) == ("1", "1", "0")  # 0: all


def test_the_check_asks_the_controller(cluster, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.chdir(cluster.root)
    for partition, accepted in (("gpu-long", True), ("nowhere", False)):
        spec = Spec(nodes=2, strategy="ddp", partition=partition)
        write(spec, f"launch {partition}")
        (row,) = (row for row in rows(spec, Path(f"launch {partition}")) if row.field == "sbatch --test-only")
        assert row.same == accepted, row
    assert "nvalid partition" in row.resolved
    assert cluster.call("squeue", "--noheader", "--name=finetune") == ""  # nothing was submitted


def test_a_job_that_fails_is_not_queued_again_and_ends_on_all_machines(cluster, misbehaved):
    job = cluster.over(misbehaved["fails"])
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")


def test_a_job_that_saved_nothing_is_not_queued_again(cluster, misbehaved):
    job = cluster.over(misbehaved["saves nothing"])
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    reason = "nothing new in runs/saves nothing since the start of this stay"
    assert reason in cluster.log(misbehaved["saves nothing"])


def test_a_deaf_program_is_requeued_before_the_time_is_up(cluster, misbehaved):
    number = misbehaved["deaf"]
    cluster.until(lambda: cluster.job(number)["Restarts"] == "1", "requeued without the program's help", 40)
    cluster.call("scancel", number)


def test_submitting_from_another_folder_is_one_sentence(cluster):
    with contextlib.chdir(cluster.root):
        write(spec_of(cluster, "lost"), "launch lost")
    number = cluster.call("sbatch", "--parsable", "slurm.sbatch", cwd=cluster.root / "launch lost").strip()
    job = cluster.over(number)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    output = (cluster.root / "launch lost" / f"lost-{number}.out").read_text()
    assert output == f"no launch lost/torchrun.sh in {cluster.root}/launch lost: submit from the project's root\n"
