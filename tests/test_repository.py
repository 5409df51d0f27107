"""Rules about the repository as a whole: file sizes, the price of an import, pins."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_under_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


@pytest.mark.parametrize("module", ["", ".data", ".models", ".parallel", ".launch", ".launch.check.folder", ".teach"])
def test_importing_a_package_costs_nothing(module):
    module = f"course_utils{module}"
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'deepspeed', 'matplotlib', 'pandas', 'numpy'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_every_requirement_is_pinned_and_says_why():
    for line in requirement_lines():
        requirement, _, reason = line.partition("#")
        assert re.fullmatch(r"-e \.|[\w-]+==\d[\w.]*( ; .+)?", requirement.strip()), line
        assert reason.strip(), f"{line}: no reason"


def test_deepspeed_is_for_linux_only():
    assert all('sys_platform == "linux"' in line for line in requirement_lines() if line.startswith("deepspeed"))


def test_environment_yml_only_wraps_requirements():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    entries = re.findall(r"^\s*- (.+?)\s*$", text, re.MULTILINE)
    assert entries == ["conda-forge", "python=3.11", "pip", "pip:", "-r requirements.txt"]


def test_workflow_runs_the_same_script():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"^\s*- run: (.+)$", workflow, re.MULTILINE) == [".ci/run"]
    assert re.search(r"^make test\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
