"""From rows of any data set to prompts, answers and labels: what instruction tuning learns from (lesson 10).

    template = Template("{question}\\n\\nAnswer:", " {reply}", fields={"question": "instruction", "reply": "output"})
    prompt, answer = template.render(row)
    example = encode(tokenizer, prompt, answer, max_length=64)   # input_ids, attention_mask, labels

Only the answer and the end token are learnt: the labels of the prompt are -100. Sources: the rule is TRL's
``completion_only_loss`` (its page "SFT Trainer"); chat turns are marked as by transformers'
``apply_chat_template(return_assistant_tokens_mask=True)``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_utils.data.batches import IGNORED, check_not_empty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, list[int]]


@dataclass(frozen=True)
class Template:
    """Two format strings that turn a row into a prompt and an answer.

    Args:
        prompt: with fields in braces. A paragraph (between empty lines) whose fields are all empty is left out.
        answer: the same; a space that separates it from the prompt stands here, not at the prompt's end.
        fields: field name -> column, for data sets whose columns are called otherwise; others keep their name.

    Raises:
        ValueError: the prompt ends in a space, or a template has no field or one that is no column's name.
    """

    prompt: str = "{instruction}\n\n{input}\n\nAnswer:"
    answer: str = " {output}"
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            text = getattr(self, name)
            try:
                fields = _field_names(text)
                self._fill(text, dict.fromkeys(fields, "x"))
            except Exception as error:  # str.format's: a lone brace, {}, {a.b}, {a[0]}, a format that text has not
                reason = str(error) if isinstance(error, ValueError) else "a field is a column's name alone"
                sentence = f"{name}={text!r} is no template ({reason}); allowed: fields like {{output}}"
                raise ValueError(sentence) from error
            if not fields:
                raise ValueError(f"{name}={text!r} has no field; allowed: at least one like {{output}}")
        if self.prompt.endswith(" "):
            raise ValueError(
                f"prompt={self.prompt!r} ends in a space, which byte-level tokenizers join to the answer's first word; "
                "allowed: the space at the start of the answer"
            )

    @property
    def names(self) -> set[str]:
        """The fields of both templates."""
        return _field_names(self.prompt) | _field_names(self.answer)

    def render(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """``(prompt, answer)`` of one row.

        Raises:
            ValueError: the row lacks a column, or holds a list, a mapping or bytes there; the sentence names it.
        """
        wanted = self.names
        missing = sorted(self.fields.get(name, name) for name in wanted if self.fields.get(name, name) not in row)
        if missing:
            raise ValueError(
                f"the row has no column {', '.join(map(repr, missing))}; allowed: fields that map to {sorted(row)}"
            )
        values = {name: _text(row[self.fields.get(name, name)], self.fields.get(name, name)) for name in wanted}
        return self._fill(self.prompt, values), self._fill(self.answer, values)

    @staticmethod
    def _fill(text: str, values: Mapping[str, str]) -> str:
        paragraphs = text.split("\n\n")
        kept = [p for p in paragraphs if not (n := _field_names(p)) or any(values[name].strip() for name in n)]
        return "\n\n".join(kept).format_map(values)


def _field_names(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def _text(value: Any, column: str) -> str:
    if isinstance(value, (list, tuple, dict, bytes)):
        raise ValueError(f"the row has {column}={str(value)[:60]}; allowed: text, a number, or nothing")
    return "" if value is None else str(value)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, max_length: int = 512) -> Example:
    """One example: prompt and answer tokenised *together*, labels on every token that holds part of the answer.

    The boundary is found by the characters a token covers (its offsets), never by counting the prompt's own tokens:
    the same text may be cut otherwise when the answer follows. One end token is added and learnt, and stands at the
    end: one that the tokenizer adds itself, or that ends the answer, is not repeated. What is too long
    loses the middle of its prompt first, so that the instruction and the cue before the answer stay; an answer that is
    longer than ``max_length`` alone loses its end, and then its end token, so that no example is without a label.

    Args:
        tokenizer: a fast one, with an end token; its begin token, if it adds one, stays in front.
        prompt, answer: texts, ``answer`` not empty.
        max_length: most tokens of the example, >= 2.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, equally long.

    Raises:
        ValueError: an empty answer, ``max_length`` below 2, a slow tokenizer or one without an end token.
    """
    if not answer.strip():
        raise ValueError(f"answer={answer!r} is empty; allowed: a text with something to learn")
    _check(tokenizer, max_length)
    encoded = tokenizer(prompt + answer, return_offsets_mapping=True, truncation=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    while ids and (
        offsets[-1] == (0, 0) or ids[-1] == tokenizer.eos_token_id
    ):  # what the tokenizer puts behind every text
        ids, offsets = ids[:-1], offsets[:-1]
    learnt = [end > len(prompt) for _, end in offsets]
    return _example([*ids, tokenizer.eos_token_id], [*learnt, True], max_length)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], max_length: int = 512
) -> Example:
    """A conversation in the tokenizer's chat template; labels on what the assistant writes, its end token included.

    Needs no ``{% generation %}`` in the template: the text up to each answer is rendered with
    ``add_generation_prompt=True``, and what the answer adds to it, up to the end token, is learnt. Longer ones lose
    what follows the last answer, then their oldest tokens after the first.

    Raises:
        ValueError: no assistant turn, or a template that writes earlier turns otherwise once a later one follows.
    """
    _check(tokenizer, max_length)
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("messages have no assistant turn; allowed: at least one answer to learn")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: number + 1], tokenize=False)
        if not (after.startswith(before) and text.startswith(after)):
            raise ValueError(
                f"message {number} is written otherwise by the template once more turns follow; allowed: a template "
                "that only appends, or one with {% generation %}"
            )
        end = after.rfind(tokenizer.eos_token)
        spans.append((len(before), end + len(tokenizer.eos_token) if end >= len(before) else len(after)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
    learnt = [any(start < b and end > a for a, b in spans) for start, end in encoded["offset_mapping"]]
    return _example(encoded["input_ids"], learnt, max_length, cut_middle=False)


def _check(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    if max_length < 2:
        raise ValueError(f"max_length={max_length} is out of range; allowed: a whole number >= 2")
    if not tokenizer.is_fast:
        raise ValueError("the tokenizer is a slow one, which knows no offsets; allowed: a fast tokenizer")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token; allowed: one with eos_token, or generation never stops")


def _example(ids: list[int], learnt: list[bool], max_length: int, cut_middle: bool = True) -> Example:
    """Cut to ``max_length`` without losing all labels, and turn the mask into labels."""
    surplus = len(ids) - max_length
    if surplus > 0 and not cut_middle:  # a conversation: what follows the last answer goes first, then what is oldest
        last = len(learnt) - learnt[::-1].index(True)
        ids, learnt = ids[:last], learnt[:last]
        gone = max(len(ids) - max_length, 0)
        ids, learnt = ids[:1] + ids[1 + gone :], learnt[:1] + learnt[1 + gone :]
    elif surplus > 0:
        gone = max(min(surplus, learnt.index(True) - 1), 0)  # all of the prompt but one token may go
        start = max((learnt.index(True) - gone) // 2, 1)
        ids, learnt = ids[:start] + ids[start + gone :], learnt[:start] + learnt[start + gone :]
        ids, learnt = ids[:max_length], learnt[:max_length]
    labels = [token if is_learnt else IGNORED for token, is_learnt in zip(ids, learnt, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def boundary_is_clean(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> bool:
    """Whether the prompt's tokens are the first tokens of prompt and answer together.

    Where they are not, the model is trained on other tokens than it meets when it has to continue the prompt alone.
    """
    alone = tokenizer(prompt)["input_ids"]
    return tokenizer(prompt + answer)["input_ids"][: len(alone)] == alone


class InstructionCollator:
    """Pads examples on the right by their *lengths*, so that it does not matter whether padding is the end token.

    Args:
        pad_token_id: what fills ``input_ids``; ``labels`` get -100, ``attention_mask`` 0.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """B examples -> ``input_ids``, ``attention_mask``, ``labels``, each (B, T)."""
        check_not_empty("examples", examples, "rows")
        longest = max(len(example["input_ids"]) for example in examples)
        fill = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        return {
            name: torch.tensor([[*row[name], *[value] * (longest - len(row[name]))] for row in examples])
            for name, value in fill.items()
        }


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Prompts of different lengths as a batch to generate from: the padding stands on the left, the text ends together.

    Returns:
        ``input_ids`` and ``attention_mask``, each (B, T).

    Raises:
        ValueError: no prompts.
    """
    check_not_empty("prompts", prompts, "texts")
    longest = max(map(len, prompts))
    ids = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
