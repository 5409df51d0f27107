"""What makes a checkpoint of a Trainer complete, and which one a run goes on from; no Trainer is needed."""

import json
import os
import re

import pytest

from course_utils.training import resume
from course_utils.training.resume import (
    COMPLETE,
    agreed_checkpoint,
    check_checkpoint,
    fault_of,
    last_complete_checkpoint,
    mark_complete,
    read_facts,
)


@pytest.fixture
def run_folder(tmp_path):
    """checkpoint-2 to checkpoint-6, two files each, all marked."""
    for step in (2, 4, 6):
        checkpoint = tmp_path / f"checkpoint-{step}"
        (checkpoint / "shards").mkdir(parents=True)
        (checkpoint / "shards" / "__0_0.distcp").write_bytes(b"w" * 100)
        (checkpoint / "trainer_state.json").write_text("{}")
        mark_complete(checkpoint, {"step": step})
    return tmp_path


def flip(path, place=50):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "no mark": (lambda newest: (newest / COMPLETE).unlink(), "never marked complete"),
    "cut": (lambda newest: os.truncate(newest / "shards" / "__0_0.distcp", 50), "__0_0.distcp has 50 of 100 bytes"),
    "removed": (lambda newest: (newest / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "flipped": (lambda newest: flip(newest / "shards" / "__0_0.distcp"), "__0_0.distcp differs from its checksum"),
    "mark cut": (lambda newest: (newest / COMPLETE).write_text('{"shards/__0_0.dis'), "cannot be read"),
    "mark of another kind": (lambda newest: (newest / COMPLETE).write_text("[1]"), "cannot be read"),
    "mark emptied": (lambda newest: (newest / COMPLETE).write_text(""), "cannot be read"),
    "mark flipped": (lambda newest: flip(newest / COMPLETE, -3), "cannot be read"),
    "facts changed": (
        lambda newest: (newest / COMPLETE).write_text(
            (newest / COMPLETE).read_text().replace('"step": 6', '"step": 7')
        ),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_unmarked_checkpoint_is_passed_over_and_named(kind, run_folder, capsys):
    assert last_complete_checkpoint(run_folder) == run_folder / "checkpoint-6"
    damage, words = DAMAGE[kind]
    damage(run_folder / "checkpoint-6")
    assert words in fault_of(run_folder / "checkpoint-6")
    assert last_complete_checkpoint(run_folder) == run_folder / "checkpoint-4"
    with pytest.raises(ValueError, match="allowed: the next older complete one, .*checkpoint-4$") as caught:
        check_checkpoint(run_folder / "checkpoint-6")  # asked for by name: no other one is taken instead
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert agreed_checkpoint(run_folder) == run_folder / "checkpoint-4"
    shown = capsys.readouterr().out
    assert words in shown and "goes on from checkpoint-4" in shown
    assert not (run_folder / "checkpoint-6" / COMPLETE).exists()  # while it is written anew it must not look complete
    assert (run_folder / "checkpoint-2" / COMPLETE).exists()


def test_nothing_whole_is_a_refusal_and_not_a_new_beginning(run_folder):
    for step in (2, 4, 6):
        flip(run_folder / f"checkpoint-{step}" / "shards" / "__0_0.distcp")
    with pytest.raises(ValueError, match="checkpoint-6 is damaged: .*; allowed: --resume false, to begin anew"):
        agreed_checkpoint(run_folder)
    assert (run_folder / "checkpoint-6" / COMPLETE).exists()
    with pytest.raises(ValueError, match="no older one is beside it"):
        check_checkpoint(run_folder / "checkpoint-2")


def test_a_run_that_is_refused_leaves_the_marks(run_folder):
    """The run contradicts the older checkpoint: nothing goes on, so nothing may be written."""
    flip(run_folder / "checkpoint-6" / "shards" / "__0_0.distcp")

    def contradicts(checkpoint):
        raise ValueError(f"seed=7 contradicts {checkpoint.name}")

    with pytest.raises(ValueError, match="contradicts checkpoint-4"):
        agreed_checkpoint(run_folder, check=contradicts)
    assert (run_folder / "checkpoint-6" / COMPLETE).exists()


def forged_manifest(checkpoint, **changes):
    """A manifest with the right checksum of a wrong content."""
    content = json.loads((checkpoint / COMPLETE).read_text()) | changes
    del content["sha256"]
    content = {name: value for name, value in content.items() if value is not None}
    (checkpoint / COMPLETE).write_text(json.dumps(content | {"sha256": resume._checksum_of(content)}))


FORGED = [
    {"files": None},
    {"facts": None},
    {"facts": [1]},
    {"files": {}},
    {"files": {"trainer_state.json": 2}},
    {"files": {"trainer_state.json": [2]}},
    {"files": {"../../trainer_state.json": [2, "a"]}},
    {"files": {"/etc/hostname": [2, "a"]}},
]


@pytest.mark.parametrize("changes", FORGED)
def test_a_forged_manifest_is_a_sentence(changes, run_folder):
    forged_manifest(run_folder / "checkpoint-6", **changes)
    assert fault_of(run_folder / "checkpoint-6") == "is damaged: its manifest 'complete' cannot be read"


def test_the_manifest_of_another_checkpoint_is_named(run_folder):
    (run_folder / "checkpoint-6" / COMPLETE).write_bytes((run_folder / "checkpoint-4" / COMPLETE).read_bytes())
    assert fault_of(run_folder / "checkpoint-6") == "is damaged: its manifest 'complete' is that of step 4"


def test_no_checkpoint_is_a_new_beginning(tmp_path, capsys):
    (tmp_path / "checkpoint-3").mkdir()  # never marked
    assert agreed_checkpoint(tmp_path) is None
    assert re.search("checkpoint-3 was never marked .*; the run begins anew\n", capsys.readouterr().out)
    assert agreed_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="is no folder"):
        agreed_checkpoint(tmp_path, given=str(tmp_path / "nowhere"))


def test_the_manifest_keeps_the_runs_facts(run_folder):
    assert read_facts(run_folder / "checkpoint-4") == {"step": 4}
    content = json.loads((run_folder / "checkpoint-4" / COMPLETE).read_text())
    assert set(content["files"]) == {"shards/__0_0.distcp", "trainer_state.json"}
    assert not list((run_folder / "checkpoint-4").glob(".*"))
