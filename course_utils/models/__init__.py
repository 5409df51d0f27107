"""Small models and tokenizers. Importing this costs nothing: loaders import what they need."""

from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.models.local import encoder_config, load_causal_lm, load_classifier, load_masked_lm
from course_utils.models.tokenizer import load_tokenizer, train_tokenizer

__all__ = [
    "encoder_config",
    "load_causal_lm",
    "load_chat_tokenizer",
    "load_classifier",
    "load_masked_lm",
    "load_tokenizer",
    "train_tokenizer",
]
