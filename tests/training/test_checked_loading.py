"""What a Trainer's checkpoint must say before a run goes on; whole runs: tests/campaign/test_checkpoints.py."""

import dataclasses
import json

import pytest
import torch
from transformers import TrainerState

from course_utils.recipes.finetune_resume import check_engine, check_position, saved_by
from course_utils.training.checked_loading import DoesNotFit, check_trainer_state
from course_utils.training.optimizer_state import check_optimizer_state, check_scheduler_state
from course_utils.training.schedules import make_scheduler


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-6"
    folder.mkdir()
    state = TrainerState(global_step=6, max_steps=6, train_batch_size=8, log_history=[{"step": 1, "loss": 2.0}])
    (folder / "trainer_state.json").write_text(json.dumps(dataclasses.asdict(state)))
    return folder


FORGED = {
    "global_step": [4, "6", None],
    "log_history": ["text", [1], [{"loss": 1}], {}],
    "epoch": [None, "1", float("nan"), -1],
    "max_steps": [True, "6"],
    "stateful_callbacks": [[1], 3],
    "train_batch_size": ["8", None],
    "unknown": [1],
}


def test_a_trainers_state_is_that_of_its_step(checkpoint):
    check_trainer_state(checkpoint, 6)
    file = checkpoint / "trainer_state.json"
    good = json.loads(file.read_text())
    for name, values in FORGED.items():
        for value in values:
            file.write_text(json.dumps(good | {name: value}))
            with pytest.raises(DoesNotFit, match=r"checkpoint-6 does not fit this run: .* \(trainer_state.json\)"):
                check_trainer_state(checkpoint, 6)
    for text in ("", "[1]", "{", "3"):
        file.write_text(text)
        with pytest.raises(DoesNotFit, match="no older one is beside it$"):
            check_trainer_state(checkpoint, 6)


def saved_and_new():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    return optimizer, make_scheduler(optimizer, "linear", 0, 10)


@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
def test_an_entry_of_adam_that_lacks_a_moment(name):
    optimizer, _ = saved_and_new()
    state = optimizer.state_dict()
    check_optimizer_state(state, optimizer)
    del state["state"][0][name]
    with pytest.raises(ValueError, match=f"the optimizer's state 0 has no '{name}'"):
        check_optimizer_state(state, optimizer)


@pytest.mark.parametrize(("name", "value"), [("last_epoch", "1"), ("base_lrs", [0.1, 0.1]), ("_last_lr", [None, 3])])
def test_a_scheduler_of_another_run(name, value):
    _, scheduler = saved_and_new()
    check_scheduler_state(scheduler.state_dict(), scheduler)
    with pytest.raises(ValueError, match=f"the scheduler's '{name}' is "):
        check_scheduler_state(scheduler.state_dict() | {name: value}, scheduler)
    with pytest.raises(ValueError, match="is missing; allowed: like"):
        check_scheduler_state({}, scheduler)


def test_the_best_so_far_of_a_plateau_may_be_infinity():
    optimizer, _ = saved_and_new()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    check_scheduler_state(scheduler.state_dict(), scheduler)
    check_scheduler_state(scheduler.state_dict() | {"best": 0.5}, scheduler)


@pytest.mark.parametrize(
    ("file", "kind"),
    [("model.safetensors", "one file"), ("pytorch_model_fsdp_0", "FSDP"), ("global_step6", "DEEPSPEED")],
)
def test_another_engines_files_are_refused(file, kind, checkpoint):
    (checkpoint / file).touch()
    assert saved_by(checkpoint) == kind
    for engine in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED"):
        if kind == (engine if engine in ("FSDP", "DEEPSPEED") else "one file"):
            check_engine(checkpoint, engine)
        else:
            with pytest.raises(ValueError, match="was saved .*; allowed: the same strategy, "):
                check_engine(checkpoint, engine)


def test_the_manifest_says_where_the_run_was(checkpoint):
    good = {"rows_seen": 48, "epoch": 0, "rows_in_epoch": 48, "step": 6}
    check_position(good, checkpoint)
    for name in good:
        for value in (None, -1, "6", 0.5, True):
            with pytest.raises(ValueError, match=f"says {name}=.* in its manifest 'complete'"):
                check_position(good | {name: value}, checkpoint)
