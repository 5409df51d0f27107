"""How finetune goes on: only from a whole checkpoint, only as the same run, or adapted at the right row."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from course_utils.recipes import finetune
from course_utils.training.resume import COMPLETE, fault_of, read_facts
from tests.recipes.refused import refusal

ROWS = 96


@pytest.fixture
def halves(run):
    """Three of six steps of 8 rows, saved at step 3."""

    def call(*arguments, **options):
        return run("--save_steps=3", "--max_steps=6", "--per_device_train_batch_size=8", *arguments, **options)

    return call


def seen_rows(trainer):
    """Ids of the rows of every batch that ``trainer`` trains on, in order."""
    rows, step = [], trainer.training_step

    def note(model, inputs, *rest, **options):
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        rows.extend(tuple(ids[mask.bool()].tolist()) for ids, mask in pairs)
        return step(model, inputs, *rest, **options)

    trainer.training_step = note
    return rows


@pytest.fixture
def watched(monkeypatch):
    """Rows of the runs that follow, one list a run."""
    runs, build = [], finetune.build_trainer

    def build_and_watch(config, args):
        trainer, report = build(config, args)
        runs.append(seen_rows(trainer))
        return trainer, report

    monkeypatch.setattr(finetune, "build_trainer", build_and_watch)
    return runs


def keep_first_checkpoint(folder):
    (folder / "checkpoint-6" / COMPLETE).unlink()


DIFFERENCES = {
    "--per_device_train_batch_size=4": "batch_size=4 contradicts .*checkpoint-3, made with 8; allowed: the same, "
    "--resume adapt",
    "--gradient_accumulation_steps=2": "gradient_accumulation_steps=2 contradicts .*, made with 1",
    "--seed=7": r"seed=7 contradicts .*, made with 42; allowed: the same, or --resume false \(begins anew\)",
    "--learning_rate=0.1": "learning_rate=0.1 contradicts .*, made with 0.001",
    "--max_length=8": "was made with another training data",
    "--use_peft": "was made with another model",
}


def test_a_run_that_differs_from_its_checkpoint_is_refused(halves, tmp_path, capsys):
    halves()
    keep_first_checkpoint(tmp_path / "out")
    facts = read_facts(tmp_path / "out" / "checkpoint-3")
    assert (facts["per_device_train_batch_size"], facts["gradient_accumulation_steps"], facts["processes"]) == (8, 1, 1)
    assert (facts["rows_seen"], facts["rows_in_epoch"], facts["epoch"]) == (24, 24, 0)
    before = json.loads((tmp_path / "out" / "run.json").read_text())
    for difference, words in DIFFERENCES.items():
        assert re.search(words, refusal(capsys, lambda flag=difference: halves(flag))), difference
    assert "seed=7 contradicts" in refusal(capsys, lambda: halves("--seed=7", "--resume=adapt"))
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == before


def test_adapt_goes_on_at_the_row_where_the_checkpoint_stopped(halves, watched, tmp_path, capsys):
    halves()
    keep_first_checkpoint(tmp_path / "out")
    cut = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=2", "--resume=adapt"]
    _, adapted = halves(*cut, "--max_steps=15")
    whole, rest = watched
    assert len(set(whole)) == 48
    assert rest == whole[24:] + rest[24:]  # the rows that the first run saw from there on, in the same order
    assert len(rest) == 4 * 12 and not set(rest) & set(whole[:24])
    assert (adapted["rows_seen"], adapted["steps"], adapted["resumed_from"]) == (24 + 48, 15, 3)
    (tmp_path / "out" / "checkpoint-15" / COMPLETE).unlink()
    words = "stopped after 60 rows of an epoch, and no step of 7 rows"
    for step in (6, 9):  # saved on the way
        (tmp_path / "out" / f"checkpoint-{step}" / COMPLETE).unlink(missing_ok=True)
    sentence = refusal(capsys, lambda: halves("--per_device_train_batch_size=7", "--resume=adapt"))
    assert words in sentence


def test_adapt_by_epochs_sees_every_row_once_an_epoch(run, watched, tmp_path):
    epochs = ["--num_train_epochs=2", "--save_steps=15"]
    _, first = run(*epochs, "--per_device_train_batch_size=8")
    (tmp_path / "out" / "checkpoint-24" / COMPLETE).unlink()  # checkpoint-15: 24 rows of the second epoch
    _, adapted = run(*epochs, "--per_device_train_batch_size=4", "--resume=adapt")
    whole, rest = watched
    assert rest == whole[15 * 8 :] and len(whole) == 2 * ROWS
    assert adapted["steps"] == 15 + 72 // 4
    assert first["rows_seen"] == adapted["rows_seen"] == 2 * ROWS  # counted, over both runs


def test_adapt_with_nothing_changed_is_the_same_run(halves, tmp_path):
    halves()
    whole = load_file(tmp_path / "out" / "model.safetensors")
    keep_first_checkpoint(tmp_path / "out")
    _, again = halves("--resume=adapt")
    assert again["resumed_from"] == 3 and again["rows_seen"] == 48
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_rows_are_counted_where_an_epoch_ends_in_a_smaller_batch(run):
    _, report = run("--per_device_train_batch_size=36", "--num_train_epochs=2", "--save_strategy=no")
    assert (report["steps"], report["rows_seen"]) == (6, 2 * ROWS)  # 36 + 36 + 24, twice


def test_a_checkpoint_by_name_is_checked_and_the_older_one_offered(halves, tmp_path, capsys):
    halves()
    newest = tmp_path / "out" / "checkpoint-6"
    (newest / "optimizer.pt").unlink()
    sentence = refusal(capsys, lambda: halves(f"--resume_from_checkpoint={newest}"))
    assert "is damaged: optimizer.pt is missing; allowed: the next older complete one, " in sentence
    assert sentence.endswith("checkpoint-3")
    assert "is no folder" in refusal(capsys, lambda: halves("--resume_from_checkpoint=nowhere"))
    _, report = halves(f"--resume_from_checkpoint={tmp_path}/out/checkpoint-3")
    assert report["resumed_from"] == 3


def test_a_run_that_contradicts_writes_nothing_beside_a_damaged_checkpoint(halves, tmp_path, capsys):
    halves()
    newest = tmp_path / "out" / "checkpoint-6"
    (newest / "optimizer.pt").unlink()
    assert "seed=7 contradicts" in refusal(capsys, lambda: halves("--seed=7"))
    assert (newest / COMPLETE).exists()


def test_a_checkpoint_is_written_anew_from_nothing(halves, tmp_path):
    halves()
    newest = tmp_path / "out" / "checkpoint-6"
    (newest / "config.json").unlink()
    (newest / "config.json").mkdir()
    (newest / "rng_state_7.pth").touch()  # of a rank that there is no more
    _, report = halves()
    assert report["resumed_from"] == 3 and fault_of(newest) is None and not (newest / "rng_state_7.pth").exists()


def test_a_deepspeed_json_that_contradicts_the_flags_is_one_sentence(halves, monkeypatch, capsys):
    def mismatch(self, *arguments):
        raise ValueError(
            "Please correct the following DeepSpeed config values that mismatch TrainingArguments values:\n- ds "
            "gradient_accumulation_steps=1 vs hf gradient_accumulation_steps=2"
        )

    monkeypatch.setattr("transformers.Trainer._prepare_for_training", mismatch)
    sentence = refusal(capsys, halves)
    assert sentence.endswith("values: - ds gradient_accumulation_steps=1 vs hf gradient_accumulation_steps=2")


def test_a_folder_in_use_is_refused(halves, tmp_path, monkeypatch, capsys):
    from course_utils.training import owned_folder

    monkeypatch.setattr(owned_folder.owned_folder.__wrapped__, "__defaults__", (0, 0.0))
    with owned_folder.owned_folder(tmp_path / "out"):
        assert "is in use by process" in refusal(capsys, halves)
