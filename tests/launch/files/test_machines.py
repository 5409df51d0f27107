"""Cores, containers, devices, ports and NCCL's flight recorder: each said where its tool reads it, with its reason."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from course_utils.errors import SpecError
from course_utils.launch import Spec, render, write
from course_utils.launch.check.folder import check
from course_utils.launch.spec.settings import recorder_variables, slurm_port

TWO = Spec(strategy="ddp", nodes=2, log_dir="it's logs")
TORCH = Path(torch.__file__).parent


def test_a_time_out_leaves_a_dump_of_each_rank_in_the_log_folder():
    wanted = ("TORCH_FR_BUFFER_SIZE=2000  # ", "TORCH_NCCL_DUMP_ON_TIMEOUT=1  # ")
    texts = render(TWO.but(strategy="zero2"))
    for script in ("torchrun.sh", "accelerate.sh", "deepspeed.sh"):
        assert all(f"export {one}" in texts[script] for one in wanted), script
        assert "'it'\"'\"'s logs/nccl_trace_rank_'" in texts[script]
    assert "torchfrtrace --prefix nccl_trace_rank_ 'it'\"'\"'s logs'" in texts["README.md"]
    for other in ("ray_train.py", "sagemaker_entry.py"):  # they keep no log folder
        assert "TORCH_FR" not in texts[other]


def test_no_recorder_where_it_would_write_nothing():
    for spec in (TWO.but(log_dir=""), TWO.but(device="cpu"), Spec(strategy="ddp", gpus_per_node=1, log_dir="x")):
        assert recorder_variables(spec) == {}
        assert "TORCH_FR" not in render(spec)["torchrun.sh"] and "torchfrtrace" not in render(spec)["README.md"]


def test_the_installed_torch_reads_the_recorders_variables():
    """The CPU build has no NCCL: two names are in its library, the third in the header it is shipped with."""
    library = (TORCH / "lib" / "libtorch_cpu.so").read_bytes()
    assert b"TORCH_FR_BUFFER_SIZE" in library and b"TORCH_FR_DUMP_TEMP_FILE" in library
    header = (TORCH / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp").read_text()
    assert '"TORCH_NCCL_DUMP_ON_TIMEOUT"' in header
    from torch.distributed.flight_recorder.components.config_manager import JobConfig

    words = ["--prefix", "nccl_trace_rank_", "logs"]
    assert vars(JobConfig().parse_args(words)).items() >= {"prefix": "nccl_trace_rank_", "trace_dir": "logs"}.items()


@pytest.mark.parametrize(("offload", "threads"), [("none", None), ("optimizer", "6")])
def test_adam_on_the_processor_has_more_than_one_thread(offload, threads):
    texts = render(Spec(strategy="zero2", offload=offload, cpus_per_gpu=6))
    for script in ("torchrun.sh", "accelerate.sh", "deepspeed.sh"):
        found = re.search(r"^export OMP_NUM_THREADS=(\S+)  # ", texts[script], re.M)
        assert (found and found[1]) == threads, script
    assert ("'OMP_NUM_THREADS': '6'" in texts["ray_train.py"]) == bool(threads)


@pytest.mark.parametrize("mode", ["node", "socket", "exclusive", "core-complex"])
def test_torchrun_takes_the_numa_binding(mode):
    from torch.distributed.run import config_from_args, parse_args

    texts = render(Spec(strategy="zero2", numa=mode))
    assert f"  --numa-binding={mode}  # " in texts["torchrun.sh"]
    assert "--enable_cpu_affinity  #" in texts["accelerate.sh"] and "--bind_cores_to_rank  " in texts["deepspeed.sh"]
    config = config_from_args(parse_args(["--standalone", "--nproc-per-node=2", f"--numa-binding={mode}", "x.py"]))[0]
    assert config.numa_options.affinity_mode.value == mode


def test_an_exclusive_job_says_so_to_sbatch_only_if_asked():
    assert "\n#SBATCH --exclusive\n" in render(TWO.but(exclusive=True))["slurm.sbatch"]
    assert "--exclusive" not in render(TWO)["slurm.sbatch"]


SRUN = """#!/usr/bin/env bash
printf '%s\n' "$@" > "$NOTES"
while [[ $1 == -* ]]; do shift; done
SLURM_PROCID=1 "$@"
"""
APPTAINER = """#!/usr/bin/env bash
printf '%s\n' apptainer "$@" "rank $NODE_RANK" > "$NOTES.inner"
"""
SCONTROL = "#!/bin/sh\n[ $1 != show ] || echo machine0\n"


def submitted(spec, tmp_path):
    """What srun and apptainer were given by the job script."""
    write(spec, tmp_path / "launch")
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    for name, text in {"srun": SRUN, "apptainer": APPTAINER, "scontrol": SCONTROL, "torchrun": "#!/bin/sh\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "1007", "SLURM_CPUS_PER_TASK": "1"}
    job |= {"SLURM_JOB_NODELIST": "m[0-1]", "NOTES": str(notes), "PATH": f"{programs}:{os.environ['PATH']}"}
    command = ["bash", tmp_path / "launch" / "slurm.sbatch"]
    done = subprocess.run(command, env=os.environ | job, capture_output=True, text=True, timeout=60)
    inner = Path(f"{notes}.inner")
    return done, notes.read_text().splitlines() if notes.exists() else [], inner.exists() and inner.read_text()


@pytest.mark.parametrize(
    ("image", "pyxis", "apptainer"),
    [
        ("pytorch/pytorch:2.13.0", "pytorch/pytorch:2.13.0", "docker://pytorch/pytorch:2.13.0"),
        ("nvcr.io/nvidia/pytorch:26.01", "nvcr.io#nvidia/pytorch:26.01", "docker://nvcr.io/nvidia/pytorch:26.01"),
        ("localhost:5000/a", "localhost:5000#a", "docker://localhost:5000/a"),
        ("/images/my.sqsh", "/images/my.sqsh", "/images/my.sqsh"),
        ("./my.dir/my.sif", "./my.dir/my.sif", "./my.dir/my.sif"),
        ("ubuntu", "ubuntu", "docker://ubuntu"),
    ],
)
def test_an_image_is_named_as_each_runtime_names_it(image, pyxis, apptainer):
    text = render(TWO.but(container="pyxis", image=image))["slurm.sbatch"]
    assert re.search(r"--container-image='?([^' ]+)'? --", text)[1] == pyxis
    text = render(TWO.but(container="apptainer", image=image))["slurm.sbatch"]
    assert text.split('"$script" "$where" ')[1].split(" &")[0] == apptainer


def test_pyxis_gets_the_project_and_the_output_folder_at_their_own_places(tmp_path):
    done, words, _ = submitted(TWO.but(container="pyxis", output_dir="it's out"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"--container-mounts={tmp_path}:{tmp_path},{tmp_path}/it's out:{tmp_path}/it's out" in words
    assert f"--container-workdir={tmp_path}" in words and "--container-mount-home" in words


def test_apptainer_starts_torchrun_sh_inside_with_its_rank(tmp_path):
    done, _, inner = submitted(TWO.but(container="apptainer", image="my.sif", output_dir="it's out"), tmp_path)
    assert done.returncode == 0, done.stderr
    mounts = f"{tmp_path},{tmp_path}/it's out"
    command = ["apptainer", "exec", "--nv", "--bind", mounts, "--pwd", str(tmp_path), "my.sif", "bash", "--"]
    assert inner.splitlines() == [*command, str(tmp_path / "launch" / "torchrun.sh"), "rank 1"]


def test_a_folder_that_no_container_can_mount_is_one_sentence(tmp_path):
    done, words, _ = submitted(TWO.but(container="pyxis", output_dir="a,b"), tmp_path)
    assert (done.returncode, words) == (2, []) and done.stderr.count("\n") == 1
    assert "no container can mount a name with a comma or a colon" in done.stderr


def test_what_needs_a_container_and_more_survives_the_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = TWO.but(container="apptainer", exclusive=True, numa="node", ddp_timeout=900, network_kind="efa")
    write(spec.but(network_devices=("vpc.amazonaws.com/efa=32",)), "launch")
    assert [row for row in check("launch") if not row.same] == []
    for name, old, new in (
        ("torchrun.sh", "--ddp_timeout=900", "--ddp_timeout=9"),
        ("trainjob.yaml", "efa: 32", "efa: 16"),
        ("slurm.sbatch", "#SBATCH --exclusive\n", ""),
    ):
        path = Path("launch", name)
        path.write_text(path.read_text().replace(old, new))
    different = {(row.file, row.field) for row in check("launch") if not row.same}
    assert different >= {
        ("torchrun.sh", "longest wait for other ranks [s]"),
        ("slurm.sbatch", "machines for this job alone"),
    }
    assert ("trainjob.yaml", "GPUs and network devices per node") in different


def test_jobs_of_other_numbers_meet_at_other_ports(tmp_path):
    assert "MASTER_PORT:-$((29500 + SLURM_JOB_ID % 1000 * 2))" in render(TWO)["slurm.sbatch"]
    found = [slurm_port(TWO, job) for job in range(5000, 6000)]
    assert len(set(found)) == 1000 and all(29500 <= port < 32768 and port % 2 == 0 for port in found)
    assert {slurm_port(TWO.but(port=65535), job) for job in range(9)} == {65535}  # no room above it
    assert max(slurm_port(TWO.but(port=65000), job) for job in range(9999)) + 1 <= 65535  # with the preflight's


@pytest.mark.parametrize("number", [7, 1007, 123456])
def test_bash_computes_the_same_port(number):
    line = next(one for one in render(TWO)["slurm.sbatch"].splitlines() if one.startswith("MASTER_PORT="))
    done = subprocess.run(
        ["bash", "-c", f"{line}; echo $MASTER_PORT"], env={"SLURM_JOB_ID": str(number)}, capture_output=True, text=True
    )
    assert int(done.stdout) == slurm_port(TWO, number)


def test_a_trainjob_has_the_networks_devices_shared_memory_and_locked_memory():
    spec = TWO.but(network_kind="infiniband", network_devices=("rdma/hca_shared_devices_a=1", "example.com/x=8"))
    text = render(spec)["trainjob.yaml"]
    job = yaml.safe_load(text)["spec"]
    limits = {"nvidia.com/gpu": 8, "rdma/hca_shared_devices_a": 1, "example.com/x": 8}
    assert job["trainer"]["resourcesPerNode"]["limits"] == limits
    pod = job["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = pod["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert "kueue.x-k8s.io/queue-name" in text and "podGroupPolicy" in text  # all pods or none
    alone = render(spec.but(nodes=1))["trainjob.yaml"]
    assert "kueue" not in alone and "hca_shared" not in alone


def test_a_fast_network_whose_devices_nobody_named_is_a_hint_and_no_guess():
    text = render(TWO.but(network_kind="efa"))["trainjob.yaml"]
    assert "vpc.amazonaws.com/efa, for example" in text
    assert set(yaml.safe_load(text)["spec"]["trainer"]["resourcesPerNode"]["limits"]) == {"nvidia.com/gpu"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network_devices": ("efa",)}, "network_devices='efa' is not allowed"),
        ({"network_devices": ("a/b=0",)}, "network_devices='a/b=0' is not allowed"),
        ({"network_devices": ("a/b: 1\n        c=1",)}, "is not allowed"),
        ({"container": "pyxis", "image": ""}, "container='pyxis' needs image, which is empty"),
        ({"container": "docker"}, "container="),
        ({"numa": "cores"}, "numa="),
        ({"ddp_timeout": 5}, "ddp_timeout="),
        ({"arguments": ("--ddp_timeout=60",)}, "contradicts ddp_timeout=1800"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(fields, message):
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        Spec(**fields)
    assert "\n" not in str(caught.value)
