"""A name that PEFT still uses and transformers has renamed, so that PEFT's calls announce no deprecation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def new_name() -> Iterator[None]:
    """Inside the block ``is_gradient_checkpointing``, which PEFT asks a model for, is ``is_activation_checkpointing``.

    Transformers 5.23 announces the old name's end with a ``FutureWarning``; every other one still speaks up.
    """
    from transformers import PreTrainedModel

    old = PreTrainedModel.is_gradient_checkpointing
    PreTrainedModel.is_gradient_checkpointing = PreTrainedModel.is_activation_checkpointing
    try:
        yield
    finally:
        PreTrainedModel.is_gradient_checkpointing = old
