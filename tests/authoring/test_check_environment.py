"""The environment check: what a healthy machine prints, and each problem with what to do."""

import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata

import pytest

from course_utils.authoring import check_environment as check

ALL_GOOD = "Everything the course needs is here."


def run(**environment: str) -> subprocess.CompletedProcess:
    drop = ("HF_ENDPOINT", "COURSE_CACHE", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in drop}
    return subprocess.run(
        [sys.executable, "-m", "course_utils.authoring.check_environment"],
        env={**clean, "HF_ENDPOINT": "http://127.0.0.1:9", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_this_environment_is_complete_and_no_secret_is_printed(tmp_path):
    secrets = {"HF_TOKEN": "hf_tellnobody", "WANDB_API_KEY": "tellnobody2"}
    endpoint = "http://user:tellnobody3@127.0.0.1:9"
    done = run(COURSE_CACHE=str(tmp_path), OMP_WAIT_POLICY="PASSIVE", **{**secrets, "HF_ENDPOINT": endpoint})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(ALL_GOOD)
    assert "tellnobody" not in done.stdout + done.stderr
    for line in ("✓ Python", "✓ packages", "✓ cores", "✓ memory", "✓ GPU", f"✓ cache              {tmp_path}: 0 MB"):
        assert line in done.stdout
    assert 'not reachable: only source="hub" needs it' in done.stdout
    assert "✗" not in done.stdout


def test_a_cache_that_cannot_be_written_is_a_problem_with_exit_code_1(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run(COURSE_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 1 and ALL_GOOD not in done.stdout
    assert done.stdout.splitlines()[-1].endswith("set COURSE_CACHE to a folder you may write to")


def test_a_read_only_cache_is_a_problem(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert check.check_cache().problem.startswith("Permission denied: set COURSE_CACHE")


def test_a_full_disk_is_a_problem(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "not" / "there" / "yet"))
    assert check.check_cache().problem is None and "not built yet" in check.check_cache().value
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert check.check_cache().problem.startswith("free 200 MB")
    assert not (tmp_path / "not").exists(), "looking must not create the folder"


@pytest.mark.parametrize(
    ("version", "fine"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 12, 1), True), ((3, 13, 0), False)]
)
def test_supported_pythons(version, fine):
    assert (check.check_python(version).problem is None) is fine


def test_pins_are_read_with_comments_and_markers():
    text = "# a comment\ntorch==2.13.0   # why\nonly-there==1.0 ; sys_platform == 'nowhere'\n-e .\nplain\n"
    text += f"only_here==2.0 ; sys_platform == '{sys.platform}'  # why\n"
    assert check.read_pins(text) == [("torch", "2.13.0"), ("only_here", "2.0")]


def test_the_pins_of_this_repository_are_all_read():
    lines = (check.ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if "==" in line.split("#")[0].split(";")[0]]
    assert len(check.read_pins("\n".join(pins))) == len(pins) - (sys.platform != "linux")


def test_a_package_with_another_version_and_a_missing_one_are_named(tmp_path, monkeypatch):
    installed = {"torch": "2.13.0+cpu", "datasets": "4.0.0"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    file = tmp_path / "requirements.txt"
    file.write_text("torch==2.13.0\ndatasets==5.2.0\nabsent==1.0\n")
    summary, other, absent = check.check_packages(file)
    assert summary.value.startswith("1 of 3 as pinned (torch 2.13.0+cpu") and summary.problem is None
    assert (other.name, other.value) == ("datasets", "asked 5.2.0, installed 4.0.0")
    assert (absent.name, absent.value) == ("absent", "asked 1.0, installed not installed")
    assert other.problem and other.problem == absent.problem


@pytest.mark.parametrize(
    ("argv", "fine"),
    [
        (["python", "-m", "ipykernel_launcher"], True),
        ([sys.executable, "-m", "ipykernel_launcher"], True),
        (["/nowhere/bin/python", "-m", "ipykernel_launcher"], False),
        ([os.path.realpath(sys.executable), "-m", "ipykernel_launcher"], False),  # not in the environment
        ([], False),
    ],
)
def test_a_kernel_of_another_python_is_found(argv, fine, tmp_path, monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    (tmp_path / "kernel.json").write_text(json.dumps({"argv": argv}))
    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {"python3": str(tmp_path)})
    found = check.check_kernel()
    assert (found.problem is None) is fine
    assert fine or ("starts another Python" in found.value and "ipykernel install --sys-prefix" in found.problem)


def test_a_repair_is_run_with_the_courses_own_python(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "ROOT", tmp_path)
    assert check.repair("pip --version") == f"run `{sys.executable} -m pip --version`"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert "not the course's Python" in check.repair("pip --version")


def test_without_any_package_the_check_itself_still_runs(tmp_path):
    """-S: no site-packages at all, as on a machine where nothing is installed yet."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "course_utils.authoring.check_environment"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(check.ROOT), "COURSE_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr == ""
    problem = done.stdout.splitlines()[-1]
    assert problem.startswith("torch, transformers, ") and "Jupyter kernel" in problem


def test_gpu_line_without_and_with_a_driver(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert check.check_gpu() == check.Finding("GPU", "none: not needed")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "does not see a GPU" in check.check_gpu().value and check.check_gpu().problem is None


def test_missing_headers_are_no_problem_but_are_said(tmp_path):
    assert check.check_headers(str(tmp_path)).problem is None
    assert "apt install python3-dev" in check.check_headers(str(tmp_path)).value
    (tmp_path / "Python.h").touch()
    assert check.check_headers(str(tmp_path)).value == str(tmp_path)
