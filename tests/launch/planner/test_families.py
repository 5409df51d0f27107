"""Every family that is planned, against the truth; every type that transformers knows gets an answer.

A tiny model of each family takes a step whose allocations torch's memory tracker counts: parameters exactly, all that
a step holds besides its states within 10 %, the peak within 5 %. ``make test`` runs those that differ from Llama in
kind, ``make test-long`` all of them.
"""

import json

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from course_utils.errors import SpecError
from course_utils.launch.__main__ import main
from course_utils.launch.planner.measured import measured_shard, measured_step
from course_utils.launch.planner.plan import GIB, plan
from course_utils.launch.planner.report import plan_table
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of_config
from course_utils.models.shapes import parameter_count
from course_utils.models.shapes_families import FAMILIES, answer, check_family, listing

TINY = {  # names in different configurations: value
    ("vocab_size",): 4096,
    ("hidden_size", "n_embd", "d_model", "dim"): 256,
    ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size"): 768,
    ("embedding_size",): 256,
    ("num_hidden_layers", "n_layer", "n_layers"): 2,
    ("num_attention_heads", "n_head", "n_heads", "num_heads"): 4,
    ("num_key_value_heads",): 2,
    ("head_dim",): 64,
    ("max_position_embeddings", "n_positions", "max_seq_len"): 1024,
    ("pad_token_id",): 0,
    ("bos_token_id",): 1,
    ("eos_token_id",): 2,
    ("cls_token_id",): 1,
    ("sep_token_id",): 2,
    ("use_cache",): False,
}
# With checkpointing the masks that each layer is handed weigh most, and are not counted: short by up to 12 %.
MASKED = ("bloom", "modernbert", "modernbert-decoder")
OWN = {
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "falcon, 40B": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


def tiny(name, drops=False, **more):
    """The config of a family's smallest model; without dropout unless asked for."""
    kind = name.partition(",")[0]
    usual = CONFIG_MAPPING[kind]().to_dict()
    found = {}
    for names, value in TINY.items():
        given = next((one for one in names if one in usual and not (kind == "gpt_neo" and one == "num_layers")), None)
        if given is not None:
            found[given] = value
    if kind == "gpt_neo":
        found.pop("num_hidden_layers", None)
    if not drops:
        found |= {one: 0.0 for one, value in usual.items() if "drop" in one and isinstance(value, float)}
    return CONFIG_MAPPING[kind](**found | OWN.get(name, {}) | more)


def agrees(config, working=0.10, peak=0.05, **fields):
    """The plan of a step equals what the tracker counts, within these shares."""
    shape = shape_of_config(config)
    spec = Spec(**{"model": shape, "strategy": "ddp", "gpus_per_node": 1, "sequence_length": 512} | fields)
    found, ours = (measured_shard if spec.is_fsdp else measured_step)(spec, config), plan(spec)
    assert found.shape == shape
    if spec.world_size == 1:
        assert found.weights == parameter_count(shape) * (2 if spec.precision == "bf16_weights" else 4)
    kept = {name: size for name, size in ours.memory.items() if name not in ("margin", "buckets")}
    states = sum(size for name, size in kept.items() if name in ("weights", "gradients", "optimizer"))
    assert sum(kept.values()) - states == pytest.approx(found.working, rel=working)
    assert sum(kept.values()) == pytest.approx(found.peak, rel=peak)
    return ours


AUTOCAST, LOW, AGAIN = (
    {"micro_batch": 2},
    {"precision": "bf16_weights", "sequence_length": 1024},
    {"checkpointing": True},
)
SAMPLE = {  # what each is there for
    "gemma2": (tiny, AUTOCAST),  # eager attention, soft-capping, four norms weighted in fp32
    "gptj": (tiny, LOW),  # eager attention in fp32, one norm
    "falcon": (tiny, LOW),  # one key-value head: no fused kernel
    "glm4": (tiny, AUTOCAST),  # norms behind the matrices, half of each head rotated
    "cohere": (tiny, LOW),  # its own norm
    "opt": (lambda name: tiny(name, drops=True), AUTOCAST),  # relu, dropout
    "bert": (lambda name: tiny(name, drops=True), {"micro_batch": 8}),  # dropout in SDPA too
    "bloom": (lambda name: tiny(name, hidden_dropout=0.1, attention_dropout=0.1), LOW),  # dropout of eager scores
}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_step_of_a_family(name):
    config, fields = SAMPLE[name]
    ours = agrees(config(name), **fields)
    assert (ours.shape.attention != "sdpa") == ("attention is not fused for this model" in plan_table(ours))


@pytest.mark.long
@pytest.mark.parametrize("fields", [AUTOCAST, LOW, AGAIN | LOW], ids=["autocast", "bf16 weights", "checkpointing"])
@pytest.mark.parametrize("name", [*FAMILIES, "falcon, 40B"])
def test_a_step_of_every_family(name, fields):
    several = {"micro_batch": 8} if shape_of_config(tiny(name)).lm_head is False else {}
    looser = {"working": 0.12, "peak": 0.12} if name in MASKED and fields.get("checkpointing") else {}
    agrees(tiny(name), **fields | several | looser)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.dropout[0]])
def test_a_step_of_every_family_with_dropout(name):
    agrees(tiny(name, drops=True, **{FAMILIES[name].dropout[0]: 0.1}), micro_batch=8)


def test_gemma2_sharded_over_eight_gpus():
    ours = agrees(tiny("gemma2"), strategy="fsdp2", gpus_per_node=8)
    assert ours.shape.attention == "eager" and ours.shape.soft_capping and ours.shape.norms == 4


def gemma2_9b():
    sizes = {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16}
    heads = {"num_key_value_heads": 8, "head_dim": 256}
    return CONFIG_MAPPING["gemma2"](**sizes, **heads, vocab_size=256000, use_cache=False)


EIGHT = {"strategy": "fsdp2", "gpus_per_node": 8, "sequence_length": 3072}


@pytest.mark.long
def test_gemma2_9b_whole():
    """The real model, all 42 layers counted: what the next test compares the plan with."""
    ours = agrees(gemma2_9b(), working=0.01, peak=0.01, **EIGHT)
    assert ours.total - ours.memory["margin"] == pytest.approx(105.46 * GIB, rel=0.001)


def test_eager_scores_grow_with_the_square_of_a_sequence():
    """Gemma 2 9B on eight GPUs: 105.46 GiB by the tracker; once it was said to fit, with 50.3."""
    spec = Spec(model=shape_of_config(gemma2_9b()), **EIGHT)
    assert plan(spec).total - plan(spec).memory["margin"] == pytest.approx(105.46 * GIB, rel=0.01)
    assert not plan(spec).fits
    once, twice = (plan(spec.but(sequence_length=length)).moments["loss"]["activations"] for length in (4096, 8192))
    assert 2.5 < twice / once < 4
    with pytest.raises(SpecError, match="context_parallel=2 cuts sequences inside SDPA"):
        plan(spec.but(context_parallel=2))


REFUSED = {
    "t5": "an encoder and a decoder",
    "bart": "an encoder and a decoder",
    "mixtral": "a mixture of experts",
    "bamba": "linear attention, state",
    "falcon_h1": "linear attention, state",
    "mamba": "linear attention, state",
    "vit": "neither a causal language model nor a classifier of text",
    "gemma3": "more than one model inside",
    "qwen2_5_vl": "more than one model inside",
    "deberta-v2": "disentangled attention",
    "albert": "share the weights of one",
    "xglm": "in its own way",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_counted_is_refused(kind, tmp_path, monkeypatch, capsys):
    """Exit code 1 means that a run does not fit; a refusal is 2, in one sentence that says why."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    assert main(["plan", "--model", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: model of type {kind!r} cannot be planned") and REFUSED[kind] in line
    assert "; allowed: the types that 'python -m course_utils.launch families' lists" in line


@pytest.mark.parametrize(
    ("kind", "setting", "says"),
    [
        ("llama", {"hidden_act": "gelu_fast"}, "activation function 'gelu_fast'"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
        ("falcon", {"alibi": True}, "alibi=True"),
        ("electra", {"embedding_size": 128}, "its embedding is 128 wide"),
        ("llama", {"hidden_act": "no_such_function"}, "transformers cannot build it from its config"),
        ("llama", {"hidden_size": 100, "num_attention_heads": 7}, "holds no usable config.json"),
    ],
)
def test_a_setting_that_is_not_counted_is_refused(kind, setting, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text(json.dumps(tiny(kind).to_dict() | setting))
    assert main(["plan", "--model", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.long
@pytest.mark.parametrize("kind", CONFIG_MAPPING_NAMES)
def test_every_type_gets_an_answer(kind, tmp_path, monkeypatch, capsys):
    """The plan of each default config: 0 or 1 where its family is in the table, else 2 and one sentence."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        config = CONFIG_MAPPING[kind]()
        config.save_pretrained(tmp_path)
    except Exception as error:  # a type without defaults of its own
        pytest.skip(f"{kind} has no default config: {type(error).__name__}")
    code = main(["plan", "--model", str(tmp_path)])
    printed = capsys.readouterr()
    if code == 2:
        assert len(printed.err.splitlines()) == 1 and printed.err.startswith("error: model")
        assert printed.out == ""
    else:
        assert code in (0, 1) and config.model_type in FAMILIES


def test_the_families_are_listed(capsys):
    assert main(["families"]) == 0
    assert capsys.readouterr().out == listing() + "\n"
    assert all(f"\n{kind} " in listing() for kind in FAMILIES)
    assert all(check_family(CONFIG_MAPPING[kind]()) for kind in ("llama", "gemma2", "falcon"))
    assert main(["families", "gemma2", "t5", "gpt-sw3", "nougat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "gemma2: accepted",
        "t5: refused",
        "gpt-sw3: accepted as gpt2",
        "nougat: refused",
    ]
    assert answer("mixtral").startswith("mixtral: refused; model of type 'mixtral' cannot be planned")
    assert main(["families", "no-such-type"]) == 2
    assert "'no-such-type' is not a model_type" in capsys.readouterr().err
