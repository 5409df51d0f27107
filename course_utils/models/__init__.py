"""Small models and tokenizers, loaded when first used: importing this costs nothing."""

from importlib import import_module

_WHERE = {
    "load_tokenizer": "tokenizer",
    "train_tokenizer": "tokenizer",
    "encoder_config": "local",
    "load_classifier": "local",
    "load_masked_lm": "local",
    "load_causal_lm": "local",
}
__all__ = list(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
