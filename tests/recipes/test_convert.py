"""``course_utils.recipes.convert``, called as users call it, on checkpoints of one process."""

import re
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, Qwen3ForSequenceClassification

from course_utils.parallel import reference
from course_utils.recipes import convert


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``base``: a model's folder; ``checkpoint``, ``lora`` (with its settings beside it), ``classes``: checkpoints."""
    folder = tmp_path_factory.mktemp("place")
    reference.new_model().save_pretrained(folder / "base")
    dcp.save({"model": reference.new_model(seed=1).state_dict()}, checkpoint_id=folder / "checkpoint", no_dist=True)
    adapted = get_peft_model(reference.new_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    (folder / "lora run").mkdir()
    dcp.save(
        {"model": get_peft_model_state_dict(adapted)}, checkpoint_id=folder / "lora run" / "checkpoint-3", no_dist=True
    )
    adapted.peft_config["default"].save_pretrained(folder / "lora run")
    config = reference.new_model().config
    config.num_labels = 3
    classifier = Qwen3ForSequenceClassification(config)
    dcp.save({"model": classifier.state_dict()}, checkpoint_id=folder / "classes", no_dist=True)
    return folder


def test_the_command_in_its_help_converts(place, tmp_path, capsys):
    made = convert.main([str(place / "checkpoint"), "--model", str(place / "base"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert f"FSDP or DCP, 1 file -> {tmp_path / 'out'}: 24 tensors, {made.parameters:,} parameters, float32" in printed
    line = re.search("load it with: (.+)", printed)[1]
    model = eval(line, {"Qwen3ForCausalLM": AutoModelForCausalLM})
    expected = reference.new_model(seed=1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_adapters_find_their_settings_beside_the_checkpoint(place, tmp_path, capsys):
    always = [str(place / "lora run" / "checkpoint-3"), "--model", str(place / "base")]
    convert.main([*always, "--out", str(tmp_path / "kept"), "--adapter", "keep"])
    line = re.search("load it with: (.+)", capsys.readouterr().out)[1]
    adapted = eval(line, {"Qwen3ForCausalLM": AutoModelForCausalLM, "PeftModel": PeftModel})
    options = ["--adapter", "merge", "--dtype", "bfloat16", "--max_shard_size", "100KB"]
    made = convert.main([*always, "--out", str(tmp_path / "merged"), *options])
    assert "model.safetensors.index.json" in made.files and made.dtypes == ("bfloat16",)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    expected = adapted.merge_and_unload().state_dict()
    assert all(torch.equal(value.bfloat16(), merged[name]) for name, value in expected.items())


def test_a_head_that_the_base_has_not(place, tmp_path):
    always = [str(place / "classes"), "--model", str(place / "base"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        convert.main(always)
    convert.main([*always, "--architecture", "Qwen3ForSequenceClassification", "--num_labels", "3"])
    assert Qwen3ForSequenceClassification.from_pretrained(tmp_path / "out").score.out_features == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model", "{place}/checkpoint"], "has no config.json"),
        (["--adapter", "keep"], "holds no LoRA adapter"),
        (["--adapter", "both"], "invalid choice: 'both'"),
        (["--no_such_flag"], "--no_such_flag"),
        (["--num_labels", "many"], "--num_labels: 'many' is out of range; allowed: a whole number >= 1"),
        (["--max_shard_size", "big"], "big"),
        (["--architecture", "Qwen4ForPoetry"], "'Qwen4ForPoetry' is no model class"),
    ],
)
def test_bad_input_is_one_sentence(change, words, place, tmp_path, capsys):
    always = [str(place / "checkpoint"), "--model", str(place / "base"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        convert.main([*always, *(part.format(place=place) for part in change)])
    sentence = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and sentence.startswith("error: ") and words in sentence and "\n" not in sentence
    assert list(tmp_path.iterdir()) == []


def test_help_shows_commands_first():
    done = subprocess.run(
        [sys.executable, "-m", "course_utils.recipes.convert", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "python -m course_utils.recipes.convert runs/four/checkpoint-500 --model" in done.stdout
    assert "--max_shard_size" in done.stdout
