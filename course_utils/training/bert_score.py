"""BERTScore: does an answer say the same in other words? Tokens are compared by what an encoder makes of them.

Source: Zhang, Kishore, Wu, Weinberger, Artzi 2020, "BERTScore: Evaluating Text Generation with BERT", section 3,
without inverse document frequencies and without rescaling. Each token of one text is matched with the most similar
token of the other; recall is the mean over the reference's tokens, precision over the answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F


class BertScore(NamedTuple):
    """Cosines, 1 for equal texts; what counts as low depends on the encoder: compare with a baseline's answers."""

    precision: float
    recall: float
    f1: float


def greedy_match(answer: torch.Tensor, reference: torch.Tensor) -> BertScore:
    """The score of token vectors ``answer`` (A, H) against ``reference`` (R, H); without a token on a side, 0."""
    if not len(answer) or not len(reference):
        return BertScore(0.0, 0.0, 0.0)
    cosines = F.normalize(answer.double(), dim=-1) @ F.normalize(reference.double(), dim=-1).T  # (A, R)
    precision, recall = cosines.amax(1).mean().item(), cosines.amax(0).mean().item()
    both = precision + recall
    return BertScore(precision, recall, 2 * precision * recall / both if both else 0.0)


@torch.no_grad()
def token_vectors(model: Any, tokenizer: Any, text: str, layer: int = -2) -> torch.Tensor:
    """The hidden states ``(tokens, H)`` of ``text`` after ``layer`` (as an index of ``hidden_states``), special tokens
    left out, as in the authors' code. -2 is near what they chose for BERT's family; their table has one per model."""
    found = tokenizer(text, return_tensors="pt", truncation=True, return_special_tokens_mask=True)
    special = found.pop("special_tokens_mask")[0].bool()
    found = {name: value.to(model.device) for name, value in found.items() if name != "token_type_ids"}
    states = model(**found, output_hidden_states=True).hidden_states
    if not -len(states) <= layer < len(states):
        raise ValueError(f"layer={layer} is out of range; allowed: {-len(states)} to {len(states) - 1}")
    return states[layer][0, ~special.to(states[layer].device)]


def bert_scores(
    model: Any, tokenizer: Any, answers: Sequence[str], references: Sequence[str], layer: int = -2
) -> list[BertScore]:
    """The score of each answer against its reference, with an encoder of transformers.

    Raises:
        ValueError: another number of references than answers, or a layer that the model does not have.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers and {len(references)} references; allowed: as many of each")
    model.eval()
    known: dict[str, torch.Tensor] = {}
    for text in (*answers, *references):
        if text not in known:
            known[text] = token_vectors(model, tokenizer, text, layer)
    return [
        greedy_match(known[answer], known[reference]) for answer, reference in zip(answers, references, strict=True)
    ]
