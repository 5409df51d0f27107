"""explain: every planted fault by its name, nothing about healthy files, never a traceback, nothing executed."""

import json
import random
import string

import pytest

from course_utils.errors import SpecError
from course_utils.launch import Spec, render
from course_utils.launch.__main__ import main
from course_utils.launch.explain.explain import explain, table
from course_utils.launch.spec import silent
from tests.launch.explain import faults_more
from tests.launch.explain.blocks import BLOCKS
from tests.launch.explain.faults import FAULTS
from tests.launch.explain.healthy import FILES

FRESH = ("", "", "[", "{", "'", '"', "$(", "${", "auto", "null", "-1", "\n", ": ", "1e999", "9" * 30, "\x00", "é")
FRESH += ("--", "\\", "*", "&a ", "<<", "true", "0x1", "!!python/name:os.system ")
SIZES = [60, pytest.param(500, marks=pytest.mark.long)]


def explained(folder, **files):
    """``explain`` of files given as name -> text (``_`` in a name before its suffix is a dot)."""
    paths = []
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        path = folder / (name if "." in name else f"{stem}.{suffix}")
        path.write_text(text)
        paths.append(path)
    return explain(paths)


def names(explanation):
    return {finding.name for finding in explanation.findings}


@pytest.mark.parametrize("name", FILES)
def test_a_healthy_file_has_no_finding(name, tmp_path):
    found = explained(tmp_path, **{name: FILES[name]})
    assert found.findings == []
    assert len(found.settings) >= 2


@pytest.mark.parametrize("name", FAULTS | faults_more.FAULTS)
def test_a_planted_fault_is_found_by_its_name(name, tmp_path):
    file, old, new, expected = (FAULTS | faults_more.FAULTS)[name]
    assert old in FILES[file]
    found = explained(tmp_path, **{file: FILES[file].replace(old, new, 1)})
    assert names(found) == expected
    for finding in found.findings:
        assert (
            finding.sentence.isprintable() and ": " in finding.sentence and "{" not in finding.sentence.split(": ")[0]
        )


@pytest.mark.parametrize("name", faults_more.RIGHT)
def test_what_looks_like_a_fault_and_is_none(name, tmp_path):
    file, old, new = faults_more.RIGHT[name]
    assert old in FILES[file]
    assert explained(tmp_path, **{file: FILES[file].replace(old, new, 1)}).findings == []


@pytest.mark.parametrize("name", BLOCKS)
def test_a_tutorials_block(name, tmp_path):
    text, expected = BLOCKS[name]
    found = explained(tmp_path, **{name: text})
    assert names(found) == set(expected)
    for entry, cure in expected.items():
        assert any(cure in finding.sentence for finding in found.findings if finding.name == entry)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"])
def test_our_own_files_are_healthy(strategy, tmp_path):
    """Also two machines' worth of them, which must agree with each other."""
    unread = ("README.md", "hostfile", "spec.yaml", "sagemaker_entry.py", "ray_train.py")
    texts = render(Spec(strategy=strategy, nodes=2, global_batch=64, lora_rank=8))
    texts = {name: text for name, text in texts.items() if name not in unread}
    allowed = {"fsdp1-deprecated"} if strategy == "fsdp1" else set()
    assert names(explained(tmp_path, **texts)) == allowed


def test_exactly_its_findings(tmp_path):
    text = "distributed_type: FSDP\nnum_processes: 8\nrdzv_backend: c10d\nfsdp_config:\n  fsdp_version: 2\n"
    found = explained(tmp_path, a_yaml=f"{text}  fsdp_sharding_strategy: SHARD_GRAD_OP\n")
    assert [finding.name for finding in found.findings] == ["yaml-flag-only", "fsdp2-ignores-key"]
    assert "fsdp_reshard_after_forward: false" in found.findings[1].sentence
    resolved = {row.name: row.resolved for row in found.settings}
    assert resolved["rdzv_backend"] == "static"
    assert resolved["fsdp_config.fsdp_sharding_strategy"] == "not read"
    assert resolved["fsdp_config: reshard after forward"] is True


def test_auto_is_filled_in_from_another_file(tmp_path):
    arguments = "--output_dir out --per_device_train_batch_size 2 --gradient_accumulation_steps 4 --bf16 True"
    script = f"torchrun --nproc-per-node 8 train.py {arguments}\n"
    found = explained(tmp_path, **{"run.sh": script, "ds.json": FILES["zero3_auto.json"]})
    resolved = {row.name: row.resolved for row in found.settings if row.file.endswith("ds.json")}
    assert resolved["train_micro_batch_size_per_gpu"] == 2 and resolved["gradient_accumulation_steps"] == 4
    assert resolved["bf16.enabled"] is True
    assert resolved["gradient_clipping"].startswith("open: the Trainer's max_grad_norm")
    assert [row.resolved for row in found.settings if row.name == "effective batch"] == [64]
    assert found.findings == []


@pytest.mark.parametrize(
    ("json_text", "words", "entry", "said"),
    [
        ('"gradient_accumulation_steps": 2', "--gradient_accumulation_steps 4", "contradiction", "accumulation is 4"),
        ('"train_micro_batch_size_per_gpu": 4', "--bf16 True", "contradiction", "micro_batch is 2"),
        ('"fp16": {"enabled": true}', "--bf16 True", "contradiction", "precision is bf16"),
        ('"gradient_clipping": 0.5', "--max_grad_norm 1.0", "contradiction", "max_grad_norm is 1.0"),
        ('"train_batch_size": 32', "--bf16 True", "deepspeed-batch-product", "train_batch_size 32 is not 2 x 1 x 8"),
    ],
)
def test_files_that_contradict_each_other(json_text, words, entry, said, tmp_path):
    script = f"torchrun --nproc-per-node 8 train.py --output_dir out --per_device_train_batch_size 2 {words}\n"
    found = explained(tmp_path, run_sh=script, ds_json=f'{{{json_text}, "zero_optimization": {{"stage": 2}}}}')
    assert names(found) == {entry}
    assert said in found.findings[0].sentence


def test_a_flag_against_the_yaml_says_who_wins(tmp_path):
    found = explained(tmp_path, run_sh="accelerate launch --num_processes 4 a.py\n", a_yaml=FILES["fsdp2.yaml"])
    assert names(found) == {"contradiction"} and "the command line's flag wins" in found.findings[0].sentence


def test_asked_and_the_exit_codes(tmp_path, capsys):
    (tmp_path / "run.sh").write_text(FILES["one_node.sh"])
    path = str(tmp_path / "run.sh")
    wishes = ["--asked", "world_size=8", "--asked", "learning_rate=2e-05", "--asked", "nproc_per_node=8"]
    assert main(["explain", path, *wishes, "--asked", "global_batch=64"]) == 0
    assert main(["explain", path, "--asked", "micro_batch=8"]) == 1
    assert "micro_batch was asked to be 8 and is 4" in capsys.readouterr().out
    assert main(["explain", path, "--asked", "nonsense=8"]) == 1
    assert main(["explain", path, "--asked", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("error: asked='nonsense' is not a wish")


def test_json_for_tools(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(FILES["ddp.yaml"].replace("fp16", "bf15"))
    assert main(["explain", str(tmp_path / "a.yaml"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["findings"][0]["name"] == "bad-value" and found["findings"][0]["since"]
    assert {"file", "name", "written", "resolved", "tool"} == set(found["settings"][0])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.yaml", None, "is no file"),
        ("a.txt", b"hello", "is of no kind"),
        ("a.yaml", b"hello: 1", "is of no kind"),
        ("a.yaml", b"- 1", "holds no settings"),
        ("a.yaml", b"a: [", "is no YAML"),
        ("a.json", b"{", "cannot be read"),
        ("a.py", b"def", "cannot be read"),
        ("a.yaml", b"\xff\xfe\x00", "is no UTF-8"),
        ("a.yaml", b"a: &a [*a]\n", "contains itself"),
        ("a.yaml", b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(8)
        ), "with its aliases written out"),
        ("a.json", b"[" * 100_000, "cannot be read"),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_one_sentence(name, content, said, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["explain", str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and len(shown.err) < 600
    assert shown.out == ""


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell = "touch pwned; X=$(touch pwned); Y=`touch pwned`; : $((pwned[$(touch pwned)])); torchrun a.py $X\n"
    python = (
        "__import__('os').mkdir('pwned')\nTrainingArguments(output_dir=__import__('os').mkdir('pwned'), bf16=True)\n"
    )
    yaml = "distributed_type: !!python/object/apply:os.mkdir [pwned]\n"
    explained(tmp_path, run_sh=shell, run_py=python)
    with pytest.raises(SpecError, match="is no YAML"):
        explained(tmp_path, a_yaml=yaml)
    assert not (tmp_path / "pwned").exists()


def test_no_secret_is_repeated(tmp_path):
    key = "hf_" + "aB3" * 8
    script = f"export HF_TOKEN={key}\ntorchrun a.py --output_dir x --bf16 True --hub_token {key}\n"
    found = explained(tmp_path, run_sh=script)
    assert names(found) == {"secret-in-file"}
    assert key not in table(found) + found.as_json()


def test_the_catalogue_is_complete():
    found = silent.catalogue()
    assert len(found) >= 70
    for entry in found.values():
        assert entry.kind in silent.KINDS, entry
        assert all(text.strip() for text in entry), entry


def mutated(text, draw):
    """``text`` with one to four random edits."""
    for _ in range(draw.randint(1, 4)):
        place, length = draw.randrange(len(text) + 1), draw.choice((0, 1, 1, 3, 10, 40))
        fresh = draw.choice((*FRESH, draw.choice(string.printable)))
        text = text[:place] + fresh + text[place + length :]
        lines = text.split("\n")
        if draw.random() < 0.3 and len(lines) > 2:
            lines[draw.randrange(len(lines))] = lines[draw.randrange(len(lines))]
            text = "\n".join(lines)
    return text


@pytest.mark.parametrize("number", SIZES, ids="{} mutations".format)
def test_a_mutated_file_never_ends_in_a_traceback(number, tmp_path):
    draw = random.Random(7)
    texts = list(FILES.items()) + [(name, text) for name, (text, _) in BLOCKS.items()]
    read = 0
    for _ in range(number):
        name, text = draw.choice(texts)
        try:
            found = explained(tmp_path, **{name: mutated(text, draw)})
        except SpecError as error:
            assert str(error).isprintable()
            continue
        read += 1
        assert all(finding.sentence.isprintable() for finding in found.findings)
        assert table(found) and json.loads(found.as_json())
    assert read > number / 3
