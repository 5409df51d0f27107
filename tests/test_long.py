"""Campaigns: `make test` runs a sample of each, CI runs them whole every night."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from course_utils.authoring.build import ROOT
from tests.make_target import commands


def test_campaigns_run_in_their_own_target_only(pytestconfig):
    assert "-m long" in commands("test-long") and "ONEDNN_MAX_CPU_ISA" in commands("test-long")
    assert "-m long" not in commands("test") + commands("test-portable")
    assert "-m 'not long'" in pytestconfig.inipath.read_text()  # addopts


def test_the_nightly_workflow_runs_them():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    (schedule,) = workflow[True]["schedule"]  # YAML 1.1 reads the key "on" as true
    assert re.fullmatch(r"\d+ \d+ \* \* \*", schedule["cron"])
    steps = workflow["jobs"]["test-long"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run long"]


@pytest.mark.parametrize(("argument", "target"), [([], "test"), (["long"], "test-long")])
def test_the_script_of_ci_calls_the_target(argument, target):
    call = re.search(r"^make \S+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[0]
    script = ["bash", "-c", f'make() {{ echo "$@"; }}; {call}', "run", *argument]
    assert subprocess.run(script, capture_output=True, text=True).stdout == f"{target}\n"
