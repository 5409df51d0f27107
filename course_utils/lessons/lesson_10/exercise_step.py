"""The last checker of lesson 10: one whole fine-tuning step, repaired."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.lessons.lesson_10 import solutions
from course_utils.models import load_causal_lm
from course_utils.teach.exercise import Wrong, ask, exercise
from course_utils.training.lora import add_lora, merge_lora


def tiny_model(seed: int) -> Any:
    """A causal model of 32 tokens."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "head_dim": 8,
        "num_attention_heads": 2,
    }
    return load_causal_lm(vocab_size=32, **sizes, initializer_range=0.3, eos_token_id=2, pad_token_id=2, bos_token_id=1)


def micro_batches(seed: int, lengths: tuple[tuple[tuple[int, int], ...], ...]) -> list[dict[str, Tensor]]:
    """Batches of rows (prompt tokens, answer tokens); each row ends with token 2, which is the padding as well."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows in lengths:
        ids = [[*torch.randint(3, 32, (p + a,), generator=generator).tolist(), 2] for p, a in rows]
        longest = max(map(len, ids))
        found.append(
            {
                "input_ids": torch.tensor([row + [2] * (longest - len(row)) for row in ids]),
                "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
                "answer_start": torch.tensor([p for p, _ in rows]),
            }
        )
    return found


def variant(
    model: Any, batches: list, rate: float, *, prompt=False, end=True, shift=True, per_token=True, merge=True, pad=False
) -> Any:
    """The step with some of its faults, for hints and tests."""
    add_lora(model, rank=2, alpha=4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    prepared = []
    for batch in batches:
        ids = batch["input_ids"]
        learnt = torch.ones_like(ids, dtype=torch.bool) if pad else batch["attention_mask"].bool()
        if not prompt:
            learnt = learnt & (torch.arange(ids.shape[1]) >= batch["answer_start"][:, None])
        if not end:
            learnt = learnt & ids.ne(2)
        prepared.append((batch, ids.masked_fill(~learnt, -100)))
    cut = [labels[:, 1:] if shift else labels for _, labels in prepared]
    count = sum(labels.ne(-100).sum() for labels in cut)
    for (batch, _), labels in zip(prepared, cut, strict=True):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        logits = logits[:, :-1] if shift else logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum" if per_token else "mean")
        (loss / (count if per_token else len(batches))).backward()
    optimizer.step()
    return merge_lora(model) if merge else model


@exercise(
    "10.5",
    "A fine-tuning step",
    hints=(
        "Four faults: what is learnt (two of them), which logits belong to which label, and who divides by what.",
        "Learnt is what stands at or behind answer_start and has attention 1. Logits of position t "
        "predict token t + 1. "
        "Count the labels of all micro-batches first, then sum and divide by that count.",
    ),
    kind="debug",
)
def check_step(answer: Callable) -> None:
    """``answer(model, micro_batches, learning_rate)`` returns the merged model after one step of "
    "SGD on the adapters."""
    shapes = ((((3, 2), (5, 1)), ((2, 6),)), (((4, 3),),), (((2, 1), (2, 1)), ((3, 5), (6, 2)), ((1, 4),)))
    for seed, lengths in enumerate(shapes):
        model, batches = tiny_model(seed), micro_batches(seed, lengths)
        given = f"{len(batches)} micro-batches, rows of (prompt, answer) tokens {lengths}"

        def stepped(
            function: Callable, seed: int = seed, model: Any = model, batches: list = batches, **how: Any
        ) -> Any:
            torch.manual_seed(100 + seed)  # A is drawn at random
            return function(copy.deepcopy(model), copy.deepcopy(batches), 5.0, **how)

        torch.manual_seed(100 + seed)
        inputs = copy.deepcopy(model), copy.deepcopy(batches)
        got = ask(answer, *inputs, 5.0, given=given, expected="the merged model")
        expected = stepped(solutions.solution_5)
        if not isinstance(got, torch.nn.Module):
            raise Wrong(
                given=given, expected="the merged model", got=type(got).__name__, hint="Return merge_lora(model)."
            )
        if set(got.state_dict()) != set(expected.state_dict()):
            raise Wrong(given=given, expected="a model with the base's weight names", got="a model with adapters",
                        hint="Merge at the end: the result has to load without LoRA.")  # fmt: skip
        if _far(got, model) < 1e-7:
            raise Wrong(given=given, expected="changed weights", got="the base", hint="No step was taken.")
        if _only_adapted(got, model) > 0:
            raise Wrong(given=given, expected="embeddings and norms as in the base", got="changed ones",
                        hint="Only the adapters are trained: give the optimizer what requires a gradient.")  # fmt: skip
        if _far(got, expected) < 1e-5:
            continue
        suspects = (
            ({"prompt": True}, "The prompt is learnt as well: labels before answer_start are -100."),
            ({"end": False}, "The end token is not learnt: it equals the padding. Tell them apart by attention_mask."),
            ({"pad": True}, "Padding is learnt: where attention_mask is 0 the label is -100."),
            ({"shift": False}, "Not shifted: the logits of position t predict the token at t + 1."),
            ({"per_token": False}, "A mean of means: divide each sum by the labels of all micro-batches."),
            (
                {"prompt": True, "end": False, "shift": False, "per_token": False},
                "That is the planted step, unchanged.",
            ),
        )
        hint = "Compare with: sum over answer tokens of all micro-batches / their number, one step of SGD."
        hint = next((text for how, text in suspects if _far(stepped(variant, **how), got) < 1e-5), hint)
        raise Wrong(given=given, expected="the weights after the repaired step", got="other weights", hint=hint)


def _far(one: torch.nn.Module, other: torch.nn.Module) -> float:
    theirs = other.state_dict()
    return max((value - theirs[name]).abs().max().item() for name, value in one.state_dict().items() if name in theirs)


def _only_adapted(one: torch.nn.Module, base: torch.nn.Module) -> float:
    theirs = base.state_dict()
    frozen = {n: v for n, v in one.state_dict().items() if "embed" in n or "norm" in n}
    return max((value - theirs[name]).abs().max().item() for name, value in frozen.items())
