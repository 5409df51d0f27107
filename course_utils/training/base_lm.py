"""A small language model that has learnt something, trained once and cached: the base that lesson 10 fine-tunes.

It has seen plain sentences, and sentences followed by a topic: "...\\n\\nTopic: arrays". So it tells the libraries
apart and knows a little English, but it has met no instruction and never had to name a library. Why not random weights:
nobody fine-tunes them, and what is forgotten has to be known first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from course_utils.data.batches import IGNORED, ShuffledBatches
from course_utils.data.cache import cached_folder
from course_utils.data.docstrings import library_versions
from course_utils.data.instructions import InstructionCollator, Template, encode
from course_utils.data.text import FORMAT, load_classification
from course_utils.hub import check_source
from course_utils.models.chat_tokenizer import CHAT_TEMPLATE, load_chat_tokenizer
from course_utils.models.local import load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE_ROWS = 9_000  # of the training split; the lesson fine-tunes on the others
TOPICS = {
    "accelerate": "devices",
    "datasets": "rows",
    "matplotlib": "plots",
    "numpy": "arrays",
    "pandas": "tables",
    "scipy": "science",
    "sklearn": "learning",
    "sympy": "algebra",
    "torch": "tensors",
    "transformers": "language",
}
TAGGED = Template("{text}\n\nTopic:", " {topic}")
STEPS, BATCH_SIZE, PLAIN_ROWS, LEARNING_RATE = 300, 64, 24, 3e-3
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "head_dim": 24,
    "max_position_embeddings": 128,
    "initializer_range": 0.08,  # at width 96 the usual .02 loses a third of the accuracy in as many steps
}


def load_base_lm(source: str = "local") -> PreTrainedModel:
    """The base of lesson 10, in evaluation mode. Local: 0.36M parameters, built in about 30 CPU-seconds, then cached.

    Hub: Qwen3-0.6B in float32.

    Raises:
        ValueError: unknown ``source``.
        ConnectionError: ``source="hub"`` without a network.
        OSError: the cache cannot be written.
    """
    check_source(source)
    if source == "hub":
        return load_causal_lm("hub").eval()
    from transformers import AutoModelForCausalLM

    made_from = {"format": FORMAT, "sizes": SIZES, "template": CHAT_TEMPLATE, **library_versions()}
    made_from |= {"run": [BASE_ROWS, STEPS, BATCH_SIZE, PLAIN_ROWS, LEARNING_RATE], "topics": TOPICS}
    folder = cached_folder("base_lm", made_from, _build)
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def new_base_lm(seed: int = 0) -> PreTrainedModel:
    """A model of the base's sizes with random weights."""
    tokenizer = load_chat_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_causal_lm(vocab_size=len(tokenizer), **SIZES, **ids)


def _build(folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same weights whatever the caller's number of threads
    try:
        pretrain(new_base_lm(), STEPS).save_pretrained(folder)
    finally:
        torch.set_num_threads(threads)


def pretrain(model: Any, steps: int, seed: int = 0) -> Any:
    """Train ``model``, in place, on tagged sentences: the tag of every row, and all words of some rows of each batch.

    The two means are added. The head, most of a small model's work, is computed where something is predicted only.
    """
    tokenizer = load_chat_tokenizer()
    rows = load_classification()["train"].select(range(BASE_ROWS))
    names = rows.features["label"].names
    texts = ({"text": text, "topic": TOPICS[names[y]]} for text, y in zip(rows["text"], rows["label"], strict=True))
    examples = [encode(tokenizer, *TAGGED.render(row), max_length=64) for row in texts]
    lengths = [len(example["input_ids"]) for example in examples]
    batches = ShuffledBatches(
        examples, BATCH_SIZE, InstructionCollator(tokenizer.pad_token_id), seed=seed, lengths=lengths
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 20) * (1 - s / steps))
    model.train()
    step = 0
    while step < steps:
        for batch in batches:
            if step == steps:
                break
            loss = _loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
    return model.eval()


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden = model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, :-1]
    targets, is_tag = batch["input_ids"][:, 1:], batch["labels"][:, 1:].ne(IGNORED)
    is_word = batch["attention_mask"][:, 1:].bool() & ~is_tag
    is_word[PLAIN_ROWS:] = False
    parts = (F.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen]) for chosen in (is_word, is_tag))
    return sum(parts)
