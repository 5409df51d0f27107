"""A rank dies in a job of two machines: slurm.sbatch, on two real daemons, queues it again so many times at most."""

import json

import pytest
from safetensors.torch import load_file

from tests.launch.files.test_crashes import PROGRAM, starts
from tests.launch.files.test_slurm_cluster import cluster as cluster  # a fixture
from tests.launch.files.test_slurm_cluster import spec_of, submit

pytestmark = pytest.mark.long


def job(cluster, name, *crash):
    """A job of 10 steps that saves after every second one, and is queued again twice at most."""
    spec = spec_of(cluster, name, program=str(PROGRAM), strategy="ddp", save_every=2, max_restarts=2, output_dir=name)
    return submit(cluster, spec, CRASH=json.dumps(crash)), cluster.root / name


@pytest.fixture(scope="module")
def jobs(cluster):
    return {
        "whole": job(cluster, "whole", 1, [], "kill"),
        "twice": job(cluster, "twice", 1, [3, 5], "kill"),
        "always": job(cluster, "always", 1, [3, 5, 7, 9, 9], "raise"),
        "unsaved": job(cluster, "unsaved", 0, [1], "exit"),
    }


def test_a_job_whose_rank_dies_twice_ends_with_the_uninterrupted_weights(cluster, jobs):
    ends = {name: cluster.over(jobs[name][0]) for name in ("whole", "twice")}
    assert {name: (end["JobState"], end["Restarts"]) for name, end in ends.items()} == {
        "whole": ("COMPLETED", "0"),
        "twice": ("COMPLETED", "2"),
    }, cluster.ends_of_logs()
    output = jobs["twice"][1]
    assert starts(output) == [f"start {n}, rank {rank}, from step {2 * n}" for n in range(3) for rank in range(2)]
    found, whole = (load_file(jobs[name][1] / "model.safetensors") for name in ("twice", "whole"))
    assert found.keys() == whole.keys() and all(found[name].equal(whole[name]) for name in whole)
    log = cluster.log(jobs["twice"][0])
    assert "crash 1 of at most 2 on 127.0.0.[2-3], exit code" in log and "crash 2 of at most 2" in log


def test_a_job_whose_rank_always_dies_ends_after_two_restarts(cluster, jobs):
    number, output = jobs["always"]
    end = cluster.over(number)
    assert (end["JobState"], end["Restarts"]) == ("FAILED", "2") and end["ExitCode"] != "0:0"
    assert {line.split(",")[0] for line in starts(output)} == {"start 0", "start 1", "start 2"}
    assert "RuntimeError: rank 1 crashes in step 7" in cluster.log(number)


def test_a_job_that_dies_before_it_saved_is_not_queued_again(cluster, jobs):
    end = cluster.over(jobs["unsaved"][0])
    assert (end["JobState"], end["Restarts"]) == ("FAILED", "0")


def test_a_machine_can_be_left_out_as_the_script_says(cluster, jobs):
    number = cluster.sbatch("launch whole", "--hold", CRASH="[]")
    cluster.call("scontrol", "update", f"jobid={number}", "excnodelist=127.0.0.3")
    excluded = cluster.job(number)["ExcNodeList"]
    cluster.call("scancel", number)
    assert excluded == "127.0.0.3"
