"""Checkers of lesson 10: labels, a batch, a template, adapters; ``exercise_step`` has the last one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.data.instructions import Template
from course_utils.lessons.lesson_10 import exercise_step, solutions
from course_utils.teach.exercise import Wrong, ask, exercise

check_step = exercise_step.check_step  # registered with the others


@exercise(
    "10.1",
    "Count the labels",
    hints=(
        "Write the tokens of each case in a row: prompt, answer, end token. Then cross out what the case takes away.",
        "A token is learnt if it belongs to the answer (or is its end token), survived the cut, and has a label. In b "
        "and c the row is 15 tokens long and must lose 3: from where?",
    ),
    kind="predict",
)
def check_counts(answer: Any) -> None:
    """``{"a": ..., ..., "e": ...}``, whole numbers."""
    keys = list(solutions.solution_1)
    if not isinstance(answer, dict) or set(answer) != set(keys):
        raise Wrong(given="your prediction", expected="a dictionary with the keys a, b, c, d, e", got=repr(answer)[:60],
                    hint="Fill in one whole number for each letter.")  # fmt: skip
    traps = {
        "a": {4: "The end token is learnt too: without it generation never stops.",
              15: "The prompt's labels are -100.", 14: "The prompt's labels are -100."},
        "b": {2: "encode cuts the prompt's middle first, not the end of the row.",
              4: "The end token stays, too.", 12: "Not every token that is left is learnt."},
        "c": {5: "A cut from the right takes the end of the row, and that is where the answer stands.",
              1: "15 tokens, cut to 12: three are gone.", 0: "Two places are left behind the prompt."},
        "d": {5: "With padding = end, 'labels == padding -> -100' hits the end token as well.",
              0: "Only tokens that equal the padding lose their label."},
        "e": {7: "Each answer has an end token of its own, and both are learnt.",
              8: "Each answer has an end token of its own, and both are learnt.",
              5: "Both answers of a conversation are learnt, not the last one only.",
              4: "Both answers are learnt, each with its end token."},
    }  # fmt: skip
    for key in keys:
        got = answer[key]
        if isinstance(got, bool) or not isinstance(got, int) or got != solutions.solution_1[key]:
            hint = traps[key].get(got) if isinstance(got, int) and not isinstance(got, bool) else None
            hint = hint or "Write the row's tokens side by side and mark those with a label."
            raise Wrong(given=f"case {key}", expected="another number", got=repr(got)[:40], hint=hint)


def _tensor(found: Any, name: str, given: str, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise Wrong(
            given=given, expected=f"{name}: a tensor {shape}", got=got, hint="All rows get the longest's length."
        )
    return found


@exercise(
    "10.2",
    "Mask a batch",
    hints=(
        "Start from three full tensors of shape (B, longest): padding, 0 and -100. Then copy each row's part in.",
        "What is padding is known from the row's length, never from the token: the padding id may be the end token's. "
        "labels[i, start:length] gets the row's own tokens; do not shift, the model does.",
    ),
)
def check_mask(answer: Callable) -> None:
    """``answer(rows, starts, pad_token_id)`` returns input_ids, attention_mask and labels, each (B, T)."""
    cases = (
        ([[1, 7, 8, 9, 2], [1, 5, 6, 2]], [3, 2], 0),
        ([[1, 7, 2], [1, 4, 4, 4, 4, 2], [1, 2, 9, 9, 2]], [1, 4, 3], 2),  # padding is the end token
        ([[5, 6, 7]], [2], 9),
    )
    for rows, starts, pad in cases:
        given = f"rows={rows}, starts={starts}, pad_token_id={pad}"
        got = ask(answer, copy.deepcopy(rows), list(starts), pad, given=given, expected="three tensors")
        expected = solutions.solution_2(rows, starts, pad)
        if not isinstance(got, dict) or not set(expected) <= set(got):
            raise Wrong(given=given, expected=f"a dictionary with {', '.join(expected)}", got=str(got)[:60],
                        hint="Return a dictionary with these three names.")  # fmt: skip
        shape = tuple(expected["labels"].shape)
        found = {name: _tensor(got[name], name, given, shape).long() for name in expected}
        for name in ("input_ids", "attention_mask", "labels"):
            if torch.equal(found[name], expected[name]):
                continue
            hint = _mask_hint(name, found[name], expected, pad)
            raise Wrong(
                given=given, expected=f"{name} {expected[name].tolist()}", got=str(found[name].tolist()), hint=hint
            )


def _mask_hint(name: str, found: Tensor, expected: dict[str, Tensor], pad: int) -> str:
    ids, labels = expected["input_ids"], expected["labels"]
    if name == "input_ids":
        return "Padding stands on the right and is pad_token_id."
    if name == "attention_mask":
        if torch.equal(found, ids.ne(pad).long()):
            return "The mask was made from the tokens: where padding is the end token, the end is hidden. Use lengths."
        return "1 for every token of a row, 0 for padding."
    if torch.equal(found, ids):
        return "The prompt and the padding are learnt as well: their label is -100."
    if torch.equal(found, labels.masked_fill(labels == pad, -100)):
        return "The end token has lost its label, because it equals the padding. Use the rows' lengths."
    if torch.equal(found, ids.masked_fill(expected["attention_mask"] == 0, -100)):
        return "The prompt is learnt as well: its labels are -100."
    if torch.equal(found[:, :-1], labels[:, 1:]):
        return "Shifted: labels stand beside their own token, the model's loss shifts them."
    if found.ne(-100).sum() > labels.ne(-100).sum():
        return "More is learnt than the answer: padding has the label -100, and the answer begins at starts[i]."
    return "labels[i, starts[i]:length] are the row's own tokens, everything else is -100."


@exercise(
    "10.3",
    "A template for another data set",
    hints=(
        "The row's columns are question, hint and solution. Field names in braces; fields= maps the "
        "ones called otherwise.",
        "Put the hint into a paragraph of its own, so that it disappears with an empty hint. The "
        "prompt ends with a cue "
        "without a space; the answer begins with the space.",
    ),
    kind="vary",
)
def check_template(answer: Any) -> None:
    """A ``Template`` for rows with the columns question, hint (may be empty) and solution."""
    if not isinstance(answer, Template):
        raise Wrong(
            given="your template", expected="a Template", got=type(answer).__name__, hint="Build a Template(...)."
        )
    rows = (
        {"question": "What pads rows?", "hint": "It makes batches.", "solution": "The collator"},
        {"question": "Why {braces}?", "hint": "", "solution": "They are data"},
        {"question": "How many ranks?", "hint": None, "solution": "2"},
    )
    for row in rows:
        prompt, completion = ask(answer.render, row, given=str(row), expected="a prompt and an answer")
        hint_text, given = row["hint"] or "", str(row)
        if row["solution"] in prompt:
            raise Wrong(given=given, expected="a prompt without the solution", got=prompt,
                        hint="The solution is in the prompt: the model would only have to copy it.")  # fmt: skip
        if row["question"] not in prompt or hint_text not in prompt:
            raise Wrong(given=given, expected="question and hint in the prompt", got=prompt,
                        hint="The prompt holds everything that is known when the question is asked.")  # fmt: skip
        named = [f"Question: {row['question']}", *([f"Hint: {hint_text}"] if hint_text else [])]
        if not all(part in prompt for part in named):
            raise Wrong(given=given, expected=" and ".join(map(repr, named)), got=repr(prompt),
                        hint="Each part is introduced by its word, a colon and a space.")  # fmt: skip
        if completion != f" {row['solution']}":
            where = "A space separates prompt and answer; it stands at the start of the answer."
            if completion.strip() != row["solution"]:
                where = "The answer is the solution and nothing else; the end token is added by encode."
            raise Wrong(given=given, expected=repr(f" {row['solution']}"), got=repr(completion), hint=where)
        rest = prompt.replace(row["question"], "").lower()
        if not hint_text and ("hint" in rest or "\n\n\n" in prompt or "none" in rest):
            raise Wrong(given=given, expected="no trace of the empty hint", got=repr(prompt),
                        hint="Give the hint a paragraph of its own, with empty lines around it.")  # fmt: skip
        if prompt.rstrip().endswith((row["question"], hint_text or row["question"])):
            raise Wrong(given=given, expected="a cue such as 'Answer:' at the end of the prompt", got=repr(prompt),
                        hint="Without a cue the model cannot tell where the question ends.")  # fmt: skip


@exercise(
    "10.4",
    "Several adapters, one layer",
    hints=(
        "Each adapter adds its own low-rank matrix to the weight; the sum of several is still one matrix.",
        "B @ A has the weight's shape. The rank is the number of rows of A, so each adapter has its own factor. Do not "
        "change `weight` itself.",
    ),
)
def check_adapters(answer: Callable) -> None:
    """``answer(x, weight, adapters)`` returns ``(y, merged)`` for adapters ``(A, B, alpha)`` of different ranks."""
    for ranks, alphas, seed in (((2,), (4.0,), 0), ((1, 3), (2.0, 12.0), 1), ((4, 2, 1), (1.0, 8.0, 3.0), 2)):
        generator = torch.Generator().manual_seed(seed)
        x, weight = torch.randn(2, 3, 5, generator=generator), torch.randn(4, 5, generator=generator)
        adapters = [
            (torch.randn(r, 5, generator=generator), torch.randn(4, r, generator=generator), a)
            for r, a in zip(ranks, alphas, strict=True)
        ]
        given = f"x (2, 3, 5), weight (4, 5), adapters of rank {ranks} with alpha {alphas}"
        kept = weight.clone()
        got = ask(answer, x.clone(), weight, list(adapters), given=given, expected="(y, merged)")
        expected = solutions.solution_4(x, kept, adapters)
        if not torch.equal(weight, kept):
            raise Wrong(given=given, expected="weight unchanged", got="a changed weight",
                        hint="`+=` changed the base. Work on a copy: the base is shared by all adapters.")  # fmt: skip
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(given=given, expected="a pair (y, merged)", got=type(got).__name__, hint="Return both.")
        y, merged = got
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in (y, merged)]
        if shapes != [(2, 3, 4), (4, 5)]:
            raise Wrong(given=given, expected="y (2, 3, 4), merged (4, 5)", got=str(shapes),
                        hint="A linear layer computes x @ weight.T; merged has the weight's shape.")  # fmt: skip
        if not torch.allclose(merged, expected[1], atol=1e-4):
            raise Wrong(given=given, expected="the merged weight", got="another one",
                        hint=_merge_hint(merged, kept, adapters))  # fmt: skip
        if not torch.allclose(y, expected[0], atol=1e-4):
            hint = "y is x through the merged weight: x @ merged.T."
            if torch.allclose(y, x @ kept.T, atol=1e-4):
                hint = "y is the base's result: the adapters are missing."
            raise Wrong(given=given, expected="y with all adapters", got="other numbers", hint=hint)


def _merge_hint(merged: Tensor, weight: Tensor, adapters: list) -> str:
    def total(factor: Callable) -> Tensor:
        return weight + sum(factor(A, alpha) * B @ A for A, B, alpha in adapters)

    suspects = [
        (total(lambda A, alpha: 1.0), "The factor alpha / rank is missing."),
        (total(lambda A, alpha: alpha), "alpha is divided by the rank: the number of rows of A."),
        (total(lambda A, alpha: alpha / A.shape[1]), "A is (r, in): its rank is the number of rows."),
        (total(lambda A, alpha: adapters[0][2] / len(adapters[0][0])), "Each adapter has its own alpha and rank."),
        (weight + adapters[-1][2] / len(adapters[-1][0]) * adapters[-1][1] @ adapters[-1][0],
         "Only the last adapter is in it: add them up."),
        (total(lambda A, alpha: alpha / len(A)) - weight, "That is the update alone: the base is missing."),
    ]  # fmt: skip
    return next(
        (h for w, h in suspects if torch.allclose(w, merged, atol=1e-4)), "merged = weight + sum alpha / r B A."
    )
