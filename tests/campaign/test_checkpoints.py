"""Campaigns on checkpoints: ``kill -9``, damage, and going on as another run. A sample here, whole every night."""

import json
import os
import subprocess
import sys

import pytest
import torch

from course_utils.authoring.build import ROOT
from tests.campaign import adapts, damages, kills, shards
from tests.campaign.tally import RECORD, Tally, lines_of_readme


def program(name, *arguments):
    """What ``python -m tests.campaign.<name>`` prints; it must end with 0."""
    command = [sys.executable, "-m", f"tests.campaign.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [line for line in done.stdout.splitlines() if line.startswith("CAMPAIGN ")]


def test_kills_of_one_process_a_sample():
    (line,) = program("kills", "--count", 1, "--only", kills.KINDS[1].name)
    assert "tried    1  survived    1" in line


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind.name for kind in kills.KINDS])
def test_kills(kind):
    assert program("kills", "--count", 24, "--seed", 24, "--only", kind)


def test_shards_of_two_ranks_a_sample():
    """One damaged and one forged file of an FSDP2 checkpoint."""
    assert len(program("shards", "--count", 2, "--seed", 1, "--only", shards.KINDS[0].name)) == 2


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind.name for kind in shards.KINDS])
def test_shards_of_two_ranks(kind):
    assert len(program("shards", "--count", 0, "--only", kind)) == 2


def test_another_number_of_processes_a_sample():
    assert len(program("adapts", "--count", 1)) == 1  # from one process to two


@pytest.mark.long
def test_another_batch_or_number_of_processes():
    assert len(program("adapts", "--count", 27, "--seed", 24)) == len(adapts.ROUNDS)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield damages.subjects(tmp_path_factory.mktemp("damages"))
    torch.set_num_threads(before)


def test_damages_a_sample(subjects, tmp_path):
    tally = damages.campaign(12, 3, subjects, tmp_path, forgeries=(2, 12))
    tally.check()
    assert sum(tally.tried.values()) == 2 * 12 + 2 + 12


@pytest.mark.long
def test_damages(subjects, tmp_path):
    tally = damages.campaign(300, 300, subjects, tmp_path)
    tally.check()
    assert sum(tally.tried.values()) > 700


def test_damage_that_nobody_noticed_is_a_fault(subjects, tmp_path, monkeypatch):
    """The campaign's own alarm: with the checksums left out, flipped bytes go through."""
    from course_utils.training import checkpoint, resume

    loop, trainer = subjects
    monkeypatch.setattr(checkpoint, "_describe", lambda path: path.stat().st_size)
    monkeypatch.setattr(resume, "_checksum", lambda path: "the same")
    for subject, file in ((loop, "state.pt"), (trainer, "tokenizer.json")):
        tally = Tally()
        damages.damage_all(subject, [(file, damages.flipped)], damages.random.Random(0), tmp_path, tally, 0.0)
        assert len(tally.faults) == 1, tally.faults
        with pytest.raises(AssertionError, match="flipped"):
            tally.check()


def test_the_record_is_what_readme_says():
    """README's table, row by row, against what the campaigns wrote."""
    section = (ROOT / "README.md").read_text().split("## Reliability")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["what was done", "tried", "survived"]
    shown = {name: (int(tried), int(survived)) for name, tried, survived in rows[2:]}
    assert shown == lines_of_readme()
    assert all(tried == survived for tried, survived in shown.values())
    for entry in json.loads(RECORD.read_text()).values():
        assert entry["date"] in section and entry["machine"] in section
