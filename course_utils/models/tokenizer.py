"""A WordPiece tokenizer trained on the corpus, or the hub model's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from course_utils.data.cache import cached_folder
from course_utils.data.docstrings import library_versions
from course_utils.data.text import FORMAT, load_language_modelling
from course_utils.hub import check_source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_SIZE = 8_000
MAX_LENGTH = 64  # tokens; the longest sentence of the corpus has 60 words


def load_tokenizer(source: str = "local", vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the encoder of ``source``.

    Local: WordPiece (Schuster & Nakajima 2012; as in BERT), lower case, trained on the training split of the course's
    running text. Adds ``[CLS]`` and ``[SEP]``; ``model_max_length`` is 64 tokens. Hub: DistilBERT's.

    Args:
        vocab_size: entries of the local vocabulary, from 500 to 50,000; the hub's tokenizer has its own.

    Raises:
        ValueError: unknown ``source`` or ``vocab_size`` out of range.
        ConnectionError: ``source="hub"`` without a network.
        OSError: the cache cannot be written.
    """
    check_source(source)
    if source == "hub":
        from course_utils.models.hub_models import load_hub_tokenizer

        return load_hub_tokenizer()
    if not 500 <= vocab_size <= 50_000:
        raise ValueError(f"vocab_size={vocab_size} is out of range; allowed: 500 to 50000")
    from transformers import PreTrainedTokenizerFast

    def build(folder: Path) -> None:
        train_tokenizer(load_language_modelling()["train"]["text"], vocab_size).save_pretrained(folder)

    made_from = {"format": FORMAT, "vocab_size": vocab_size, **library_versions()}
    return PreTrainedTokenizerFast.from_pretrained(str(cached_folder("tokenizer", made_from, build)))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer on ``texts`` with the tokenizers library; ``[PAD]`` is token 0.

    The same texts give the same vocabulary and the same ids, every time.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ids = _vocabulary(tokenizer.to_str(), list(texts), vocab_size)
    tokenizer.model = models.WordPiece(ids, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        # The model takes no token_type_ids: a column that is never made cannot be dropped silently.
        model_input_names=["input_ids", "attention_mask"],
    )


def _vocabulary(untrained: str, texts: list[str], vocab_size: int) -> dict[str, int]:
    """Token -> id, special tokens first, the others in alphabetical order.

    The trainer breaks ties between equally frequent pairs by token number, and it numbers the continuations of single
    characters (``##a``) as it meets them, in an order that differs from run to run. Named as special tokens they have
    fixed numbers; they are special in this throw-away tokenizer only.
    """
    from tokenizers import Tokenizer, trainers

    tokenizer = Tokenizer.from_str(untrained)
    characters = sorted({character for text in texts for character in tokenizer.normalizer.normalize_str(text)})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in characters if not character.isspace())],
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokens = [*SPECIAL_TOKENS, *sorted(tokenizer.get_vocab().keys() - set(SPECIAL_TOKENS))]
    return {token: number for number, token in enumerate(tokens)}
