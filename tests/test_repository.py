"""Rules about the repository as a whole: import directions, file sizes, pins."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A folder may import itself and the folders named here.
MAY_IMPORT = {
    "data": {"models"},
    "models": {"data"},
    "training": {"data", "models"},
    "parallel": {"data", "models", "training"},
    "launch": {"data", "models", "training", "parallel"},
    "recipes": {"data", "models", "training", "parallel"},
    "teach": {"data", "models", "training", "parallel", "launch"},
}


def imported_folders(source: str, module: tuple[str, ...]) -> set[str]:
    """Folders of course_utils that a module imports; ``module`` is its dotted name in parts, for relative imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(module[: len(module) - node.level]) if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "course_utils" and len(p) > 1 and p[1] in MAY_IMPORT}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_flow_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if len(parts) < 3:
        assert imported_folders(path.read_text(encoding="utf-8"), parts) == set()
        return
    folder = parts[1]
    assert imported_folders(path.read_text(encoding="utf-8"), parts) <= MAY_IMPORT[folder] | {folder}


@pytest.mark.parametrize(
    "source",
    [
        "from course_utils import teach",
        "import course_utils.teach.lesson",
        "from course_utils.teach import start",
        "from ..teach import start",
        "def f():\n    from course_utils.teach.figure import show",
    ],
)
def test_a_planted_import_of_teach_is_noticed(source):
    assert imported_folders(source, ("course_utils", "training", "loop")) == {"teach"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_under_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


@pytest.mark.parametrize("module", ["course_utils", "course_utils.data", "course_utils.models", "course_utils.teach"])
def test_importing_the_package_costs_nothing(module):
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib', 'pandas', 'numpy'}"
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
