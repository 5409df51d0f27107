"""What is unfinished, damaged or another model's is refused in one sentence, and nothing is written."""

import os
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp

from course_utils.parallel import reference
from course_utils.parallel.convert import ConversionError, convert_checkpoint
from tests.parallel.convert.make import lora_config


class Evil:
    """A pickle of it runs a command when it is loaded without care."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def refused(words, *arguments, **options):
    """Convert; check that it is refused with ``words`` in one sentence and leaves nothing."""
    out = arguments[2]
    with pytest.raises(ConversionError) as caught:
        convert_checkpoint(*arguments, **options)
    sentence = str(caught.value)
    assert words in sentence, sentence
    assert "\n" not in sentence and len(sentence) < 600
    assert not out.exists() and not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    return sentence


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    """One bit of a weight, far from names and tables."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    while content[middle] == content[middle + 1] == 0:
        middle += 7
    content[middle] ^= 16
    file.write_bytes(content)


SHARDS = "pytorch_model_fsdp_0"
DAMAGE = {  # name: (kind, file, what happens to it, words)
    "fsdp file missing": ("fsdp2", f"{SHARDS}/__1_0.distcp", os.unlink, "__1_0.distcp is missing; every rank's file"),
    "fsdp file cut": ("fsdp2", f"{SHARDS}/__0_0.distcp", cut, "__0_0.distcp is cut off"),
    "fsdp bit flipped": ("fsdp1", f"{SHARDS}/__0_0.distcp", flip, "__0_0.distcp is damaged"),
    "fsdp metadata missing": ("fsdp2", f"{SHARDS}/.metadata", os.unlink, "has no .metadata, which is written last"),
    "fsdp metadata cut": ("fsdp2", f"{SHARDS}/.metadata", cut, ".metadata is damaged"),
    "fsdp metadata empty": ("fsdp2", f"{SHARDS}/.metadata", lambda f: f.write_bytes(b""), ".metadata is damaged"),
    "zero1 rank missing": (
        "zero1",
        "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt",
        os.unlink,
        "written by 2 ranks but holds 1 of 2 optim_states files: rank 1's is missing",
    ),
    "zero3 rank missing": (
        "zero3",
        "pytorch_model/zero_pp_rank_0_mp_rank_00_model_states.pt",
        os.unlink,
        "1 of 2 model_states files: rank 0's is missing",
    ),
    "zero cut": ("zero2", "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt", cut, "states.pt is damaged: cut"),
    "zero bit flipped": (
        "zero3",
        "pytorch_model/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        flip,
        "differs from its checksum",
    ),
    "zero latest missing": ("zero2", "latest", os.unlink, "has no file 'latest', which DeepSpeed writes last"),
    "zero latest wrong": ("zero2", "latest", lambda f: f.write_text("global_step9"), "names 'global_step9', which is"),
    "zero latest outside": ("zero2", "latest", lambda f: f.write_text("../../x"), "names '../../x', which is not"),
    "zero model states missing": (
        "zero2",
        "pytorch_model/mp_rank_00_model_states.pt",
        os.unlink,
        "has no *_model_states.pt",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused(case, copy_of, made, tmp_path):
    kind, file, spoil, words = DAMAGE[case]
    checkpoint = copy_of(kind)
    spoil(checkpoint / file)
    refused(words, checkpoint, made.base, tmp_path / "out")


def test_without_verification_torchs_own_reading_still_notices_a_cut(copy_of, made, tmp_path):
    checkpoint = copy_of("zero2")
    cut(checkpoint / "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt")
    refused("is damaged", checkpoint, made.base, tmp_path / "out", verify=False)


def test_files_of_two_runs_do_not_mix(copy_of, made, tmp_path):
    checkpoint, name = copy_of("zero2"), "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shutil.copyfile(made.folder / "zero2-lora" / name, checkpoint / name)
    refused("files of several runs are mixed", checkpoint, made.base, tmp_path / "out")


def test_no_code_of_a_pickle_runs(copy_of, made, tmp_path):
    proof = tmp_path / "ran"
    metadata = copy_of("fsdp2") / SHARDS / ".metadata"
    metadata.write_bytes(pickle.dumps(Evil(proof)))
    refused("posix.system, which no checkpoint needs", metadata.parent, made.base, tmp_path / "out")
    states = copy_of("zero2") / "pytorch_model" / "mp_rank_00_model_states.pt"
    torch.save({"module": Evil(proof)}, states)
    refused("posix.system, which is not on the list", states.parent, made.base, tmp_path / "out")
    assert not proof.exists()
    with metadata.open("rb") as stream:
        pickle.load(stream)  # what FileSystemReader does
    assert proof.exists()


def test_another_models_checkpoint_is_refused_by_name(made, tmp_path):
    out, kind = tmp_path / "out", "Qwen3ForCausalLM"
    for checkpoint in (made.folder / "fsdp2", made.folder / "zero3"):
        for changes, words in [
            (
                {"hidden_size": 32},
                f"embed_tokens.weight (and 20 more) in shape (512, 64), where {kind} with this config",
            ),
            ({"num_hidden_layers": 3}, f"lacks model.layers.2.self_attn.q_proj.weight (and 10 more), which {kind} has"),
            ({"num_hidden_layers": 1}, "holds model.layers.1."),
        ]:
            config = reference.new_model(**changes).config
            refused(words, checkpoint, config, out, architecture=kind)
        refused("(512, 64)", checkpoint, made.base, out, config_changes={"vocab_size": 600})
        refused("does not make a Qwen3", checkpoint, made.base, out, config_changes={"num_hidden_layers": 3})
        refused("lacks score.weight", checkpoint, made.base, out, architecture="Qwen3ForSequenceClassification")


def test_weights_that_were_untied_are_not_tied_silently(made, tmp_path):
    weights = reference.new_model().state_dict()
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    dcp.save({"model": weights}, checkpoint_id=tmp_path / "untied", no_dist=True)
    refused("with different values, though", tmp_path / "untied", made.base, tmp_path / "out")
    done = convert_checkpoint(
        tmp_path / "untied", made.base, tmp_path / "out", config_changes={"tie_word_embeddings": False}
    )
    assert done.tensors == 25


def test_wrong_kinds_of_folder_say_what_they_are(made, tmp_path):
    out, base = tmp_path / "out", made.base
    run = tmp_path / "run"
    for step in (2, 10):
        (run / f"checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "empty" / SHARDS).mkdir(parents=True)
    for folder, words in [
        (made.base, "but a Hugging Face folder already"),
        (run, "allowed: one of its checkpoints, such as " + str(run / "checkpoint-10")),
        (run / "checkpoint-2", "is no sharded checkpoint; allowed: a folder with"),
        (tmp_path / "empty", "is empty: the save was interrupted"),
        (tmp_path / "nowhere", "nowhere is no folder"),
        (made.folder / "fsdp2" / "optimizer_0", "holds an optimizer's state, not a model's weights"),
    ]:
        refused(words, folder, base, out)
    refused("has no config.json", made.folder / "fsdp2", made.folder / "zero1", out)


def test_nothing_to_load_is_no_success(made, tmp_path):
    """``dcp.load({})`` fills nothing and says nothing; a checkpoint that lists no tensors is refused here."""
    nothing = {}
    dcp.load(nothing, checkpoint_id=made.folder / "fsdp2" / SHARDS, no_dist=True)
    assert nothing == {}
    dcp.save({}, checkpoint_id=tmp_path / "nothing", no_dist=True)
    refused("lists no tensors", tmp_path / "nothing", made.base, tmp_path / "out")
    dcp.save({"model": {"step": "three"}}, checkpoint_id=tmp_path / "words", no_dist=True)
    refused("holds no tensors", tmp_path / "words", made.base, tmp_path / "out")


def test_adapters_that_do_not_fit(made, tmp_path):
    base, out = made.base, tmp_path / "out"
    lora, adapter = made.folder / "fsdp2-lora", made.folder / "zero2-adapter"
    refused("holds a LoRA adapter; allowed: adapter='keep' or", lora, base, out)
    refused("holds no LoRA adapter", made.folder / "fsdp2", base, out, adapter="keep")
    for way in ("keep", "merge"):
        for settings, words in [
            (lora_config(r=8), "in shape (4, 64), where this LoRA of Qwen3ForCausalLM"),
            (lora_config(target_modules=["q_proj"]), "holds base_model.model.model.layers.0.self_attn.k_proj.lora_A"),
            (lora_config(modules_to_save=None), "which this LoRA of Qwen3ForCausalLM has not"),
        ]:
            refused(words, adapter, base, out, adapter=way, adapter_config=settings)
    moved = lora_config(init_lora_weights="pissa")
    refused("init_lora_weights='pissa', which is not merged", adapter, base, out, adapter="merge", adapter_config=moved)
    empty = tmp_path / "only config"
    empty.mkdir()
    shutil.copyfile(base / "config.json", empty / "config.json")
    merge = {"adapter": "merge", "adapter_config": lora_config()}
    refused("has no safetensors", adapter, empty, out, **merge)
    other = tmp_path / "other base"
    reference.new_model(num_hidden_layers=3).save_pretrained(other)
    refused("model.layers.2", adapter, other, out, **merge)


def test_arguments_out_of_range(made, tmp_path):
    for options, words in [({"adapter": "both"}, "adapter='both'"), ({"dtype": "int8"}, "dtype='int8'")]:
        with pytest.raises(ValueError, match=f"{words} is not known; allowed: "):
            convert_checkpoint(made.folder / "fsdp2", made.base, tmp_path / "out", **options)
