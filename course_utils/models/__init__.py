"""Small models and tokenizers, loaded when first used: importing this costs nothing."""

from course_utils.lazy import attributes

_WHERE = {
    "load_tokenizer": "tokenizer",
    "train_tokenizer": "tokenizer",
    "encoder_config": "local",
    "load_classifier": "local",
    "load_masked_lm": "local",
    "load_causal_lm": "local",
}
__all__ = list(_WHERE)
__getattr__ = attributes(__name__, _WHERE)
