"""The check: clean folders resolve to their spec, and each known way to lose a setting turns a row red."""

import os
from pathlib import Path

import pytest

from course_utils.launch import Spec, SpecError, table, write
from course_utils.launch.check.folder import check
from course_utils.launch.check.launchers import rows
from course_utils.launch.check.rows import Row, guarded
from tests.launch.check.faults import FAULTS

CLEAN = {
    "ddp": {"strategy": "ddp", "checkpointing": True},
    "ddp_one_gpu": {"strategy": "ddp", "gpus_per_node": 1},
    "fsdp1_grad_op": {"strategy": "fsdp1", "reshard_after_forward": False, "nodes": 2},
    "fsdp1_hybrid": {"strategy": "fsdp1", "replicas": 2, "nodes": 2, "offload": "all"},
    "fsdp2": {"strategy": "fsdp2", "checkpointing": True, "lora_rank": 8, "hosts": ("a", "b", "c"), "nodes": 3},
    "fsdp2_no_reshard": {"strategy": "fsdp2", "reshard_after_forward": False, "precision": "bf16_weights"},
    "fsdp2_tensor": {"strategy": "fsdp2", "nodes": 2, "replicas": 2, "tensor_parallel": 2, "global_batch": 64},
    "fsdp2_context": {"strategy": "fsdp2", "context_parallel": 4, "offload": "all"},
    "zero1": {"strategy": "zero1", "precision": "fp16", "nodes": 2},
    "zero2": {"strategy": "zero2", "offload": "optimizer", "precision": "fp32", "accumulation": 3},
    "zero2_bf16_weights": {"strategy": "zero2", "precision": "bf16_weights"},
    "zero3": {"strategy": "zero3", "offload": "all", "nodes": 2, "micro_batch": 4, "checkpointing": True},
    "plain_fsdp1": {"strategy": "fsdp1", "trainer_flags": False, "program": "my train.py", "nodes": 2, "replicas": 2},
    "plain_fsdp2": {"strategy": "fsdp2", "trainer_flags": False, "program": "a.b", "tensor_parallel": 2},
    "plain_zero3": {"strategy": "zero3", "trainer_flags": False, "program": "train.py", "accumulation": 5},
    "plain_ddp": {"strategy": "ddp", "trainer_flags": False, "program": "train.py", "precision": "fp16"},
    "dash": {
        "program": "-x.py",
        "arguments": ("-x", "--", "$(x)", "a\nb"),
        "strategy": "zero1",
        "trainer_flags": False,
    },
    "trl": {"program": "trl.scripts.sft", "arguments": ("--dataset_name", "some data", "--learning_rate", "1e-5")},
}


def differences(spec: Spec, folder: Path) -> set[tuple[str, str]]:
    return {(row.file, row.field) for row in rows(spec, folder) if not row.same}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", CLEAN)
def test_every_kind_of_spec_resolves_to_itself(name, device, tmp_path):
    spec = Spec(**CLEAN[name])
    spec = spec if device == "cuda" else spec.on_cpu()
    write(spec, tmp_path / "launch")
    found = rows(spec, tmp_path / "launch")
    assert [row for row in found if not row.same] == []
    resolved = {(row.file, row.field): row.resolved for row in found}
    assert resolved["torchrun.sh", "world size"] == resolved["accelerate.sh", "world size"] == spec.world_size
    assert resolved["torchrun.sh", "strategy"] == resolved["accelerate.sh", "strategy"] == spec.strategy
    if spec.trainer_flags:
        batches = {value for (_, field), value in resolved.items() if field in ("effective batch", "train_batch_size")}
        assert batches == {spec.effective_batch}


def test_a_written_folder_passes_as_a_whole(tmp_path):
    write(Spec(strategy="zero2", nodes=2), tmp_path / "launch")
    found = check(tmp_path / "launch")
    assert [row for row in found if not row.same] == []
    scripts = {row.file for row in found if row.field == "shellcheck"}
    assert {"torchrun.sh", "accelerate.sh", "deepspeed.sh"} <= scripts


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_turns_its_row_red(name, tmp_path):
    fields, plant, expected = FAULTS[name]
    spec = Spec(**fields)
    write(spec, tmp_path / "launch")
    assert differences(spec, tmp_path / "launch") == set()
    plant(tmp_path / "launch")
    assert expected in differences(spec, tmp_path / "launch")


def test_files_missing_and_left_over(tmp_path):
    folder = tmp_path / "launch"
    write(Spec(strategy="ddp"), folder)
    (folder / "README.md").unlink()
    (folder / "hostfile").write_text("node1 slots=8\n")
    found = {(row.file, row.asked, row.resolved) for row in check(folder) if row.field == "exists" and not row.same}
    assert found == {("README.md", True, False), ("hostfile", False, True)}


def test_a_script_that_bash_or_shellcheck_rejects(tmp_path):
    folder = tmp_path / "launch"
    write(Spec(strategy="ddp"), folder)
    with (folder / "torchrun.sh").open("a") as script:
        script.write("if\n")
    with (folder / "accelerate.sh").open("a") as script:
        script.write("rm $unquoted\n")
    found = {(row.file, row.field) for row in check(folder) if not row.same}
    assert ("torchrun.sh", "bash -n") in found
    assert ("accelerate.sh", "shellcheck") in found


def test_without_a_spec_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(SpecError, match="is not a folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(SpecError, match="cannot be read"):
        check(tmp_path)


def test_the_check_leaves_this_process_as_it_was(tmp_path):
    from accelerate.state import PartialState
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    write(Spec(strategy="zero3"), tmp_path / "launch")
    before, shared = dict(os.environ), dict(PartialState._shared_state)
    check(tmp_path / "launch")
    assert dict(os.environ) == before
    assert PartialState._shared_state == shared
    assert not is_deepspeed_zero3_enabled()  # it would change how this process loads models


def test_table_shows_differences_in_full():
    long = "x" * 100
    text = table([Row("a", "b", 1, 1), Row("c", "d", long, long), Row("e", "f", long, "y\nz")])
    lines = text.splitlines()
    assert lines[0].split() == ["file", "what", "asked", "resolved", "same"]
    assert [line.split()[-1] for line in lines[1:]] == ["yes", "yes", "NO"]
    assert long not in lines[2]
    assert long in lines[3]
    assert len(lines) == 4  # a line break in a value is no line of the table


def test_a_tool_that_exits_is_a_row():
    def exits():
        yield Row("f", "first", 1, 1)
        raise SystemExit("no such\noption")

    found = guarded("f", exits)
    assert [row.same for row in found] == [True, False]
    assert found[1].resolved == "SystemExit: no such option"
