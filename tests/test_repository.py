"""Rules about the repository as a whole: file sizes, the price of an import, pins."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))
OPTIONAL = {"liger_kernel", "vllm"}  # need a GPU; used where they are installed


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


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_what_the_course_imports_is_pinned():
    """Also what another pin brings along: with another version a figure or a message may change."""
    asked = {re.split("[=;]", line)[0].strip().lower().replace("_", "-") for line in requirement_lines()}
    distributions, unpinned = packages_distributions(), {}
    places = ("course_utils", "tests", "bench", "notebooks/source", "slides")
    own = {*places, *(path.stem for path in (ROOT / "bench").glob("*.py"))}
    for path in (path for place in places for path in (ROOT / place).rglob("*.py")):
        for name in imported(path) - sys.stdlib_module_names - own - OPTIONAL:
            if not {found.lower().replace("_", "-") for found in distributions.get(name, [])} & asked:
                unpinned[name] = str(path.relative_to(ROOT))
    assert not unpinned


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
