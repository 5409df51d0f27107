"""What the programs' command lines share: places are checked before the work, a damaged folder is one sentence."""

from argparse import ArgumentTypeError

import pytest

from course_utils.authoring.build import ROOT
from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.recipes.command_line import file_to_write, folder_to_write, from_folder_or_hub, refusing
from course_utils.recipes.generate import token_ids
from course_utils.recipes.json_lines import whole_file
from course_utils.recipes.train_vision_language import read_stages
from tests.recipes.refused import refusal


def test_places_that_are_there_or_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert folder_to_write(str(tmp_path)) == tmp_path and folder_to_write(str(tmp_path / "a" / "b")).name == "b"
    assert file_to_write(str(tmp_path / "file")).name == "file" and file_to_write(str(tmp_path / "a" / "b.txt"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    with pytest.raises(ArgumentTypeError, match="which is a file; allowed: a file"):
        file_to_write(str(tmp_path / "file" / "a" / "b"))


def test_a_place_that_cannot_be_written_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    with pytest.raises(ArgumentTypeError, match="cannot be written; allowed: a folder in a folder that you may"):
        folder_to_write(str(tmp_path / "new"))


@pytest.mark.parametrize("damage", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_folder_is_one_sentence(damage, tmp_path):
    from transformers import AutoTokenizer

    load_chat_tokenizer().save_pretrained(tmp_path)
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be loaded") as caught, from_folder_or_hub(str(tmp_path), "model"):
        AutoTokenizer.from_pretrained(tmp_path)
    sentence = str(caught.value)
    assert "\n" not in sentence and str(tmp_path) in sentence and sentence.endswith("a model's folder, all files whole")


def test_whole_or_as_it_was(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    with whole_file(file) as stream:
        stream.write("old\n")
    with pytest.raises(RuntimeError), whole_file(file) as stream:
        stream.write("half of the n")
        raise RuntimeError
    assert file.read_text() == "old\n" and list(file.parent.iterdir()) == [file]


def test_only_what_the_user_can_repair_is_refused(capsys):
    with pytest.raises(SystemExit) as caught, refusing(KeyError):
        raise KeyError("two\n  lines")
    assert caught.value.code == 2 and capsys.readouterr().err == "error: 'two\\n lines'\n"
    with pytest.raises(ZeroDivisionError), refusing():
        raise ZeroDivisionError


def test_a_prompt_without_a_token_is_named():
    with pytest.raises(ValueError, match="prompt 2 of 3 has no token"):
        token_ids(lambda text: {"input_ids": list(text.encode())}, ["a", "", "b"])


def test_damaged_stages_are_made_anew(tmp_path):
    import torch

    whole = {"made_with": {}, "tower": {}, "scores": {"train": torch.zeros(3)}}
    torch.save(whole, tmp_path / "stages.pt")
    assert read_stages(tmp_path / "stages.pt").keys() == whole.keys()
    content = (tmp_path / "stages.pt").read_bytes()
    for damaged in (b"", b"no archive", content[:-30], content[: len(content) // 2], content[:3]):
        (tmp_path / "stages.pt").write_bytes(damaged)
        assert read_stages(tmp_path / "stages.pt") == {}
    torch.save([1], tmp_path / "stages.pt")
    assert read_stages(tmp_path / "stages.pt") == {} == read_stages(tmp_path / "none.pt")


@pytest.mark.parametrize("program", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.name)
def test_the_benchs_numbers_have_ranges(program):
    text = program.read_text()
    assert "type=int" not in text and "type=float" not in text and "argparse.ArgumentParser(" not in text


def test_a_bench_refuses_in_one_sentence_before_any_work(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "bench")  # its programs are scripts, which import record.py beside them
    import bench_because

    monkeypatch.setattr(bench_because, "load_classification", lambda: pytest.fail("it began"))
    for flag, words in (("--steps=0", "argument --steps: '0' is out of range"), ("--out=/", "argument --out")):
        monkeypatch.setattr("sys.argv", ["bench_because.py", flag])
        assert words in refusal(capsys, bench_because.main)
