"""The workflows hold where GitHub runs them: in a container whose root owns neither its home nor the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from course_utils.authoring.build import ROOT

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
JOBS = [(file, name, job) for file, workflow in WORKFLOWS.items() for name, job in workflow["jobs"].items()]
TESTING = [pytest.param(job, id=f"{file}-{name}") for file, name, job in JOBS if "matrix" in job.get("strategy", {})]


@pytest.fixture
def strangers_checkout(tmp_path) -> Path:
    """A repository, and a home beside it, that belong to somebody else."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for folder in ("home", "checkout"):
        (tmp_path / folder).mkdir()
    subprocess.run(["git", "init", "-q", str(tmp_path / "checkout")], check=True)
    for path in (tmp_path / "home", tmp_path / "checkout"):
        os.chown(path, 1001, 1001)
    return tmp_path


def in_container(command: list[str], where: Path, settings: dict[str, str]) -> subprocess.CompletedProcess:
    own = {"PATH": os.environ["PATH"], "HOME": str(where / "home")}
    return subprocess.run(command, env=own | settings, cwd=where / "checkout", capture_output=True, text=True)


@pytest.mark.parametrize("job", TESTING)
def test_git_and_pip_work_in_a_strangers_checkout(job, strangers_checkout):
    settings = job["env"]
    assert in_container(["git", "status"], strangers_checkout, {}).returncode != 0, "then the settings are not needed"
    assert in_container(["git", "status"], strangers_checkout, settings).returncode == 0
    pip = [str(Path(sys.executable).parent / "pip"), "--disable-pip-version-check", "cache", "dir"]
    assert "cache is disabled" in in_container(pip, strangers_checkout, {}).stderr
    cache = in_container(pip, strangers_checkout, settings).stdout.strip()
    (kept,) = [step["with"]["path"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache@")]
    assert cache == kept


def test_all_run_at_a_push_at_night_and_on_demand_as_contributing_says():
    assert {file: sorted(workflow[True]) for file, workflow in WORKFLOWS.items()} == {
        "ci": ["pull_request", "push"],
        "nightly": ["schedule", "workflow_dispatch"],
        "pages": ["push", "workflow_dispatch"],
    }
    pythons = {tuple(job.values[0]["strategy"]["matrix"]["python"]) for job in TESTING}
    assert pythons == {("3.11", "3.12")}


@pytest.mark.parametrize("script", sorted((ROOT / ".ci").iterdir()), ids=lambda path: path.name)
def test_what_they_run_is_there_and_sound(script):
    assert os.access(script, os.X_OK)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "shellcheck"), str(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    steps = [step["run"] for _, _, job in JOBS for step in job["steps"] if "run" in step]
    assert any(step.startswith(f".ci/{script.name}") for step in steps)
