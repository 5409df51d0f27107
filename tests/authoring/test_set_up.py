"""The set-up: installs once, again when the pins change, and takes no half-finished installation for a finished one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.authoring import set_up
from tests import make_target


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with pins and a .venv whose python writes down how it was called, and fails if a file `fail` exists."""
    (tmp_path / "requirements.txt").write_text("numpy==1.0\n")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "pip").write_text("")
    (programs / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntest ! -e {tmp_path}/fail\n')
    (programs / "python").chmod(0o755)
    return tmp_path


def calls(root: Path) -> int:
    return len((root / "calls").read_text().splitlines()) if (root / "calls").exists() else 0


def test_installs_once(root):
    assert set_up.main(root) == 0
    assert "pip" in (root / "calls").read_text() and "-r requirements.txt" in (root / "calls").read_text()
    assert set_up.main(root) == 0
    assert calls(root) == 1


def test_installs_again_when_the_pins_change(root):
    set_up.main(root)
    (root / "requirements.txt").write_text("numpy==2.0\n")
    assert set_up.main(root) == 0
    assert calls(root) == 2


def test_a_failed_installation_is_not_taken_for_finished(root, capsys):
    set_up.main(root)
    (root / "requirements.txt").write_text("numpy==2.0\n")
    (root / "fail").touch()
    assert set_up.main(root) == 1
    assert "failed with exit code 1" in capsys.readouterr().err
    # Back to the first pins: the environment is half-way to the second ones.
    (root / "requirements.txt").write_text("numpy==1.0\n")
    assert not set_up.is_ready(root)
    (root / "fail").unlink()
    assert set_up.main(root) == 0 and calls(root) == 3


def test_a_moved_clone_installs_again(root, tmp_path_factory):
    set_up.main(root)
    moved = tmp_path_factory.mktemp("elsewhere") / "course"
    root.rename(moved)
    assert not set_up.is_ready(moved)


def test_an_unsuitable_python_gets_one_sentence():
    assert set_up.missing_prerequisite((3, 11), have_ensurepip=True) is None
    assert "needs 3.11 or 3.12" in set_up.missing_prerequisite((3, 9), have_ensurepip=True)
    assert "sudo apt-get install python3-venv" in set_up.missing_prerequisite((3, 11), have_ensurepip=False)


def test_without_ensurepip_nothing_is_created(tmp_path, monkeypatch, capsys):
    (tmp_path / "requirements.txt").write_text("numpy==1.0\n")
    monkeypatch.setattr(set_up.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(set_up.shutil, "which", lambda name: None)
    assert set_up.main(tmp_path) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(("able", "taken"), [("python3.11 python3.12", "python3.11"), ("python3.12", "python3.12")])
def test_another_python_is_taken_where_this_one_does_not_suit(able, taken, tmp_path, monkeypatch):
    """As in Docker's image of Python 3.12, where Debian's python3.11 has no ensurepip, and beside a Python 3.13."""
    for name in ("python3.11", "python3.12"):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {int(name not in able)}\n")
        (tmp_path / name).chmod(0o755)
    used = []
    monkeypatch.setattr(set_up, "missing_prerequisite", lambda: "python=3.13: the course needs 3.11 or 3.12")
    monkeypatch.setattr(set_up, "install", lambda root, gpu, python: used.append(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set_up.main(tmp_path) == 0 and used == [str(tmp_path / taken)]


def test_make_takes_the_python_that_a_terminal_would_take():
    assert make_target.commands("setup").startswith("python3 course_utils/authoring/set_up.py")
    assert make_target.commands("setup", "PYTHON=python3.12").startswith("python3.12 ")


def test_an_interrupted_creation_of_the_environment_is_repaired(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)  # no pip inside: `python -m venv` was stopped
    commands = []
    monkeypatch.setattr(set_up.subprocess, "run", lambda command, **_: commands.append(command))
    assert set_up.main(tmp_path) == 0
    assert commands[0][:3] == [sys.executable, "-m", "venv"] and "install" in commands[1]


# --- torch's build ----------------------------------------------------------------------------------------------------

PINS = "torch==2.13.0  # why\nnumpy==1.0\n"


@pytest.fixture
def index(root, monkeypatch):
    """.venv with a make-believe pip and uv; returns what is asked of them and what they have.

    ``offers``: the ways to a CPU build that work, "label" or "uv". ``torch``: the build that is installed.
    """
    (root / "requirements.txt").write_text(PINS)
    state = {"torch": "", "offers": set(), "asked": []}
    monkeypatch.setattr(set_up, "torch_build", lambda root: state["torch"])
    monkeypatch.setattr(set_up.sys, "platform", "linux")

    def run(command, **options):
        words = [word for word in command[3:] if not word.startswith("--")]
        state["asked"].append(" ".join(words))
        way = "uv" if "--torch-backend" in command else "label" if "torch==2.13.0+cpu" in command else None
        if way and way not in state["offers"]:
            return subprocess.CompletedProcess(command, 1)
        if way:
            state["torch"] = "2.13.0+cpu"
        if "--force-reinstall" in command or ("requirements.txt" in command and not state["torch"]):
            state["torch"] = "2.13.0"
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(set_up.subprocess, "run", run)
    return state


@pytest.mark.parametrize("way", ["label", "uv"])
def test_linux_gets_the_small_build_where_it_is_within_reach(root, index, way, capsys):
    index["offers"] = {way}
    assert set_up.main(root) == 0
    assert index["torch"] == "2.13.0+cpu" and index["asked"][-1] == "install -r requirements.txt"
    assert "CUDA" not in capsys.readouterr().out


def test_where_no_small_build_is_within_reach_the_large_one_is_announced(root, index, capsys):
    assert set_up.main(root) == 0
    assert index["torch"] == "2.13.0" and "several GB more" in capsys.readouterr().out


def test_a_gpu_build_is_asked_for_and_stays(root, index):
    index["offers"] = {"label"}
    set_up.main(root)
    set_up.main(root, gpu=True)
    assert index["torch"] == "2.13.0"
    (root / "requirements.txt").write_text(PINS + "pandas==1.0\n")
    assert set_up.main(root) == 0 and index["torch"] == "2.13.0"


def test_no_file_names_a_package_index():
    for name in ("requirements.txt", "Makefile", "README.md", "course_utils/authoring/set_up.py"):
        assert "index-url" not in (set_up.ROOT / name).read_text(encoding="utf-8")


def test_old_pythons_can_read_the_file():
    import ast

    ast.parse(Path(set_up.__file__).read_text(), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("course", "course_utils.authoring.run_course"),
        ("test", "pytest --nbval"),
        ("lab", "course_utils.authoring.lab"),
        ("slides", "course_utils.authoring.decks.build"),
        ("notebooks", "course_utils.authoring.build"),
        ("bench", "bench/bench_*.py"),
        ("test-long", "pytest --nbval"),
        ("test-portable", "ONEDNN_MAX_CPU_ISA=SSE41"),
        ("lint", "ruff check"),
        ("clean", "rm -rf build"),
    ],
)
def test_every_make_target_says_what_it_runs(target, command):
    printed = make_target.commands(target)
    assert command in printed
    assert ("set_up.py" in printed) == (target != "clean")
