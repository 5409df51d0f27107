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

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

# Names of one thing in different configurations, the usual one first.
NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "activation"),
}
FUSED = ("qkv_proj", "Wqkv", "c_attn", "query_key_value")


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
        return AutoConfig.from_pretrained(model, local_files_only=True)  # no remote code: the default
    try:
        if not is_path:
            require_hub()  # says at once that there is no network; the hub's client retries for half a minute
        return AutoConfig.from_pretrained(model, local_files_only=is_path)
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
    """The model of a config without memory."""
    import torch

    with torch.device("meta"), contextlib.redirect_stdout(None):
        return model_class(config).from_config(config)


def shape_of_config(config: PreTrainedConfig) -> ModelShape:
    """The shape of a transformers config; the parameter counts are those of the real model on the ``meta`` device."""
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(config, name, None):
            raise SpecError(f"model has {name}={getattr(config, name)}; allowed: models without mixtures of experts")
    sizes = {field: _first(config, field) for field in NAMES}
    if config.is_encoder_decoder or not all(sizes[name] for name in NAMES if name != "intermediate_size"):
        raise SpecError(f"model of type {config.model_type!r} is not known; allowed: encoders and decoders of text")
    return shape_of_model(meta_model(config), config, sizes)


def shape_of_model(model: nn.Module, config: PreTrainedConfig, sizes: dict[str, Any] | None = None) -> ModelShape:
    """The shape of a built model (on any device)."""
    from torch import nn

    sizes = sizes or {field: _first(config, field) for field in NAMES}
    layers = _layers(model, sizes["num_hidden_layers"])
    layer = layers[-1]
    names = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    activation = sizes.pop("activation")
    output = model.get_output_embeddings()
    found = ModelShape(
        vocab_size=model.get_input_embeddings().weight.shape[0],
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        **sizes | {"intermediate_size": sizes["intermediate_size"] or 4 * hidden},
        gated_mlp=bool(names & {"gate_proj", "gate_up_proj", "Wi"}),
        tie_word_embeddings=output is not None and output.weight is model.get_input_embeddings().weight,
        layer_class=type(layer).__name__,
        norm="layer" if any(isinstance(module, nn.LayerNorm) for module in layer.modules()) else "rms",
        qk_norm=bool(names & {"q_norm", "q_layernorm"}),
        rotary=any("rotary" in name.lower() for name, _ in model.named_modules()),
        fused_projections=bool(names & set(FUSED)),
        activation="gelu_new" if activation == "gelu_new" else "function",
        **_sliding(config, len(layers)),
        lm_head=output is not None,
    )
    rest = sum(p.numel() for p in layer.parameters()) - layer_parameters(found)
    everything = sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for p in layers.parameters())
    outside = everything - in_layers - vocabulary_parameters(found)
    # Layers may differ by a norm or so (ModernBERT's first has none): the difference is kept outside.
    outside += in_layers - len(layers) * (layer_parameters(found) + rest)
    if rest < 0 or outside < 0:
        raise SpecError(f"model of type {config.model_type!r} is not known; allowed: encoders and decoders of text")
    return found.model_copy(update={"layer_other": rest, "other": outside})


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
