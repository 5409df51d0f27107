"""A byte-level tokenizer with a chat template for the course's small language model, or the hub model's (lesson 10).

Byte-level BPE is what GPT-2, Llama 3 and Qwen use: no unknown token, case kept, and a space belongs to the word after
it. Sources: Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019, section 2.2; transformers' page "Chat
templates" for ``{% generation %}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.data.cache import cached_folder
from course_utils.data.docstrings import library_versions
from course_utils.data.text import FORMAT, load_classification
from course_utils.hub import HUB_NAMES, check_source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, EOS, TURN = "<pad>", "<bos>", "<|im_end|>", "<|im_start|>"
VOCAB_SIZE = 2_000
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}
{%- else %}
{{- message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def load_chat_tokenizer(source: str = "local") -> PreTrainedTokenizerBase:
    """The tokenizer of the causal model: ``tokenizer(text)`` adds ``<bos>`` and no end; padding on the right.

    Local: byte-level BPE with 2,000 entries, trained on the classification set's training sentences
    and the names of the libraries; ChatML template.
    Hub: Qwen3's own.

    Raises:
        ValueError: unknown ``source``.
        ConnectionError: ``source="hub"`` without a network.
        OSError: the cache cannot be written.
    """
    check_source(source)
    if source == "hub":
        from course_utils.models.hub_models import load_hub_tokenizer

        return load_hub_tokenizer(HUB_NAMES["causal_lm"])
    from transformers import PreTrainedTokenizerFast

    def build(folder: Path) -> None:
        rows = load_classification()["train"]
        names = [f" {name}" for name in rows.features["label"].names] * 500  # so that each is one token
        train_byte_tokenizer([*rows["text"], *names], VOCAB_SIZE).save_pretrained(folder)

    made_from = {"format": FORMAT, "vocab_size": VOCAB_SIZE, "template": CHAT_TEMPLATE, **library_versions()}
    return PreTrainedTokenizerFast.from_pretrained(str(cached_folder("chat_tokenizer", made_from, build)))


def train_byte_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on ``texts``; ids 0 to 3 are padding, begin, end and start of a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, TURN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts), trainer)
    begin = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[begin]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[TURN],
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )
