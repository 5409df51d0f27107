"""python -m course_utils.launch: plan, write, check; exit codes 0, 1 and 2, and never a traceback."""

import subprocess
import sys

import pytest

from course_utils.launch import Spec, read_spec
from course_utils.launch.__main__ import main


def test_help_names_every_field_with_unit_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["write", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for name, field in Spec.model_fields.items():
        assert f"--{name} " in text
        assert " ".join(field.description.split()) in text, name
        unit = field.json_schema_extra["unit"]
        assert not unit or f"[{unit}]" in text
    assert "{ddp,fsdp1,fsdp2,zero1,zero2,zero3}" in text
    assert "(default: 2048)" in text


def test_flags_change_the_file(tmp_path, capsys):
    source, folder = tmp_path / "run.yaml", tmp_path / "launch"
    source.write_text("strategy: zero2\nnodes: 2\nmicro_batch: 3\narguments: [--a, 'b c']\n")
    assert main(["write", "--spec", str(source), "--micro_batch", "4", "--price", "2.5", "--folder", str(folder)]) == 0
    assert read_spec(folder / "spec.yaml") == Spec(
        strategy="zero2", nodes=2, micro_batch=4, price=2.5, arguments=("--a", "b c")
    )
    assert capsys.readouterr().out.splitlines() == [str(path) for path in sorted(folder.iterdir(), key=order(folder))]


def order(folder):
    from course_utils.launch.files.write import FILES

    names = [file.name for file in FILES]
    return lambda path: names.index(path.name)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--output_dir", "1"], "output_dir", "1"),  # text stays text, whatever YAML would make of it
        (["--name", "null"], "name", "null"),
        (["--checkpointing", "true"], "checkpointing", True),
        (["--arguments", "[--x, 'a: b']"], "arguments", ("--x", "a: b")),
        (["--global_batch", "null"], "global_batch", None),
        (["--gpu_memory", "80"], "gpu_memory", 80.0),
    ],
)
def test_values_of_flags(words, field, value, tmp_path):
    assert main(["write", *words, "--folder", str(tmp_path / "launch")]) == 0
    assert getattr(read_spec(tmp_path / "launch" / "spec.yaml"), field) == value


def test_a_shape_as_a_flag(tmp_path):
    shape = "{vocab_size: 512, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    shape += "num_key_value_heads: 4, head_dim: 16, layer_class: Block}"
    assert main(["write", "--model", shape, "--folder", str(tmp_path / "launch")]) == 0
    assert read_spec(tmp_path / "launch" / "spec.yaml").model.layer_class == "Block"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["write", "--nodes", "0"], "nodes=0 is out of range; allowed: a number >= 1"),
        (["write", "--nodes", "two"], "nodes='two' has the wrong type; allowed: a whole number"),
        (["plan", "--strategy", "fsdp3"], "strategy='fsdp3' is not known; allowed: 'ddp', 'fsdp1'"),
        (["write", "--node", "2"], "unrecognized arguments: --node 2"),
        (["plan", "--spec", "no such.yaml"], "spec='no such.yaml' cannot be read (No such file or directory)"),
        (["check", "no such folder"], "folder='no such folder' is not a folder"),
        (["destroy"], "invalid choice: 'destroy'"),
        ([], "arguments are required"),
        (["write", "--global_batch", "7"], "global_batch=7 is out of range; allowed: a multiple of"),
        (["write", "--folder", "/proc/launch"], "/proc/"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["- 1\n", "a: ]", "1: 2", "\x00", "bogus: 1", ""])
def test_a_file_that_is_no_spec(text, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(text)
    assert main(["write", "--spec", str(tmp_path / "run.yaml"), "--folder", str(tmp_path / "launch")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "launch").exists()


def test_check_ends_with_1_for_a_difference(tmp_path, capsys):
    folder = tmp_path / "launch"
    assert main(["write", "--strategy", "ddp", "--folder", str(folder)]) == 0
    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" settings resolved, 0 not as asked")
    script = folder / "torchrun.sh"
    script.write_text(script.read_text().replace("--max_steps=1000", "--max_steps=10"))
    assert main(["check", str(folder), "--differences"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["torchrun.sh", "optimizer", "steps", "1000", "10", "NO"]
    assert all(line.endswith(" NO") for line in lines[1:-1])  # files that start torchrun.sh differ as well
    assert lines[-1].endswith(f" {len(lines) - 2} not as asked")


def test_plan_ends_with_1_where_the_run_does_not_fit(capsys):
    assert main(["plan", "--model", "Qwen/Qwen3-0.6B", "--gpu", "H100-80GB"]) == 0
    fitting = capsys.readouterr().out
    assert main(["plan", "--model", "meta-llama/Llama-3.1-70B", "--strategy", "ddp"]) == 1
    assert "does not fit" in capsys.readouterr().out and "does not fit" not in fitting


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "course_utils.launch", "write", "--strategy", "fsdp2", "--offload", "optimizer"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: offload='optimizer' does not exist for strategy='fsdp2'; allowed: 'none', 'all'\n"
    assert list(tmp_path.iterdir()) == []
