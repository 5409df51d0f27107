"""Real sharded checkpoints become folders that ``from_pretrained`` reads to the same bits."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils.parallel import reference
from course_utils.parallel.convert import ConversionError, convert_checkpoint
from tests.parallel.convert import make
from tests.parallel.convert.make import lora_config


def logits(model):
    with torch.no_grad():
        batch = reference.global_batches(1)[0]
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def trained(whole):
    """The model as the ranks gathered it."""
    model = reference.new_model(seed=9)
    model.load_state_dict(whole)
    return model


def test_the_checkpoints_are_of_two_ranks_that_shard(made):
    for kind in (*make.FULL, *make.LORA, *make.ADAPTER):
        wrapper = {"fsdp1": "FullyShardedDataParallel", "fsdp2": "FSDP"}.get(kind[:5], "DeepSpeedEngine")
        strategy, ranks, seen = made.seen[kind]
        assert (strategy, ranks) == ("FSDP" if kind.startswith("fsdp") else "DEEPSPEED", 2) and seen.startswith(wrapper)


@pytest.mark.parametrize("kind", make.FULL)
def test_full_models_come_back_bit_by_bit(kind, made, whole, tmp_path):
    done = convert_checkpoint(made.folder / kind, made.base, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), logits(trained(whole(kind))))
    assert all(torch.equal(value, whole(kind)[name]) for name, value in model.state_dict().items())
    assert done.parameters == sum(p.numel() for p in model.parameters()) and done.dtypes == ("float32",)
    assert not torch.equal(logits(model), logits(reference.new_model()))  # three steps were taken
    kept = AutoTokenizer.from_pretrained(tmp_path / "out")("the mean of a sum")["input_ids"]
    assert kept == AutoTokenizer.from_pretrained(made.base)("the mean of a sum")["input_ids"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")  # tied: written once


@pytest.mark.parametrize("kind", [*make.LORA, *make.ADAPTER])
def test_adapters_are_kept_or_merged(kind, made, tmp_path):
    settings = {"adapter_config": lora_config()}
    kept = convert_checkpoint(made.folder / kind, made.base, tmp_path / "kept", adapter="keep", **settings)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.base), tmp_path / "kept")
    ranks = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name or "modules_to_save" in name)
    assert kept.parameters == ranks and set(kept.files) >= {"adapter_config.json", "adapter_model.safetensors"}
    convert_checkpoint(made.folder / kind, made.base, tmp_path / "merged", adapter="merge", **settings)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with_adapter = logits(adapted)
    assert (with_adapter - logits(merged)).abs().max() < 1e-5  # (W + sBA)x against Wx + sB(Ax); measured 1.5e-6
    assert (with_adapter - logits(AutoModelForCausalLM.from_pretrained(made.base))).abs().max() > 0.1
    assert torch.equal(logits(merged), logits(adapted.merge_and_unload()))  # PEFT's own merge, bitwise


def test_kept_adapters_are_the_trained_ones(made, whole, tmp_path):
    convert_checkpoint(
        made.folder / "fsdp2-lora", made.base, tmp_path / "out", adapter="keep", adapter_config=lora_config()
    )
    gathered = whole("fsdp2-lora")
    for name, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        in_memory = name.replace(".weight", ".default.weight")
        if ".lora_" not in name:
            in_memory = name.replace(".weight", ".modules_to_save.default.weight")
        assert torch.equal(value, gathered[in_memory])


@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_several_files_of_a_given_size_and_type(kind, made, whole, tmp_path):
    done = convert_checkpoint(
        made.folder / kind, made.base, tmp_path / "out", max_shard_size=100_000, dtype="bfloat16", verify=False
    )
    files = [name for name in done.files if name.endswith(".safetensors")]
    assert len(files) >= 3 and all((tmp_path / "out" / name).stat().st_size < 110_000 for name in files)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(v, whole(kind)[name].bfloat16()) for name, v in model.state_dict().items())


def test_other_places_of_the_same_checkpoint(made, tmp_path):
    places = [made.folder / "fsdp2" / "pytorch_model_fsdp_0", made.folder / "zero2" / "pytorch_model"]
    for number, place in enumerate(places):
        convert_checkpoint(place, made.base, tmp_path / str(number))
    config = reference.new_model().config
    with pytest.raises(ConversionError, match="architecture=None is no model class"):
        convert_checkpoint(places[0], config, tmp_path / "config")
    convert_checkpoint(places[0], config, tmp_path / "config", architecture="Qwen3ForCausalLM")


def test_an_adapters_settings_are_found_beside_the_checkpoint(copy_of, made, tmp_path):
    checkpoint = copy_of("fsdp2-lora")
    with pytest.raises(ConversionError, match="no adapter_config.json in"):
        convert_checkpoint(checkpoint, made.base, tmp_path / "out", adapter="keep")
    lora_config().save_pretrained(checkpoint.parent)
    convert_checkpoint(checkpoint, made.base, tmp_path / "out", adapter="keep")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(made.base) and settings["inference_mode"]


def test_scales_of_single_modules_and_rslora(made, tmp_path):
    patterns = {"alpha_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 20}, "use_rslora": True}
    settings = {"adapter_config": lora_config(**patterns)}
    convert_checkpoint(made.folder / "fsdp2-adapter", made.base, tmp_path / "kept", adapter="keep", **settings)
    convert_checkpoint(made.folder / "fsdp2-adapter", made.base, tmp_path / "merged", adapter="merge", **settings)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.base), tmp_path / "kept")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    other = merged.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in adapted.merge_and_unload().state_dict().items())
