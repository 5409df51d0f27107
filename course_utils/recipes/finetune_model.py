"""The model and the tokenizer that ``finetune`` trains, from the course, a folder or the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from course_utils.models import load_causal_lm, load_classifier, load_tokenizer
from course_utils.models.local import CAUSAL_VOCAB_SIZE
from course_utils.recipes.command_line import from_folder_or_hub
from course_utils.recipes.finetune_settings import COURSE_MODELS, Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_words(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model; one without a padding token pads with its end token.

    Raises:
        ConnectionError: a hub name, and the hub is out of reach.
    """
    from transformers import AutoTokenizer

    if config.model_name_or_path == "course/causal":
        tokenizer = load_tokenizer(vocab_size=CAUSAL_VOCAB_SIZE)
        tokenizer.eos_token = tokenizer.sep_token  # the model's eos_token_id
        return tokenizer
    if config.model_name_or_path == "course/encoder":
        return load_tokenizer()
    with from_folder_or_hub(config.model_name_or_path, "model"):
        tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: Config, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None) -> PreTrainedModel:
    """The model with the task's head, and LoRA adapters on all its linear layers if asked for.

    Raises:
        ConnectionError: a hub name, and the hub is out of reach.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    if config.model_name_or_path in COURSE_MODELS:
        model = load_classifier(len(labels), **names) if labels else load_causal_lm()
        model = model if config.dtype == "auto" else model.to(getattr(torch, config.dtype))
    else:
        auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
        options = {"dtype": config.dtype, "attn_implementation": config.attn_implementation, **names}
        with from_folder_or_hub(config.model_name_or_path, "model"):
            model = auto.from_pretrained(config.model_name_or_path, **options)
    model.config.pad_token_id = tokenizer.pad_token_id
    return add_adapters(model, config) if config.use_peft else model


def add_adapters(model: PreTrainedModel, config: Config) -> Any:
    """``model`` inside PEFT's wrapper: its weights frozen, LoRA (Hu et al. 2021, arXiv:2106.09685) beside them."""
    from peft import LoraConfig, get_peft_model

    modules = config.lora_target_modules
    settings = LoraConfig(
        task_type="SEQ_CLS" if config.task == "classification" else "CAUSAL_LM",
        target_modules=modules[0] if len(modules) == 1 else modules,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    return get_peft_model(model, settings)
