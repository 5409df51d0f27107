"""A learner's project in miniature: a Llama of 139,584 parameters with its tokenizer, and rows as JSON lines."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

WORDS = [
    "the",
    "a",
    "model",
    "batch",
    "loss",
    "step",
    "rank",
    "shard",
    "weight",
    "gradient",
    "mean",
    "sum",
    "of",
    "over",
    "and",
    "is",
    "not",
    "one",
    "two",
    "three",
]
PARAMETERS = 139_584
ROWS = 96


class Project(NamedTuple):
    folder: Path
    model: Path
    encoder: Path  # ModernBERT, no weights lost: the classifier whose loss needs care
    texts: Path  # a folder with train.jsonl, as TRL's --dataset_name wants it
    classes: Path


def make_project(folder: Path) -> Project:
    """Write model folders and rows; the same files every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from course_utils.models import load_classifier
    from course_utils.models.tokenizer import train_tokenizer

    project = Project(folder, folder / "model", folder / "encoder", folder / "texts", folder / "classes.jsonl")
    project.texts.mkdir(parents=True)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(6, 20))) for _ in range(ROWS)]
    (project.texts / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [{"text": text, "label": "long" if len(text) > 60 else "short"} for text in texts]
    project.classes.write_text("".join(json.dumps(row) + "\n" for row in rows))

    tokenizer = train_tokenizer(texts, 500)
    tokenizer.eos_token = "[SEP]"
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    words = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "use_cache": False}
    torch.manual_seed(0)
    causal = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **words, max_position_embeddings=64))
    no_dropout = {"embedding_dropout": 0.0, "classifier_dropout": 0.0}
    encoder = load_classifier(2, **sizes, **no_dropout, num_attention_heads=4, max_position_embeddings=64)
    for model, place in ((causal, project.model), (encoder, project.encoder)):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return project


@contextmanager
def offline_project(folders: pytest.TempPathFactory, name: str) -> Iterator[Project]:
    """A project in a folder called ``name``, with the hub switched off and a Hugging Face cache of its own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HOME", str(folders.mktemp("hf")))
        environment.setenv("HF_HUB_OFFLINE", "1")
        yield make_project(folders.mktemp("run") / name)
