"""Templates, boundaries, truncation and masks of ``course_utils.data.instructions``."""

import random

import pytest
import torch

from course_utils.data.instructions import (
    InstructionCollator,
    Template,
    boundary_is_clean,
    encode,
    encode_chat,
    pad_left,
)
from course_utils.models.chat_tokenizer import load_chat_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_chat_tokenizer()


def learnt_text(tokenizer, example):
    return tokenizer.decode([label for label in example["labels"] if label != -100])


def test_a_template_maps_fields_and_leaves_empty_paragraphs_out():
    template = Template("{question}\n\nHint: {hint}\n\nAnswer:", " {reply}", {"reply": "output"})
    row = {"question": "Why {x}?", "hint": "", "output": "{y}"}
    assert template.render(row) == ("Why {x}?\n\nAnswer:", " {y}")
    assert template.render(row | {"hint": "h"})[0] == "Why {x}?\n\nHint: h\n\nAnswer:"
    assert template.render(row | {"hint": None})[0] == "Why {x}?\n\nAnswer:"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("{a} ", " {b}"), "ends in a space"), (("none", " {b}"), "has no field"), (("{a}", "none"), "has no field")],
)
def test_a_template_that_cannot_work_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Template(*arguments)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column 'output'"):
        Template().render({"instruction": "a", "input": "b"})


def test_only_the_answer_and_the_end_are_learnt(tokenizer):
    example = encode(tokenizer, "Which library?\n\nAnswer:", " torch")
    assert learnt_text(tokenizer, example) == " torch<|im_end|>"
    assert example["input_ids"][0] == tokenizer.bos_token_id and example["input_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("seed", range(40))
def test_every_answer_character_is_learnt_whatever_the_boundary(tokenizer, seed):
    letters = random.Random(seed)
    prompt, answer = (
        "".join(letters.choices("ab é\n.:😀 '", k=letters.randint(1, 30))) + end
        for end in (letters.choice([":", " "]), "x")
    )
    example = encode(tokenizer, prompt, answer)
    assert learnt_text(tokenizer, example).endswith(answer + "<|im_end|>")
    if boundary_is_clean(tokenizer, prompt, answer):
        assert learnt_text(tokenizer, example) == answer + "<|im_end|>"


def test_separate_tokenising_shifts_a_boundary_with_a_space_at_the_end(tokenizer):
    assert not boundary_is_clean(tokenizer, "Answer: ", "pandas") and boundary_is_clean(tokenizer, "Answer:", " pandas")
    assert "pandas" in learnt_text(tokenizer, encode(tokenizer, "Answer: ", "pandas"))


@pytest.mark.parametrize("length", [2, 3, 5, 8, 20, 30])
def test_truncation_never_leaves_an_example_without_labels(tokenizer, length):
    prompt, answer = "Instruction. " + "word " * 40 + "\n\nAnswer:", " one two three"
    whole, cut = encode(tokenizer, prompt, answer), encode(tokenizer, prompt, answer, length)
    assert len(cut["input_ids"]) == length == len(cut["labels"]) == len(cut["attention_mask"])
    assert any(label >= 0 for label in cut["labels"][1:])
    if length >= 8:
        assert learnt_text(tokenizer, cut) == answer + "<|im_end|>"
    if length == 30:  # the start and the cue are still there
        assert cut["input_ids"][:6] == whole["input_ids"][:6]
        assert tokenizer.decode(cut["input_ids"]).endswith("Answer:" + answer + "<|im_end|>")


@pytest.mark.parametrize(("answer", "length", "words"), [("  ", 9, "is empty"), (" a", 1, "out of range")])
def test_what_cannot_be_encoded_is_refused(tokenizer, answer, length, words):
    with pytest.raises(ValueError, match=words):
        encode(tokenizer, "p:", answer, length)


def test_the_collator_keeps_the_end_token_where_padding_is_the_end(tokenizer):
    rows = [encode(tokenizer, "a:", " b"), encode(tokenizer, "a long prompt:", " b")]
    batch = InstructionCollator(tokenizer.eos_token_id)(rows)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["labels"] == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]


def test_prompts_end_together():
    batch = pad_left([[5, 6, 7], [8]], 0)
    assert torch.equal(batch["input_ids"], torch.tensor([[5, 6, 7], [0, 0, 8]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1], [0, 0, 1]]))


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "torch"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, I am."},
]


def test_a_chat_learns_every_answer_as_the_template_marks_it(tokenizer):
    example = encode_chat(tokenizer, CHAT)
    assert learnt_text(tokenizer, example) == "torch<|im_end|>Yes, I am.<|im_end|>"
    theirs = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    assert example["input_ids"] == theirs["input_ids"]
    assert [label != -100 for label in example["labels"]] == [bool(m) for m in theirs["assistant_masks"]]
    assert example["input_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("length", [2, 4, 12, 25])
def test_a_long_chat_keeps_a_label(tokenizer, length):
    example = encode_chat(tokenizer, CHAT, length)
    assert len(example["input_ids"]) <= length and any(label >= 0 for label in example["labels"][1:])


def test_a_chat_without_an_answer_or_with_a_template_that_rewrites_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no assistant turn"):
        encode_chat(tokenizer, CHAT[:2])
    rewriting = load_chat_tokenizer()
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="written otherwise"):
        encode_chat(rewriting, CHAT)


def words(before, after, adds_prefix_space=False):
    """A byte-level tokenizer that puts the tokens ``before`` and ``after`` around every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = alphabet[alphabet.index("Ġ")]
    pieces = ["<pad>", "<s>", "<|end|>", "[SEP]", *alphabet, *("re", "ed", "red", "ca", "cat", space + "red")]
    merges = [("r", "e"), ("e", "d"), ("re", "d"), ("c", "a"), ("ca", "t"), (space, "red"), (space, "r")]
    pieces.append(space + "r")
    inner = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_prefix_space)
    single = " ".join([*before, "$A", *after])
    special = [(token, pieces.index(token)) for token in ("<s>", "<|end|>", "[SEP]")]
    inner.post_processor = processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing(single=single, special_tokens=special)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<|end|>", bos_token="<s>")


STYLES = {
    "adds nothing": words([], []),
    "adds begin": words(["<s>"], []),
    "adds end": words([], ["<|end|>"]),
    "adds both": words(["<s>"], ["<|end|>"]),
    "adds begin and a separator": words(["<s>"], ["[SEP]"]),
    "adds a space in front": words(["<s>"], [], adds_prefix_space=True),
}
ROWS = [("the red cat", " runs slowly"), ("a:", " red red"), ("red", "cat"), ("two\n", "lines\n"), ("x:", " y<|end|>")]
MERGED = [
    ("the ", "red cat"),
    ("ca", "t is"),
    ("a r", "ed"),
]  # one token holds the end of one and the start of the other


def trl_examples(tokenizer, rows):
    """What TRL's SFTTrainer makes of prompts and completions: its own preparation, without a model."""
    from types import SimpleNamespace

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    table = Dataset.from_dict({"prompt": [p for p, _ in rows], "completion": [a for _, a in rows]})
    config = SFTConfig("unused", report_to="none", use_cpu=True, bf16=False)
    stand_in = SimpleNamespace(_tokenizer=tokenizer, completion_only_loss=True, _is_vision_dataset=False, args=config)
    stand_in.chat_template = None
    done = SFTTrainer._prepare_dataset(stand_in, table, tokenizer, config, False, None, "train")
    return [(row["input_ids"], row["labels"]) for row in done]


def one_end(ids, labels, tokenizer, added):
    """TRL's example without what the tokenizer's template put behind its end token."""
    extra = len(added)
    return (ids[:-extra], labels[:-extra]) if extra else (ids, labels)


@pytest.mark.parametrize("style", STYLES)
def test_ids_and_labels_are_trls_whatever_the_tokenizer_adds(style):
    """One end token, at the end, learnt; one begin token at most. TRL keeps what the template adds behind its own."""
    tokenizer = STYLES[style]
    added = [t for t in tokenizer("a")["input_ids"][1:] if t in (2, 3)]
    ours = [encode(tokenizer, *row) for row in ROWS + MERGED]
    for example, (ids, labels) in zip(ours, trl_examples(tokenizer, ROWS + MERGED), strict=True):
        wanted = one_end(ids, labels, tokenizer, added)
        assert (example["input_ids"], example["labels"]) == wanted
    for example in ours:
        ids = example["input_ids"]
        assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == example["labels"][-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.bos_token_id) == ("begin" in style or "both" in style or "space" in style)
