"""What lesson 01 and its deck say about the time of an optimizer step: the recorded file must support it."""

from __future__ import annotations

import json

import nbformat
import pytest

from course_utils.authoring.build import ROOT

VERSIONS = {"torch for-loop", "torch foreach", "torch fused", "own readable", "own foreach", "own compiled"}


@pytest.fixture(scope="module")
def bench() -> dict:
    return json.loads((ROOT / "bench" / "results" / "optimizer.json").read_text())


def test_the_file_holds_every_version_and_names_its_machine(bench):
    assert set(bench["ratio_to_fused"]) == VERSIONS and bench["ratio_to_fused"]["torch fused"] == 1
    assert bench["machine"] and bench["torch"] and bench["threads"] >= 1 and bench["rounds"] >= 100


def test_compiled_is_as_fast_as_fused_and_the_others_are_not(bench):
    ratios = bench["ratio_to_fused"]
    assert ratios["own compiled"] <= 1.1
    assert min(ratios[name] for name in VERSIONS - {"own compiled", "torch fused"}) > 1.5


def test_every_own_version_equals_torchs(bench):
    differences = bench["largest_difference_float64"]
    assert set(differences) == {name for name in VERSIONS if name.startswith("own")}
    assert max(differences.values()) <= 1e-12


def test_the_lesson_shows_this_file(bench):
    notebook = nbformat.read(ROOT / "notebooks" / "01_training_loop.ipynb", as_version=4)
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    for name, ratio in bench["ratio_to_fused"].items():
        assert f"{name:16}{ratio:5.2f}" in printed, "run: make notebooks ONLY=01 FORCE=--force"
