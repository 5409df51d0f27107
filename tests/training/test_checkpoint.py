"""Checkpoints: kill -9 anywhere and resume bitwise, damage is named, nothing but data is loaded."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from course_utils.training import checkpoint
from course_utils.training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
    verify_checkpoint,
)
from tests.training import tiny_run

KILL_POINTS = ["weights", "state", "flush", "rename", "swap", "discard", "signal"]
SAMPLE = {"state", "discard", "signal"}  # one while the new folder is written, one after it stands, one anywhere


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    model, history = tiny_run.run(tmp_path_factory.mktemp("whole"), save_every=0)
    return model.state_dict(), [record["loss"] for record in history]


def killed_run(point, folder):
    """The exit code of a run into ``folder`` that dies at ``point``."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    command = [sys.executable, tiny_run.__file__, str(folder), point]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        if point == "signal":
            wait_then_kill(process)
        return process.wait(timeout=120)


def wait_then_kill(process):
    """Kill it at a moment nobody chose: some milliseconds after its third step."""
    while (line := process.stdout.readline()) and int(line) < 3:
        pass
    time.sleep(random.Random().uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    "point", [point if point in SAMPLE else pytest.param(point, marks=pytest.mark.long) for point in KILL_POINTS]
)
def test_killed_and_resumed_equals_uninterrupted(point, uninterrupted, tmp_path):
    assert killed_run(point, tmp_path) == -signal.SIGKILL
    newest = latest_checkpoint(tmp_path)
    for folder in tmp_path.glob("step-*"):
        verify_checkpoint(folder)  # a folder with the final name is complete, wherever the save died
    if point == "discard":  # step 5 was saved again and stands; the folder it replaced was half removed
        assert newest.name == "step-00000005"
    elif point != "signal":  # the fifth save died: the fourth checkpoint is the newest, and leftovers do not count
        assert newest.name == "step-00000004"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".step-00000005.tmp")]
    first = int(newest.name[-8:])
    model, history = tiny_run.run(tmp_path, resume=True, seed=99)  # a wrong seed: everything must come from the files
    weights, losses = uninterrupted
    assert [record["loss"] for record in history] == losses[first:]
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "the next save clears the leftovers"


@pytest.mark.parametrize("stop", [1, 5, 8, 10])  # 5 and 10: exactly at the end of an epoch
def test_resume_within_and_between_epochs(stop, tmp_path, uninterrupted):
    tiny_run.run(tmp_path, max_steps=stop, save_every=stop)
    model, history = tiny_run.run(tmp_path, save_every=0, resume=True, seed=99)
    weights, losses = uninterrupted
    assert [record["loss"] for record in history] == losses[stop:]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_resume_without_a_checkpoint_starts_at_zero(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    _, history = tiny_run.run(tmp_path, max_steps=2, resume=True, save_every=0)
    assert [record["step"] for record in history] == [1, 2]


def test_same_step_twice_replaces_it(tmp_path):
    model, optimizer, scheduler, batches = tiny_run.build()
    save_checkpoint(tmp_path, 3, model, optimizer)
    with torch.no_grad():
        model.layers[0].bias.fill_(7)
    path = save_checkpoint(tmp_path, 3, model, optimizer)
    other = tiny_run.TinyClassifier()
    assert load_checkpoint(path, other) == 3
    assert (other.layers[0].bias == 7).all()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


@pytest.fixture
def saved(tmp_path):
    objects = tiny_run.build()
    return save_checkpoint(tmp_path, 1, *objects), objects


def damage_truncate(path):
    with open(path / "model.safetensors", "rb+") as file:
        file.truncate(200)
    return "model.safetensors differs from its manifest"


def damage_flip(path):
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)
    return "state.pt differs from its manifest"


def damage_remove(path):
    (path / "state.pt").unlink()
    return "state.pt is missing"


def damage_manifest(path):
    (path / "manifest.json").write_text("{")
    return "manifest.json is not readable"


def damage_no_manifest(path):
    (path / "manifest.json").unlink()
    return "manifest.json is missing"


def damage_foreign_manifest(path):
    (path / "manifest.json").write_text(json.dumps([1]))
    return "manifest.json is not readable"


@pytest.mark.parametrize("damage", [v for k, v in list(globals().items()) if k.startswith("damage_")])
def test_damage_is_named_and_changes_nothing(damage, saved):
    path, (model, optimizer, scheduler, batches) = saved
    message = damage(path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path, model, optimizer, scheduler, batches)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_next_older_complete_checkpoint_is_named(saved):
    path, objects = saved
    newest = [save_checkpoint(path.parent, step, *objects) for step in (2, 3, 4)]
    for folder in newest:
        damage_flip(folder)
    assert load_checkpoint(path, *objects) == 1
    with pytest.raises(CheckpointError, match="state.pt differs from its manifest; delete .* from step-00000001, the"):
        load_checkpoint(newest[-1], *objects)
    damage_remove(path)
    with pytest.raises(CheckpointError, match="no older one beside it is complete: delete the folder and start anew"):
        load_checkpoint(newest[-1], *objects)
    (path / "state.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"is damaged: state.pt cannot be read \(Is a directory\)"):
        load_checkpoint(path, *objects)


def test_missing_checkpoint_and_wrong_model(saved):
    path, (model, optimizer, _, batches) = saved
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(path.with_name("step-00000009"), model)
    with pytest.raises(CheckpointError, match="another model's weights"):
        load_checkpoint(path, torch.nn.Linear(2, 2))
    without = save_checkpoint(path.parent, 2, model, optimizer)
    with pytest.raises(CheckpointError, match="saved without batches"):
        load_checkpoint(without, model, optimizer, batches=batches)


def test_files_hold_no_code(tmp_path):
    tiny_run.run(tmp_path, max_steps=1)
    path = latest_checkpoint(tmp_path)
    state = torch.load(path / "state.pt", weights_only=True)
    assert state["step"] == 1 and set(state["optimizer"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def rehashed(path, state):
    """Write ``state`` and a manifest that agrees with it, as a forger would."""
    torch.save(state, path / "state.pt")
    manifest = {name: checkpoint._describe(path / name) for name in ("model.safetensors", "state.pt")}
    (path / "manifest.json").write_text(json.dumps(manifest))


def forge(where, value):
    """Change one entry of the state, ``where`` being the keys that lead to it; ``...`` removes it."""

    def change(state):
        *keys, last = where
        for key in keys:
            state = state[key]
        if value is ...:
            del state[last]
        else:
            state[last] = value

    return change


FORGED = [
    forge(["optimizer"], [1]),
    forge(["optimizer", "state"], ...),
    forge(["optimizer", "state", 0], 3),
    forge(["optimizer", "state", 0, "exp_avg"], ...),
    forge(["optimizer", "state", 0, "exp_avg"], torch.zeros(2)),
    forge(["optimizer", "state", 1, "exp_avg_sq"], "text"),
    forge(["optimizer", "state", 0, "step"], torch.tensor(float("nan"))),
    forge(["optimizer", "state", 0, "step"], -1.0),
    forge(["optimizer", "state", 77], {"step": torch.tensor(1.0)}),
    forge(["optimizer", "param_groups"], []),
    forge(["optimizer", "param_groups", 0], "text"),
    forge(["optimizer", "param_groups", 0, "params"], [0, 0, 0, 0]),
    forge(["optimizer", "param_groups", 0, "params"], [0, 1]),
    forge(["optimizer", "param_groups", 0, "lr"], ...),
    forge(["optimizer", "param_groups", 0, "lr"], "text"),
    forge(["optimizer", "param_groups", 0, "lr"], float("nan")),
    forge(["optimizer", "param_groups", 0, "lr"], -1.0),
    forge(["optimizer", "param_groups", 0, "betas"], (0.9,)),
    forge(["optimizer", "param_groups", 0, "betas"], (0.9, 1.5)),
    forge(["optimizer", "param_groups", 0, "amsgrad"], True),
    forge(["scheduler"], {"last_epoch": {}, "base_lrs": 3, "_step_count": "x", "lr_lambdas": [1, 2, 3]}),
    forge(["scheduler", "last_epoch"], "1"),
    forge(["scheduler", "base_lrs"], [0.1, 0.1]),
    forge(["scheduler", "_last_lr"], ...),
    forge(["batches"], {"epoch": 1}),
    forge(["random"], {}),
    forge(["random", "torch"], torch.zeros(3)),
    forge(["generators"], {"batches.rng": {"kind": "torch", "path": (), "state": 3}}),
    forge(["step"], ...),
    forge(["step"], "7"),
]


@pytest.mark.parametrize("change", FORGED)
def test_a_forged_state_is_one_sentence(change, saved):
    """Sizes and checksums agree; what the file says does not fit the run. torch itself takes half of these."""
    path, (model, optimizer, scheduler, batches) = saved
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save_checkpoint(path.parent, 1, model, optimizer, scheduler, batches)
    state = torch.load(path / "state.pt", weights_only=True)
    change(state)
    rehashed(path, state)
    words = r"does not fit this run: .* \(state.pt\); .*as the run did, or no older one beside it is complete"
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path, *tiny_run.build())
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_state_with_code_in_it_is_one_sentence(saved):
    path, objects = saved
    rehashed(path, {"step": os.system})
    with pytest.raises(CheckpointError, match="does not fit this run") as caught:
        load_checkpoint(path, *objects)
    assert "\n" not in str(caught.value)


def test_random_state_covers_three_generators():
    def draw():
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    np.random.randn()  # leaves a cached second gaussian behind
    state = random_state()
    first = draw()
    set_random_state(state)
    assert draw() == first


def test_tied_weights_survive(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    path = save_checkpoint(tmp_path, 1, model, torch.optim.SGD(model.parameters(), lr=0.1))
    expected = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    load_checkpoint(path, model)
    assert torch.equal(model[1].weight, expected) and model[1].weight is model[0].weight
