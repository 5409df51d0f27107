"""The checkpoints of ``make.py``, once per session, and copies of them to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from course_utils.models import load_tokenizer
from course_utils.parallel import cpu_site_folder, reference, run_ranks
from tests.parallel.convert import make


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """``folder``/<kind> with a checkpoint each, ``base`` (the model's folder), and what the ranks saw."""
    folder = tmp_path_factory.mktemp("checkpoints")
    base = reference.new_model()
    base.save_pretrained(folder / "base")
    load_tokenizer().save_pretrained(folder / "base")
    alone = reference.new_model()
    optimizer = reference.new_optimizer(alone)
    make.train(alone, optimizer, reference.global_batches(make.STEPS), 0, 1)
    make.save(folder / "one-process", alone, optimizer)
    kinds = [*make.FULL, *make.LORA, *make.ADAPTER]
    calls = {"folder": str(folder), "kinds": kinds, "loads": str(folder / "one-process")}
    environment = {"PYTHONPATH": str(cpu_site_folder())}
    name = f"{Path(make.__file__)}:make_checkpoints"
    seen = run_ranks(name, 2, calls, timeout=300, environment=environment)
    return SimpleNamespace(folder=folder, base=folder / "base", seen=seen[0])


@pytest.fixture
def copy_of(made, tmp_path):
    """A copy of one checkpoint, to be spoilt."""

    def copy(kind: str) -> Path:
        return shutil.copytree(made.folder / kind, tmp_path / "spoilt" / kind)

    return copy


@pytest.fixture(scope="session")
def whole(made):
    """The gathered weights of a kind."""
    return lambda kind: torch.load(made.folder / kind / "whole.pt", weights_only=True)
