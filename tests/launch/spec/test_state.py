"""Bytes of a checkpoint against what the Trainer writes, the warning that must outlast it, and a long run's fields."""

from pathlib import Path

import pytest

from course_utils.errors import SpecError
from course_utils.launch import Spec, write
from course_utils.launch.__main__ import main
from course_utils.launch.check.folder import check
from course_utils.launch.files.write import render
from course_utils.launch.run_here import run_here
from course_utils.launch.spec import state
from course_utils.models.configs import shape_of
from course_utils.models.shapes import builtin, parameter_count
from tests.launch.tiny_project import PARAMETERS, offline_project

LLAMA_70B = "meta-llama/Llama-3.1-70B"
BUDGET = {
    "learning_rate": 2e-4,
    "warmup_steps": 30,
    "seed": 7,
    "logging_steps": 5,
    "save_total_limit": 2,
    "tracker": "tensorboard",
}


@pytest.mark.parametrize(
    ("fields", "each"),
    [
        ({"strategy": "ddp"}, 12),  # fp32 weights and two moments
        ({"strategy": "fsdp2"}, 12),
        ({"strategy": "fsdp2", "precision": "bf16_weights"}, 6),
        ({"strategy": "fsdp2", "state_dict": "full"}, 4 + 12),
        ({"strategy": "zero2"}, 2 + 2 + 12),  # a model to load, the engine's copy, fp32 copies and moments
        ({"strategy": "zero3"}, 2 + 12),
        ({"strategy": "zero3", "precision": "fp32"}, 4 + 12),
    ],
)
def test_bytes_per_parameter(fields, each):
    shape = builtin()["Qwen/Qwen3-8B"]
    assert state.checkpoint(Spec(**fields), shape).size == each * parameter_count(shape)


def test_a_full_state_dict_is_written_by_rank_0_and_reaches_every_file(tmp_path):
    shape, spec = builtin()["Qwen/Qwen3-8B"], Spec(strategy="fsdp2", state_dict="full")
    assert state.checkpoint(spec, shape) == (16 * parameter_count(shape), 0)
    assert state.checkpoint(spec.but(state_dict="sharded"), shape) == (0, 12 * parameter_count(shape))
    write(spec, tmp_path / "launch")
    assert [row for row in check(tmp_path / "launch") if not row.same] == []
    assert "FULL_STATE_DICT" in (tmp_path / "launch" / "fsdp.json").read_text()
    path = str(tmp_path / "launch" / "accelerate.yaml")
    assert main(["explain", path, "--asked", "state_dict=full"]) == main(["explain", path]) == 0
    assert main(["explain", path, "--asked", "state_dict=sharded"]) == 1
    with pytest.raises(SpecError, match="state_dict='full' belongs to FSDP"):
        Spec(strategy="zero3", state_dict="full")


def test_lora_saves_adapters_only():
    shape = builtin()["Qwen/Qwen3-8B"]
    assert state.checkpoint(Spec(strategy="ddp", lora_rank=8), shape).size < 0.01 * 12 * parameter_count(shape)


@pytest.mark.long  # two ranks each
@pytest.mark.parametrize("lora_rank", [0, 8])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp1", "fsdp2", "fsdp2 full", "zero2", "zero3"])
def test_a_checkpoint_is_as_large_as_planned(strategy, lora_rank, tmp_path_factory):
    with offline_project(tmp_path_factory, "sizes") as project:
        arguments = (f"--train_file={project.texts / 'train.jsonl'}", "--disable_tqdm=true")
        sizes = {"micro_batch": 2, "sequence_length": 32, "max_steps": 3, "save_every": 2, "precision": "fp32"}
        kind = {"strategy": strategy.split()[0], "state_dict": "full" if "full" in strategy else "sharded"}
        spec = Spec(model=str(project.model), arguments=arguments, lora_rank=lora_rank, **kind, **sizes)
        run_here(spec, folder=project.folder)
        folder = project.folder / spec.output_dir / "checkpoint-2"
        written = sum(file.stat().st_size for file in files_of_state(folder))
        planned = state.checkpoint(spec, shape_of(str(project.model))).size
        tensors = 28 if lora_rank else 20  # each is an entry of its own, with a head, in each rank's file of a shard
        assert 0.98 * planned < written < 1.05 * planned + 2 * 3 * tensors * 2500
        assert lora_rank or planned in (12 * PARAMETERS, 16 * PARAMETERS, 20 * PARAMETERS)


def files_of_state(folder: Path) -> list[Path]:
    """Weights, moments and master copies; not the tokenizer, random states and settings."""
    kinds = (".safetensors", ".distcp", "optimizer.pt", "_states.pt", "_model_fsdp.bin", "optimizer.bin")
    return [path for path in folder.rglob("*") if path.name.endswith(kinds)]


def test_a_warning_shorter_than_the_save_is_refused(tmp_path, capsys):
    spec = Spec(model=LLAMA_70B, nodes=4)  # 12 bytes x 70.6 B parameters at 2 GB/s
    with pytest.raises(SpecError, match=r"warning=120 is too short to save 847 GB at storage=2 GB/s; .* >= 424$"):
        render(spec)
    assert render(spec.but(warning=424)) and render(spec.but(storage=10.0))
    assert main(["write", "--model", LLAMA_70B, "--nodes", "4", "--folder", str(tmp_path / "launch")]) == 2
    assert capsys.readouterr().err.startswith("error: warning=120 is too short") and not list(tmp_path.iterdir())
    assert main(["plan", "--model", LLAMA_70B, "--nodes", "4", "--checkpointing", "true"]) == 0
    assert "`write` will refuse warning=120: saving takes 423 s" in capsys.readouterr().out


def test_a_model_nobody_knows_is_let_through():
    assert render(Spec(model="somebody/unknown"))


def test_the_fields_of_a_long_run_reach_the_program(tmp_path):
    write(Spec(strategy="ddp", **BUDGET), tmp_path / "launch")
    rows = check(tmp_path / "launch")
    assert [row for row in rows if not row.same] == []
    for field, value in BUDGET.items():
        name = {"logging_steps": "steps between logged losses"}.get(field, field.replace("_", " "))
        found = [row for row in rows if row.field == name and row.file == "torchrun.sh"]
        assert [row.resolved for row in found] == [value], name


def test_a_planted_learning_rate_turns_its_row_red(tmp_path):
    write(Spec(strategy="ddp", **BUDGET), tmp_path / "launch")
    script = tmp_path / "launch" / "accelerate.sh"
    script.write_text(script.read_text().replace("--learning_rate=0.0002", "--learning_rate=0.002"))
    different = [row for row in check(tmp_path / "launch") if not row.same]
    assert [(row.file, row.field, row.resolved) for row in different] == [("accelerate.sh", "learning rate", 0.002)]


@pytest.mark.parametrize("field", BUDGET)
def test_an_argument_may_not_say_otherwise(field):
    flag = {"tracker": "report_to"}.get(field, field)
    with pytest.raises(SpecError, match=f"contradicts {field}="):
        Spec(**BUDGET, arguments=(f"--{flag}=1",))
    assert Spec(arguments=(f"--{flag}=1",)) and Spec(**BUDGET, arguments=(f"--{flag}={BUDGET[field]}",))


def test_losses_are_logged_every_ten_steps_unless_the_arguments_say():
    assert "--logging_steps=10" in render(Spec())["torchrun.sh"]
    text = render(Spec(arguments=("--logging-steps", "3")))["torchrun.sh"]
    assert "--logging_steps" not in text and "--logging-steps\n" in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"warmup_steps": 1001}, "warmup_steps=1001 is out of range; allowed: at most max_steps=1000"),
        ({"learning_rate": float("inf")}, "learning_rate=inf is out of range; allowed: a finite number"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range; allowed: a number > 0"),
        ({"tracker": "paper"}, "tracker='paper' is not known"),
        ({"storage": 0.0}, "storage=0.0 is out of range"),
        ({"gpu_mtbf": float("nan")}, "gpu_mtbf=nan is out of range"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(SpecError, match=sentence):
        Spec(**fields)
