"""The shape of a model by name, folder or config: of what is not built in, the config is read and the model looked at.

The model is built on torch's ``meta`` device: tensors with a shape and a type but no memory, so a 70B model takes
a second and no RAM. https://docs.pytorch.org/docs/stable/meta.html
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import SpecError
from course_utils.models.shapes import ModelShape, builtin, layer_parameters, vocabulary_parameters
from course_utils.models.shapes_families import ACTIVATIONS, UNGATED, check_family, refused

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

# Names of one thing in different configurations, the usual one first.
NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "activation"),
}
FUSED = ("qkv_proj", "Wqkv", "c_attn", "query_key_value")
QK_NORMS = {"q_norm", "k_norm", "q_layernorm", "k_layernorm"}
ATTENTION_DROPOUT = ("attention_dropout", "attn_pdrop")


def shape_of(model: str | ModelShape, hub: bool = True) -> ModelShape:
    """The shape of a model given by name, by a folder or ``config.json``, or as a shape already.

    Well-known names need neither a network nor transformers. Everything else is built on the ``meta`` device (no
    memory) from its config and looked at.

    Args:
        hub: may the Hugging Face hub be asked for a name that is not built in.

    Raises:
        SpecError: no such name, folder or file; or not a plain transformer (mixtures of experts, encoder-decoders).
    """
    if isinstance(model, ModelShape):
        return model
    if (known := builtin().get(model)) and not Path(model).exists():
        return known
    return read_shape(model, hub)


def read_shape(model: str, hub: bool = True) -> ModelShape:
    """The shape of the model whose ``config.json`` is at the path ``model``, or on the hub under this name.

    Raises:
        SpecError: nothing was found, or the model is not a plain transformer.
    """
    return shape_of_config(_config(model, hub))


def _config(model: str, hub: bool) -> PreTrainedConfig:
    from transformers import AutoConfig

    from course_utils.hub import require_hub

    is_path = bool(model) and Path(model).exists()
    known = ", ".join(sorted(builtin()))
    if not is_path and not hub:
        raise SpecError(f"model={model!r} is neither a folder nor built in; allowed without the hub: {known}")
    with contextlib.suppress(Exception):  # a folder, a file, or in the hub client's cache
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    try:
        if not is_path:
            require_hub()  # says at once that there is no network; the hub's client retries for half a minute
        return AutoConfig.from_pretrained(model, local_files_only=is_path, trust_remote_code=False)
    except Exception as error:  # whatever the hub client, the JSON parser or the config class raises
        where = "holds no usable config.json" if is_path else "was not found on the Hugging Face hub"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(";")[0][:160]
        raise SpecError(f"model={model!r} {where} ({reason}); allowed offline: a folder, a shape, or {known}") from None


def _first(config: PreTrainedConfig, field: str) -> Any:
    return next((value for name in NAMES[field] if (value := getattr(config, name, None)) is not None), None)


def model_class(config: PreTrainedConfig) -> type:
    """The auto class the course trains: for causal language models where there is one, else for classification."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    named = (config.architectures or [""])[0]
    causal = type(config) in AutoModelForCausalLM._model_mapping
    is_encoder = type(config).__name__ in ("BertConfig", "RobertaConfig", "XLMRobertaConfig", "ElectraConfig")
    if named.endswith("ForMaskedLM"):
        return AutoModelForMaskedLM
    classify = named.endswith("ForSequenceClassification") or not causal or is_encoder
    return AutoModelForSequenceClassification if classify else AutoModelForCausalLM


def is_causal(model: str) -> bool:
    """Whether the model whose ``config.json`` is at the path ``model`` is trained to predict the next token.

    Raises:
        SpecError: there is none. The hub is not asked.
    """
    from transformers import AutoModelForCausalLM

    return model_class(_config(model, hub=False)) is AutoModelForCausalLM


def meta_model(config: PreTrainedConfig) -> nn.Module:
    """The model of a config without memory.

    Raises:
        SpecError: transformers cannot build it.
    """
    import torch

    try:
        with torch.device("meta"), contextlib.redirect_stdout(None):
            return model_class(config).from_config(config)
    except Exception as error:  # whatever a model's class makes of sizes that do not go together
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise refused(config, f"transformers cannot build it from its config ({reason})") from None


def shape_of_config(config: PreTrainedConfig) -> ModelShape:
    """The shape of a transformers config; the parameter counts are those of the real model on the ``meta`` device.

    Raises:
        SpecError: a family or a setting that the planner does not count, see ``check_family``.
    """
    check_family(config)
    return shape_of_model(meta_model(config), config)


def shape_of_model(model: nn.Module, config: PreTrainedConfig) -> ModelShape:
    """The shape of a built model (on any device).

    Raises:
        SpecError: as ``shape_of_config``, and where the config's sizes are not the model's.
    """
    family = check_family(config)
    sizes = {field: _first(config, field) for field in NAMES}
    activation = sizes.pop("activation") or "gelu"  # BLOOM and MPT name none
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    layers = _layers(model, sizes["num_hidden_layers"])
    layer = layers[-1]
    names = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    eager, shared = model.config._attn_implementation == "eager", _key_value_heads(config, heads) == 1 < heads
    attention = family.attention if eager or family.attention == "math" and shared else ""
    found = ModelShape(
        vocab_size=embedding.shape[0],
        num_key_value_heads=_key_value_heads(config, heads),
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        **sizes | {"intermediate_size": sizes["intermediate_size"] or 4 * hidden},
        gated_mlp=bool(names & {"gate_proj", "gate_up_proj", "Wi"}),
        tie_word_embeddings=output is not None and output.weight is embedding,
        layer_class=type(layer).__name__,
        norm=family.norm,
        norms=_norms(layer),
        post_norms=family.post_norms,
        qk_norm=bool(names & QK_NORMS),
        rotary=any("rotary" in name.lower() for name, _ in model.named_modules()),
        fused_projections=bool(names & set(FUSED)),
        activation=activation if activation in ("gelu_new", "relu") else "function",
        attention=attention or ("eager" if eager else "sdpa"),
        reordered=family.reordered,
        soft_capping=bool(getattr(config, "attn_logit_softcapping", None)),
        logit_capping=bool(getattr(config, "final_logit_softcapping", None)),
        dropouts=family.dropout[1] if getattr(config, family.dropout[0], 0) else 0,
        attention_dropout=eager and any(getattr(config, name, 0) for name in ATTENTION_DROPOUT),
        **_sliding(config, len(layers)),
        lm_head=output is not None,
    )
    if activation not in (ACTIVATIONS if found.gated_mlp else UNGATED):
        raise refused(config, f"what its activation function {activation!r} keeps is not counted")
    if embedding.shape[1] != hidden:
        raise refused(config, f"its embedding is {embedding.shape[1]} wide and its layers {hidden}")
    rest = sum(p.numel() for p in layer.parameters()) - layer_parameters(found)
    everything = sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for p in layers.parameters())
    outside = everything - in_layers - vocabulary_parameters(found)
    # Layers may differ by a norm or so (ModernBERT's first has none): the difference is kept outside.
    outside += in_layers - len(layers) * (layer_parameters(found) + rest)
    matrices = sum(p.numel() for p in layers.parameters() if p.dim() > 1)
    if rest < 0 or outside < 0 or matrices != len(layers) * layer_parameters(found):
        raise refused(config, "its layers hold other matrices than its config says")
    return found.model_copy(update={"layer_other": rest, "other": outside})


def _norms(layer: nn.Module) -> int:
    """Norms of a layer but those of queries and keys."""
    kinds = [(name, type(module).__name__.lower()) for name, module in layer.named_modules()]
    return sum("norm" in kind and not QK_NORMS & set(name.split(".")) for name, kind in kinds)


def _key_value_heads(config: PreTrainedConfig, heads: int) -> int:
    if getattr(config, "new_decoder_architecture", False):  # Falcon 40B
        return config.num_kv_heads
    if getattr(config, "multi_query", False):  # Falcon 7B, StarCoder
        return 1
    return getattr(config, "num_key_value_heads", None) or heads


def _sliding(config: PreTrainedConfig, count: int) -> dict[str, int]:
    """Local attention: the window, and in how many layers."""
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * count
    return {"sliding_window": window, "sliding_layers": kinds.count("sliding_attention") if window else 0}


def _layers(model: nn.Module, count: int) -> nn.ModuleList:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise SpecError(f"model {type(model).__name__} has no list of {count} layers; allowed: models of repeated layers")
