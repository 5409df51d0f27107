"""The launch files: what is written, that nothing is lost or half-written, and that any text stays data."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from course_utils.launch import Spec, SpecError, read_spec, render, write
from course_utils.launch.check.launchers import arriving
from course_utils.launch.check.scripts import resolve
from course_utils.launch.spec.arguments import program_arguments
from course_utils.launch.spec.settings import accelerate_config, deepspeed_config, environment_variables, fsdp_config

STRATEGIES = ("ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3")
NASTY = (
    "two words",
    "it's",
    '"',
    "$(touch stolen)",
    "`touch stolen`",
    "a\nb",
    "",
    "--",
    "-x",
    "é😀\u2028",
    "#",
    "\\",
    "*",
    "${HOME}",
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_spec_yaml_is_the_spec(strategy, tmp_path):
    spec = Spec(strategy=strategy, arguments=NASTY, output_dir="\t# 'runs' \u0085", price=1e-05, nodes=2)
    write(spec, tmp_path / "launch")
    assert read_spec(tmp_path / "launch" / "spec.yaml") == spec
    lines = (tmp_path / "launch" / "spec.yaml").read_text().split("\n")
    assert [line.split(":")[0] for line in lines if line[:1] not in ("#", "")] == list(Spec.model_fields)  # a line each


@pytest.mark.parametrize(
    ("strategy", "own"),
    [("ddp", set()), ("fsdp2", {"fsdp.json"}), ("zero1", {"deepspeed.json", "deepspeed.sh", "hostfile"})],
)
def test_each_strategy_has_its_files(strategy, own):
    special = {"fsdp.json", "deepspeed.json", "deepspeed.sh", "hostfile"}
    names = set(render(Spec(strategy=strategy)))
    assert names & special == own
    assert {"spec.yaml", "README.md", "torchrun.sh", "accelerate.sh", "accelerate.yaml"} <= names


def test_write_returns_what_it_wrote_and_scripts_can_be_executed(tmp_path):
    paths = write(Spec(strategy="zero3"), tmp_path / "deep" / "launch")
    assert set(paths) == set((tmp_path / "deep" / "launch").iterdir())
    assert {path.name for path in paths if os.access(path, os.X_OK)} >= {"torchrun.sh", "accelerate.sh", "deepspeed.sh"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["launch"]  # nothing temporary stays


def test_nothing_is_overwritten_unasked(tmp_path):
    folder = tmp_path / "launch"
    write(Spec(strategy="zero1"), folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(SpecError, match="holds launch files already; allowed: overwrite=True"):
        write(Spec(strategy="fsdp2"), folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    write(Spec(strategy="fsdp2"), folder, overwrite=True)
    assert not (folder / "hostfile").exists()  # of the earlier spec
    assert (folder / "fsdp.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpecError, match="thesis.tex"):
        write(Spec(), tmp_path, overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_or_link_in_the_way_is_refused(tmp_path):
    (tmp_path / "launch").symlink_to(tmp_path)
    with pytest.raises(SpecError, match="is not a folder"):
        write(Spec(), tmp_path / "launch", overwrite=True)


@pytest.mark.parametrize("fails_at", ["write_text", "rename"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, fails_at, is_there):
    folder = tmp_path / "launch"
    if is_there:
        write(Spec(strategy="ddp"), folder)
    before = {path.name: path.read_text() for path in folder.iterdir()} if is_there else None
    real, calls = getattr(Path, fails_at), []

    def full(self, *arguments, **options):
        calls.append(self)
        # the fourth file; the rename that would put the new folder in place
        if len(calls) == {"write_text": 4, "rename": 2 if is_there else 1}[fails_at]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, fails_at, full)
    with pytest.raises(OSError, match="No space left"):
        write(Spec(strategy="fsdp2"), folder, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["launch"] if is_there else [])
    if is_there:
        assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_no_secret_and_no_path_of_this_machine_is_written(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cr3t-value")
    text = "\n".join(render(Spec(strategy="zero2", device="cpu", nodes=2, gpus_per_node=2)).values())
    assert "s3cr3t-value" not in text
    assert str(Path.home()) + "/" not in text
    assert str(Path(__file__).parents[3]) not in text


@pytest.mark.parametrize("name", ["spec.yaml", "accelerate.yaml"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_yaml_setting_says_why(name, strategy):
    replicas = 2 if strategy == "fsdp2" else 1
    lines = render(Spec(strategy=strategy, nodes=2, replicas=replicas))[name].splitlines()
    silent = [line for line in lines if ":" in line and "  # " not in line and not line.startswith("#")]
    assert silent == []


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_readme_explains_every_json_setting(strategy):
    files = render(
        Spec(strategy=strategy, offload="none" if strategy == "fsdp1" else "optimizer" if "zero" in strategy else "all")
    )
    name = "fsdp.json" if strategy.startswith("fsdp") else "deepspeed.json"
    for key in json.loads(files[name]):
        assert f"`{key}" in files["README.md"], key


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_printed_is_what_the_settings_say(strategy):
    spec = Spec(strategy=strategy, nodes=2, global_batch=64, micro_batch=2)
    files = render(spec, "some where")
    assert yaml.safe_load(files["accelerate.yaml"]) == accelerate_config(spec, "some where")
    if spec.is_fsdp:
        assert json.loads(files["fsdp.json"]) == fsdp_config(spec)
    if spec.is_deepspeed:
        assert json.loads(files["deepspeed.json"]) == deepspeed_config(spec)
        assert files["hostfile"].splitlines()[1:] == ["node1 slots=8", "node2 slots=8"]


def test_deepspeed_numbers_multiply_out():
    found = deepspeed_config(Spec(strategy="zero2", nodes=3, gpus_per_node=4, micro_batch=5, accumulation=7))
    assert found["train_batch_size"] == 3 * 4 * 5 * 7
    assert found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * 12 == 420
    assert '"auto"' not in json.dumps(found)


def test_bf16_weights_mean_bf16_optimizer_state_under_deepspeed_too():
    found = deepspeed_config(Spec(strategy="zero3", precision="bf16_weights"))["bf16"]
    assert found == {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    assert "--dtype=bfloat16" in program_arguments(Spec(precision="bf16_weights"))
    assert "--bf16=False" in program_arguments(Spec(precision="bf16_weights"))
    with pytest.raises(SpecError, match="offload='all' updates fp32 weights only"):
        Spec(strategy="zero3", precision="bf16_weights", offload="all")


@pytest.mark.parametrize(
    "sizes",
    [
        {"replicas": 8},
        {"tensor_parallel": 8},
        {"replicas": 4, "context_parallel": 2},
        {"replicas": 2, "tensor_parallel": 4},
    ],
)
def test_sizes_that_leave_nothing_to_shard_are_refused(sizes):
    with pytest.raises(SpecError, match="leaves no GPUs to shard over"):
        Spec(strategy="fsdp2", nodes=1, gpus_per_node=8, **sizes)


def test_parallel_sizes_reach_torchrun_through_the_environment():
    spec = Spec(strategy="fsdp2", nodes=4, replicas=2, tensor_parallel=2, context_parallel=2)
    found = environment_variables(spec, "torchrun")
    assert found["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
    sizes = {name.removeprefix("PARALLELISM_CONFIG_"): value for name, value in found.items()}
    assert {name: sizes[name] for name in ("DP_REPLICATE_SIZE", "DP_SHARD_SIZE", "TP_SIZE", "CP_SIZE")} == {
        "DP_REPLICATE_SIZE": "2", "DP_SHARD_SIZE": "4", "TP_SIZE": "2", "CP_SIZE": "2"
    }  # fmt: skip
    assert not any(name.startswith("PARALLELISM") for name in environment_variables(spec, "accelerate"))


@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh", "deepspeed.sh"])
@pytest.mark.parametrize("takes_flags", [True, False])
def test_any_text_stays_data(script, takes_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = Spec(
        strategy="zero2",
        program="a $(touch stolen) b.py",
        trainer_flags=takes_flags,
        arguments=NASTY,
        output_dir="-o $(touch stolen)",
    )
    folder = tmp_path / "launch; touch stolen"
    write(spec, folder)
    words = resolve(folder / script).arguments
    words = words if script == "deepspeed.sh" else arriving(words)
    at = words.index("a $(touch stolen) b.py")
    launcher = "accelerate" if script == "accelerate.sh" else "torchrun"
    assert words[at + 1 :] == program_arguments(spec, launcher, str(folder))
    assert not (tmp_path / "stolen").exists()


def test_what_follows_the_script_goes_to_the_program(tmp_path):
    write(Spec(program="train.py"), tmp_path / "launch")
    text = (tmp_path / "launch" / "torchrun.sh").read_text()
    assert text.index('"${@//[$]/$dollars}"') < text.index("\n)\n")


RANK = """#!%s -IS
import signal, sys, time
def save(number, frame):
    signal.signal(number, signal.SIG_IGN)  # it comes twice where everybody was told
    open(sys.argv[1], "a").write("saved ")
    sys.exit()
signal.signal(signal.%s, save)
open(sys.argv[1], "a").write("ready ")
time.sleep(60)
sys.exit(1)
"""
LAUNCHER = """#!/usr/bin/env bash
rank "$NOTES" & first=$!
rank "$NOTES" & second=$!
wait $first && wait $second && exit 7
"""


@pytest.mark.parametrize(
    ("warning", "to_all"), [(signal.SIGUSR1, False), (signal.SIGUSR1, True), (signal.SIGTERM, False)]
)
@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh"])
def test_a_warning_reaches_the_ranks_and_the_launcher_ends_well(tmp_path, script, warning, to_all):
    """The launcher here starts two ranks and, like torchrun, would die of the signal itself."""
    write(Spec(strategy="ddp", preflight="off"), tmp_path / "launch")
    notes, programs = tmp_path / "notes", tmp_path / "bin"
    programs.mkdir()
    (programs / "rank").write_text(RANK % (sys.executable, warning.name))
    launcher = programs / script.removesuffix(".sh")
    launcher.write_text(LAUNCHER)
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes)}
    running = subprocess.Popen(["bash", tmp_path / "launch" / script], env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not notes.exists() or notes.read_text().count("ready") < 2:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.02)
        # a scheduler may tell the script only, or each process of the job
        (os.killpg if to_all else os.kill)(running.pid, warning)
        assert running.wait(timeout=30) == 7  # the launcher's own exit code, after both ranks have ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert notes.read_text().count("saved") >= 2


def test_the_course_models_name_a_layer_they_have():
    from course_utils.launch.spec.settings import COURSE_LAYERS
    from course_utils.models import load_causal_lm, load_classifier

    models = {"course/encoder": load_classifier(2), "course/causal": load_causal_lm()}
    for name, layer in COURSE_LAYERS.items():
        assert fsdp_config(Spec(model=name))["transformer_layer_cls_to_wrap"] == layer
        assert layer in {type(module).__name__ for module in models[name].modules()}
