"""The sizes of a transformer that memory and speed depend on: ``ModelShape``, from a config, a name or by hand."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from course_utils.errors import SpecError, sentence


class ModelShape(BaseModel):
    """A transformer's sizes, under the names of Hugging Face configurations.

    The fields after ``layer_class`` describe the rest by what training keeps of it: which intermediate results autograd
    saves depends on norms, attention, activation function, dropout and projections. The kinds of norm: ``rms`` (as in
    Llama: normalised in fp32, weighted in the layer's type), ``rms32`` (as in Gemma: weighted in fp32 too), ``layer``
    (``nn.LayerNorm``), ``layer32`` (OLMo's: in fp32, without weights), ``mean32`` (Cohere's, written out in Python).

    Raises:
        SpecError: a size is missing, unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    gated_mlp: bool = True
    tie_word_embeddings: bool = False
    layer_class: str = ""  # the class FSDP wraps, such as "Qwen3DecoderLayer"; empty: asked of the model
    norm: Literal["rms", "rms32", "layer", "layer32", "mean32"] = "rms"
    norms: int = Field(2, ge=1)  # norms of a layer as wide as its input; 1: attention and MLP read the same one
    post_norms: int = Field(0, ge=0)  # of these, how many read a matrix's result, not the sum through the layers
    qk_norm: bool = False  # queries and keys are normalised per head (Qwen3)
    rotary: bool = True
    fused_projections: bool = False  # queries, keys and values from one matrix, gate and up from another
    # gelu_new: GPT-2's, written out in Python; relu keeps its result only, which the next matrix needs anyway
    activation: Literal["function", "gelu_new", "relu"] = "function"
    # eager: the scores are tensors; eager32: queries and keys are made fp32 first; math: SDPA's fallback, all in fp32
    attention: Literal["sdpa", "eager", "eager32", "math"] = "sdpa"
    reordered: bool = False  # rotated queries are put together anew, so that SDPA's result has to be copied into order
    soft_capping: bool = False  # scores pass a tanh (Gemma 2)
    logit_capping: bool = False  # so do the scores over the vocabulary
    dropouts: int = Field(0, ge=0)  # dropouts of a layer on tensors as wide as its input
    attention_dropout: bool = False  # on the scores; SDPA keeps only the state of the random numbers
    sliding_layers: int = Field(0, ge=0)  # layers whose tokens see only their ``sliding_window`` neighbours
    sliding_window: int = Field(0, ge=0)
    lm_head: bool = True  # scores over the vocabulary at every position; False: a classifier on top
    layer_other: int = Field(0, ge=0)  # parameters of a layer besides its matrix multiplications: norms, biases
    other: int = Field(0, ge=0)  # parameters outside layers and vocabulary: last norm, learned positions, classifier

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError(sentence(error)) from None

    @property
    def query_size(self) -> int:
        """Width of all queries of a token."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all keys of a token; the values have the same."""
        return self.num_key_value_heads * self.head_dim


def linears(shape: ModelShape) -> list[tuple[int, int]]:
    """The matrix multiplications of one layer as (inputs, outputs); fused projections are one matrix."""
    h, f, q, kv = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_value_size
    attention = [(h, q + 2 * kv)] if shape.fused_projections else [(h, q), (h, kv), (h, kv)]
    if not shape.gated_mlp:
        return [*attention, (q, h), (h, f), (f, h)]
    return [*attention, (q, h), *([(h, 2 * f)] if shape.fused_projections else [(h, f), (h, f)]), (f, h)]


def layer_parameters(shape: ModelShape) -> int:
    """Parameters of one layer: the unit that FSDP and ZeRO-3 gather."""
    return sum(inputs * outputs for inputs, outputs in linears(shape)) + shape.layer_other


def matrix_parameters(shape: ModelShape) -> int:
    """Weights of all matrix multiplications a token passes: the layers' and the output layer's."""
    output = shape.vocab_size * shape.hidden_size if shape.lm_head else 0
    return shape.num_hidden_layers * sum(inputs * outputs for inputs, outputs in linears(shape)) + output


def vocabulary_parameters(shape: ModelShape) -> int:
    """Parameters of the embedding and, where it is a matrix of its own, of the output layer."""
    matrices = 2 if shape.lm_head and not shape.tie_word_embeddings else 1
    return matrices * shape.vocab_size * shape.hidden_size


def parameter_count(shape: ModelShape) -> int:
    """All parameters; equal to ``model.num_parameters()`` for every shape that ``shape_of`` returns (tested)."""
    return shape.num_hidden_layers * layer_parameters(shape) + vocabulary_parameters(shape) + shape.other


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Parameters of LoRA adapters on all linear layers (Hu et al. 2021, section 4.1: ``r (inputs + outputs)`` each)."""
    return shape.num_hidden_layers * sum(rank * (inputs + outputs) for inputs, outputs in linears(shape))


def _sizes(vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> dict:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def _llama(*sizes: int, **more: Any) -> ModelShape:
    hidden = sizes[1]
    more = {"layer_class": "LlamaDecoderLayer", "layer_other": 2 * hidden, "other": hidden} | more
    return ModelShape(**_sizes(*sizes), **more)


def _qwen2(*sizes: int, tied: bool = False) -> ModelShape:
    _, hidden, _, _, heads, kv_heads, head_dim = sizes
    bias = (heads + 2 * kv_heads) * head_dim  # on queries, keys and values only
    return _llama(*sizes, layer_class="Qwen2DecoderLayer", layer_other=2 * hidden + bias, tie_word_embeddings=tied)


def _qwen3(*sizes: int, tied: bool = False) -> ModelShape:
    more = {"layer_class": "Qwen3DecoderLayer", "layer_other": 2 * sizes[1] + 2 * sizes[6]}
    return _llama(*sizes, **more, qk_norm=True, tie_word_embeddings=tied)


def _gpt2(hidden: int, layers: int, heads: int) -> ModelShape:
    return ModelShape(
        **_sizes(50257, hidden, 4 * hidden, layers, heads, heads, hidden // heads),
        **{"layer_class": "GPT2Block", "norm": "layer", "activation": "gelu_new", "dropouts": 2},
        **{"gated_mlp": False, "tie_word_embeddings": True, "rotary": False, "fused_projections": True},
        **{"layer_other": 4 * hidden + (3 + 1 + 4 + 1) * hidden, "other": 1024 * hidden + 2 * hidden},
    )


@cache
def builtin() -> dict[str, ModelShape]:
    """Well-known models, so that a plan needs no network; sizes from the models' published ``config.json``."""
    mistral = {"layer_class": "MistralDecoderLayer", "sliding_layers": 32, "sliding_window": 4096}
    return {
        "openai-community/gpt2": _gpt2(768, 12, 12),
        "openai-community/gpt2-xl": _gpt2(1600, 48, 25),
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _llama(32000, 2048, 5632, 22, 32, 4, 64),
        "HuggingFaceTB/SmolLM2-135M": _llama(49152, 576, 1536, 30, 9, 3, 64, tie_word_embeddings=True),
        "meta-llama/Llama-2-7b-hf": _llama(32000, 4096, 11008, 32, 32, 32, 128),
        "meta-llama/Llama-3.1-8B": _llama(128256, 4096, 14336, 32, 32, 8, 128),
        "meta-llama/Llama-3.1-70B": _llama(128256, 8192, 28672, 80, 64, 8, 128),
        "meta-llama/Llama-3.2-1B": _llama(128256, 2048, 8192, 16, 32, 8, 64, tie_word_embeddings=True),
        "mistralai/Mistral-7B-v0.1": _llama(32000, 4096, 14336, 32, 32, 8, 128, **mistral),
        "Qwen/Qwen2.5-0.5B": _qwen2(151936, 896, 4864, 24, 14, 2, 64, tied=True),
        "Qwen/Qwen2.5-7B": _qwen2(152064, 3584, 18944, 28, 28, 4, 128),
        "Qwen/Qwen3-0.6B": _qwen3(151936, 1024, 3072, 28, 16, 8, 128, tied=True),
        "Qwen/Qwen3-1.7B": _qwen3(151936, 2048, 6144, 28, 16, 8, 128, tied=True),
        "Qwen/Qwen3-4B": _qwen3(151936, 2560, 9728, 36, 32, 8, 128, tied=True),
        "Qwen/Qwen3-8B": _qwen3(151936, 4096, 12288, 36, 32, 8, 128),
        "Qwen/Qwen3-32B": _qwen3(151936, 5120, 25600, 64, 64, 8, 128),
    }
