"""Which models the planner can count: one row per ``model_type``, and a reason for every model that it refuses.

Most of what a layer keeps is looked up in the built model (``course_utils.models.configs.shape_of_model``): its norms,
its attention (SDPA, or eager where transformers has nothing else for it), its activation function, its windows. A row
says what cannot be seen from outside. A type is listed only when a step of its real model, counted by torch's memory
tracker, agrees with the plan (tests/launch/planner/test_families.py); what is not listed is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from course_utils.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Family(NamedTuple):
    """What is known of a type beyond its config.

    ``norm``, ``post_norms``, ``reordered``: as in ``ModelShape``. ``attention``: "eager32" where scores are computed in
    fp32, "math" where one key-value head is broadcast, which no fused kernel of SDPA takes; else what transformers
    picks. ``dropout``: the config's field, and on how many of a layer's hidden states it acts. ``only``: fields of the
    config whose other values change the layers in a way that is not counted here.
    """

    norm: str = "rms"
    post_norms: int = 0
    attention: str = ""
    reordered: bool = False
    dropout: tuple[str, int] = ("", 0)
    only: tuple[tuple[str, Any], ...] = ()


BERT = Family("layer", dropout=("hidden_dropout_prob", 2), only=(("is_decoder", False),))

FAMILIES: dict[str, Family] = {
    # decoders with RMSNorm and a gated MLP
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "ministral3": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "smollm3": Family(),
    "granite": Family(),
    "arcee": Family(),
    "cwm": Family(),
    "ernie4_5": Family(),
    "seed_oss": Family(dropout=("residual_dropout", 2)),
    "phi3": Family(dropout=("resid_pdrop", 2), reordered=True),
    "glm": Family(reordered=True),
    "glm4": Family(post_norms=2, reordered=True),
    "exaone4": Family(post_norms=2),
    "hyperclovax": Family(post_norms=2, only=(("use_post_norm", True),)),
    "helium": Family("rms32"),
    "olmo2": Family("rms32", post_norms=2),
    "olmo3": Family("rms32", post_norms=2),
    "gemma": Family("rms32"),
    "gemma2": Family("rms32"),
    "gemma3_text": Family("rms32"),
    "vaultgemma": Family("rms32"),
    # decoders with other norms
    "olmo": Family("layer32"),
    "cohere": Family("mean32", only=(("use_qk_norm", False),)),
    "cohere2": Family("mean32"),
    "starcoder2": Family("layer", dropout=("residual_dropout", 2)),
    "stablelm": Family(
        "layer",
        dropout=("hidden_dropout", 1),
        only=(("qk_layernorm", False), ("use_parallel_residual", False)),
        reordered=True,
    ),
    "nemotron": Family("layer", reordered=True),
    "persimmon": Family("layer", dropout=("hidden_dropout", 1), reordered=True),
    "phi": Family("layer", dropout=("resid_pdrop", 2), only=(("qk_layernorm", False),), reordered=True),
    "gpt2": Family("layer", dropout=("resid_pdrop", 2), only=(("add_cross_attention", False),)),
    "gpt_bigcode": Family("layer", dropout=("resid_pdrop", 2), only=(("add_cross_attention", False),)),
    "gpt_neox": Family("layer", dropout=("hidden_dropout", 2)),
    "gpt_neo": Family("layer", attention="eager32", dropout=("resid_dropout", 2)),
    "gptj": Family("layer", attention="eager32", dropout=("resid_pdrop", 2)),
    "codegen": Family("layer", attention="eager32", dropout=("resid_pdrop", 2)),
    "opt": Family("layer", dropout=("dropout", 2)),
    "bloom": Family("layer", dropout=("hidden_dropout", 2)),
    "falcon": Family("layer", attention="math", dropout=("hidden_dropout", 2), only=(("alibi", False),)),
    "mpt": Family("layer"),
    "modernbert-decoder": Family("layer"),
    # encoders
    "bert": BERT,
    "roberta": BERT,
    "camembert": BERT,
    "xlm-roberta": BERT,
    "electra": BERT,
    "distilbert": Family("layer", dropout=("dropout", 1)),
    "modernbert": Family("layer"),
    "eurobert": Family(),
}

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh")  # a gated MLP's, one kernel each
UNGATED = (*ACTIVATIONS, "gelu_new", "relu", "relu2")
SAID = {  # types that people ask for, and why a row would not do
    **dict.fromkeys(("deberta", "deberta-v2"), "its disentangled attention keeps several score matrices of its own"),
    "albert": "all its layers share the weights of one",
    **dict.fromkeys(("funnel", "longformer", "big_bird", "reformer"), "its attention is another than over all tokens"),
    **dict.fromkeys(
        ("xlnet", "xlm", "flaubert", "ctrl", "openai-gpt", "xglm"), "its attention is written in its own way"
    ),
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
OTHER_LAYERS = ("linear", "hybrid", "mamba", "conv", "moe", "mlp", "indexed", "chunked", "compressed", "recurrent")
STATE_SPACE = ("state_size", "mamba_d_state", "ssm_state_size", "mamba_d_conv", "linear_num_value_heads", "lru_width")


def refused(config: PreTrainedConfig, reason: str) -> SpecError:
    """The error that says in one sentence why a model is not planned."""
    kind = getattr(config, "model_type", "") or type(config).__name__
    return SpecError(
        f"model of type {kind!r} cannot be planned: {reason}; "
        "allowed: the types that 'python -m course_utils.launch families' lists"
    )


def check_family(config: PreTrainedConfig) -> Family:
    """What is known of a config's type.

    Raises:
        SpecError: the type, or a setting of it, is not counted; the sentence says why.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise refused(config, reason_against(config))
    if getattr(config, "quantization_config", None):
        raise refused(config, "its weights are quantized, and the plan counts 16 or 32 bits a weight")
    for field, wanted in family.only:
        if (value := getattr(config, field, wanted)) != wanted:
            raise refused(config, f"{field}={value!r} changes its layers in a way that is not counted")
    return family


def reason_against(config: PreTrainedConfig) -> str:
    """Why a type that is not in the table is not: the first that holds."""
    from transformers.models.auto import modeling_auto

    parts = [name for name in type(config).sub_configs if "text" in name or "language" in name or "decoder" in name]
    if config.model_type in SAID:
        return SAID[config.model_type]
    if config.is_encoder_decoder:
        return "it has an encoder and a decoder, and the plan counts one stack of layers"
    if parts:
        return f"it has more than one model inside; plan the one of text alone, from its {parts[0]}"
    for name in EXPERTS:
        if value := _setting(config, name):
            return f"it is a mixture of experts ({name}={value}), of which each token passes a few"
    kinds = {str(kind) for kind in _setting(config, "layer_types") or ()}
    has_states = any(_setting(config, name) is not None for name in STATE_SPACE)
    if has_states or any(word in kind for kind in kinds for word in OTHER_LAYERS):
        return "its layers hold linear attention, state spaces or another mixer than attention, whose memory differs"
    text = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )
    if not any(config.model_type in names for names in text):
        return "transformers has neither a causal language model nor a classifier of text for it"
    return "no row of the table says what its layers keep, and a guess would be worse than none"


def _setting(config: PreTrainedConfig, name: str) -> Any:
    """A config's setting; None where it has none. Some raise an error of their own: another value for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:
        return "different in each layer"


def answer(kind: str) -> str:
    """What the planner says to a ``model_type``: one line, from the type's default config.

    Raises:
        SpecError: transformers knows no such type.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    if kind in FAMILIES:
        return f"{kind}: accepted; {_row(FAMILIES[kind])}"
    if kind not in CONFIG_MAPPING_NAMES:
        raise SpecError(f"type={kind!r} is not a model_type that transformers knows; allowed: as in a config.json")
    try:
        config = CONFIG_MAPPING[kind]()
    except Exception as error:  # a type without usable defaults
        return f"{kind}: refused; its default config cannot be made ({str(error).splitlines()[0][:100]})"
    try:
        check_family(config)
    except SpecError as error:
        return f"{kind}: refused; {error}"
    return f"{kind}: accepted as {config.model_type}"


NORMS = {
    "rms": "RMSNorm",
    "rms32": "RMSNorm weighted in fp32",
    "layer": "LayerNorm",
    "layer32": "LayerNorm in fp32 without weights",
    "mean32": "LayerNorm in fp32, written out",
}
ATTENTIONS = {
    "": "",
    "eager32": "eager attention in fp32",
    "math": "SDPA; its unfused fallback with one key-value head",
}


def _row(family: Family) -> str:
    parts = [NORMS[family.norm], ATTENTIONS[family.attention]]
    parts += [f"{family.post_norms} norms behind the matrices"] if family.post_norms else []
    parts += [f"{field}={value!r} only" for field, value in family.only]
    return "; ".join(part for part in parts if part)


def listing() -> str:
    """Every accepted type with what is known of it, and the reasons for which others are refused."""
    width = max(map(len, FAMILIES)) + 2
    rows = [f"{kind:{width}}{_row(family)}" for kind, family in FAMILIES.items()]
    return "\n".join(
        [
            f"{len(rows)} model types are planned; a step's peak is tested against torch's memory tracker.",
            "Attention is SDPA or, where transformers has no other, eager, whose scores are counted.",
            *rows,
            "With checkpointing, masks of bloom, modernbert and modernbert-decoder are not counted: up to 12 % short.",
            "Refused with exit code 2 and one sentence: encoder-decoders, mixtures of experts, linear attention, state",
            "spaces, images or sound (plan the text model inside), quantized weights, and what is not listed.",
            "'families TYPE ...' says why for a type.",
        ]
    )
