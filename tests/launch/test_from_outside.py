"""What people's own files and shells brought to light: each fault once, with its whole kind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from course_utils.errors import SpecError
from course_utils.launch import Spec, read_spec, render, write
from course_utils.launch.__main__ import main
from course_utils.launch.check import launchers, slurm
from course_utils.launch.check.scripts import STAND_IN, resolve
from course_utils.launch.spec.settings import deepspeed_config
from tests.launch.explain.healthy import FILES

DOLLARS = ("pa$$word", "${local_rank}", "$local_rank", "$", "$HOME", "~/data/chats.jsonl")


@pytest.mark.parametrize(("strategy", "gpus"), [("fsdp2", 8), ("ddp", 8), ("ddp", 1), ("zero2", 8)])
def test_a_dollar_sign_arrives(strategy, gpus, tmp_path):
    """torchrun and accelerate fill in names; a single process of accelerate's and deepspeed's hand words on."""
    spec = Spec(strategy=strategy, gpus_per_node=gpus, arguments=DOLLARS, output_dir="runs/$x", program="a$b.py")
    write(spec, tmp_path / "a$$c")
    rows = launchers.rows(spec, tmp_path / "a$$c")
    assert [row for row in rows if not row.same] == []
    assert {row.file for row in rows if row.field == "arguments"} >= {"torchrun.sh", "accelerate.sh"}
    script = tmp_path / "a$$c" / "torchrun.sh"
    script.write_text(script.read_text().replace("'pa$$$$word'", "'pa$$word'"))
    assert [(row.file, row.field) for row in launchers.rows(spec, tmp_path / "a$$c") if not row.same] == [
        ("torchrun.sh", "arguments")
    ]


def test_words_behind_the_script_arrive_too(tmp_path):
    write(Spec(strategy="ddp", program="train.py"), tmp_path / "launch")
    commands = {"TORCHRUN": tmp_path / "launch" / "torchrun.sh"}
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f"exec bash {commands['TORCHRUN']} 'pa$$word' '' 'a b'\n")
    assert launchers.arriving(resolve(wrapper).arguments)[-3:] == ["pa$$word", "", "a b"]


@pytest.mark.parametrize("folder", ["~root/h", "~x", "~+", "~-"])
def test_another_home_is_refused(folder):
    with pytest.raises(SpecError, match="is another home folder; allowed"):
        Spec(output_dir=folder)
    assert Spec(output_dir="~/h").output_dir == "~/h" and Spec(output_dir="~").output_dir == "~"


@pytest.mark.parametrize("overwrite", [False, True])
def test_write_into_the_folder_one_stands_in(overwrite, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if overwrite:
        write(Spec(strategy="zero1"), ".")
    assert main(["write", "--strategy", "ddp", "--folder", ".", *["--overwrite"] * overwrite]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(render(Spec(strategy="ddp")))


def test_a_full_disk_leaves_the_folder_one_stands_in_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Spec(strategy="zero1"), ".")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    real, number = Path.rename, len(before) + 3

    def full(self, target):
        nonlocal number
        number -= 1
        if number == 0:
            raise OSError("disk full")
        return real(self, target)

    with mock.patch.object(Path, "rename", full), pytest.raises(OSError, match="disk full"):
        write(Spec(strategy="fsdp2"), ".", overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--folder", os.fsdecode(b"x\xff")], "is not UTF-8"),
        (["--gpu_memory", ".inf"], "gpu_memory=inf is out of range; allowed: a finite number"),
        (["--price", ".inf"], "price=inf is out of range"),
        (["--price", ".nan"], "price=nan"),
        (["--nodes", "010"], "nodes='010' has the wrong type; allowed: a whole number"),
        (["--time_limit", "1:30"], "time_limit='1:30' has the wrong type"),
        (["--arguments", "[--max_steps=5]"], "arguments='--max_steps=5' contradicts max_steps=1000"),
        (["--name", "x" * 34_000], "name='xxx"),
    ],
)
def test_bad_values_are_one_short_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["write", *words]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown and shown.count("\n") == 1 and len(shown) < 700
    assert list(tmp_path.iterdir()) == []


def test_braces_in_a_folder_are_text(tmp_path):
    assert main(["write", "--output_dir", "{run}", "--folder", str(tmp_path / "launch")]) == 0
    assert read_spec(tmp_path / "launch" / "spec.yaml").output_dir == "{run}"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nodes: 2\nnodes: 4\n", "'nodes' stands twice (lines 1 and 2)"),
        (BOMB, "with its aliases written out"),
        ("a: &a {b: *a}\n", "contains itself"),
        ("nodes: 010\n", "nodes='010' has the wrong type"),
        ("a: " + "[" * 3000, "is no YAML"),
    ],
)
def test_a_spec_that_yaml_would_accept(text, sentence, tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text(text)
    assert main(["write", "--spec", str(tmp_path / "spec.yaml"), "--folder", str(tmp_path / "launch")]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown and len(shown) < 700
    assert not (tmp_path / "launch").exists()


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({}, "--per_device_train_batch_size=4"),
        ({"global_batch": 64}, "--gradient_accumulation_steps=2"),
        ({}, "--bf16=False"),
        ({"precision": "fp32"}, "--fp16"),
        ({"strategy": "ddp", "checkpointing": True}, "--gradient-checkpointing=false"),
        ({}, "--output_dir=elsewhere"),
        ({}, "--max_length=100"),
        ({"lora_rank": 8}, "--lora_r=16"),
        ({}, "--deepspeed=ds.json"),
        ({}, "--fsdp=full_shard"),
        ({}, "--model_name_or_path=gpt2"),
        ({"strategy": "zero2"}, "--max_grad_norm=much"),
        ({}, "--auto_find_batch_size"),
        ({}, "--load_in_4bit=True"),
        ({}, "--save_strategy=epoch"),
        ({"logging_steps": 5}, "--logging_strategy=epoch"),
        ({}, "--num_train_epochs=3"),
        ({"strategy": "ddp", "checkpointing": True, "program": "trl.scripts.sft"}, "--no-gradient-checkpointing"),
        ({"program": "train.py"}, "--max_step=3"),
        ({"program": "train.py"}, "--gradient-accumulation=3"),
        ({}, "--lora_r=16"),
        ({}, "--warmup_ratio=0.1"),
        ({}, '--accelerator_config={"split_batches": true}'),
        ({}, '--accelerator_config={"gradient_accumulation_kwargs": {"num_steps": 4}}'),
    ],
)
def test_an_argument_that_contradicts_a_field(fields, argument):
    with pytest.raises(SpecError, match="^arguments='--.*allowed: "):
        Spec(**fields, arguments=(argument,))


def test_arguments_that_agree_and_the_clipping():
    Spec(micro_batch=4, arguments=("--per_device_train_batch_size", "4", "--bf16", "True", "--max_steps=1e3"))
    Spec(trainer_flags=False, arguments=("--max_steps=5",))
    Spec(program="mine.py", arguments=("--warmup_ratio=0.1", "--output=x", "--save_strategy=steps"))  # its own words
    Spec(arguments=('--accelerator_config={"even_batches": false}', "--accelerator_config=a.json"))
    spec = Spec(strategy="zero2", arguments=("--max_grad_norm=0.3",))
    assert deepspeed_config(spec)["gradient_clipping"] == 0.3
    assert deepspeed_config(Spec(strategy="zero2"))["gradient_clipping"] == 1.0


def test_clipping_agrees_with_deepspeeds_json(tmp_path):
    spec = Spec(strategy="zero2", arguments=("--max_grad_norm=0.3",))
    write(spec, tmp_path / "launch")
    assert [row for row in launchers.rows(spec, tmp_path / "launch") if not row.same] == []


def test_auto_that_the_trainer_fills_in_is_as_asked(tmp_path):
    spec = Spec(strategy="zero3", nodes=2)
    write(spec, tmp_path / "launch")
    file = tmp_path / "launch" / "deepspeed.json"
    file.write_text(FILES["zero3_auto.json"])
    assert [row for row in launchers.rows(spec, tmp_path / "launch", fills_auto=True) if not row.same] == []
    file.write_text(FILES["zero3_auto.json"].replace('"sub_group_size": 1e9', '"sub_group_size": "auto"'))
    red = [row for row in launchers.rows(spec, tmp_path / "launch", fills_auto=True) if not row.same]
    assert ["zero_optimization.sub_group_size"] in [row.resolved for row in red]


def test_slurms_variables_are_there_and_scontrol_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = Spec(nodes=3)
    write(spec, "launch")
    script = tmp_path / "launch" / "slurm.sbatch"
    text = script.read_text()
    names = ("NNODES", "JOBID", "NTASKS", "GPUS_ON_NODE", "NODEID", "CPUS_ON_NODE", "JOB_PARTITION")
    script.write_text(
        text.replace("set -euo pipefail", "set -euo pipefail\n: " + " ".join(f"$SLURM_{n}" for n in names))
    )
    assert [row for row in slurm.rows(spec, Path("launch")) if not row.same] == []
    first = 'read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")'
    assert first in text
    fallback = "MASTER_ADDR=$(scontrol show hostnames | head -n1)\n: ${MASTER_ADDR:=localhost}"
    script.write_text(text.replace(first, fallback).replace("set -euo pipefail", "set -eu"))
    red = [(row.field, row.resolved.partition(":")[0]) for row in slurm.rows(spec, Path("launch")) if not row.same]
    assert red == [("first machine where scontrol is missing", "localhost")]


def test_the_stand_in_uses_no_gnu_option(tmp_path):
    """A BSD env knows no --null: one that refuses every option stands first in the path."""
    assert "env -" not in STAND_IN
    write(Spec(strategy="ddp"), tmp_path / "launch")
    (tmp_path / "env").write_text('#!/bin/sh\ncase $1 in -*) exit 1;; esac\nexec /usr/bin/env "$@"\n')
    (tmp_path / "env").chmod(0o755)
    with mock.patch.dict(os.environ, {"PATH": f"{tmp_path}:{os.environ['PATH']}"}):
        assert resolve(tmp_path / "launch" / "torchrun.sh").environment["WRITE_DOWN"]


VALUES = {
    "lora_target_modules": ["q_proj", "v_proj"],
    "lr_scheduler_kwargs": {"min_lr": 1e-5},
    "learning_rate": 2e-4,
    "bf16": False,
    "max_steps": 7,
    "run_name": 'it\'s "x"',
    "hub_model_id": None,
    "logging_steps": "25",
    "optim_target_modules": ["one"],
    "label_names": [],
}


def test_every_json_type_of_a_hyperparameter_reaches_the_program(tmp_path):
    from transformers import HfArgumentParser, TrainingArguments
    from trl import ModelConfig

    write(Spec(strategy="ddp"), tmp_path / "launch")
    code = "import runpy, json; m = runpy.run_path('launch/sagemaker_entry.py', run_name='x'); "
    code += "print(json.dumps(m['all_arguments']()[len(m['ARGUMENTS']):]))"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"SM_HPS": json.dumps(VALUES)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    words = json.loads(done.stdout)
    model, args = HfArgumentParser((ModelConfig, TrainingArguments)).parse_args_into_dataclasses([*words, "--use_cpu"])
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert (args.learning_rate, args.bf16, args.max_steps, args.run_name) == (2e-4, False, 7, VALUES["run_name"])
    assert (args.hub_model_id, args.logging_steps, args.label_names) == (None, 25, None)


@pytest.mark.parametrize("text", ["[1]", "7", "{"])
def test_hyperparameters_that_are_no_mapping_are_refused(tmp_path, text):
    write(Spec(strategy="ddp"), tmp_path / "launch")
    code = "import runpy; runpy.run_path('launch/sagemaker_entry.py', run_name='x')['all_arguments']()"
    command, environment = [sys.executable, "-c", code], os.environ | {"SM_HPS": text}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr == f"SM_HPS={text!r} holds no hyperparameters; allowed: a JSON mapping\n"


def test_check_of_a_file_or_without_a_spec_explains(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert main(["check", str(folder)]) == 2
    assert "holds no spec.yaml and no launch file" in capsys.readouterr().err
    (folder / "my.yaml").write_text(FILES["fsdp2.yaml"])
    (folder / "notes.yaml").write_text("a: 1\n")
    assert main(["check", str(folder)]) == main(["check", str(folder / "my.yaml")]) == 0
    assert capsys.readouterr().out.count("24 settings, 0 findings") == 2


def test_a_short_spec_beside_files_of_other_names(tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text("strategy: fsdp2\n")
    (tmp_path / "accelerate.yaml").write_text(FILES["fsdp2.yaml"])
    (tmp_path / "my.yaml").write_text(FILES["fsdp2.yaml"].replace("num_processes: 8", "num_processes: 4"))
    assert main(["check", str(tmp_path), "--differences"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["my.yaml", "world_size", "(num_processes)", "8", "4", "NO"]
    assert len(lines) == 3 and lines[2].endswith(", 1 not as asked")
