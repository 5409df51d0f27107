"""The sizes of a transformer that memory and speed depend on: ``ModelShape``, from a config, a name or by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from course_utils.launch.errors import SpecError, sentence


class ModelShape(BaseModel):
    """A transformer's sizes, under the names of Hugging Face configurations.

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

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError(sentence(error)) from None
