"""Checker of exercise 09.5: a step that is fast and still the same step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.teach.exercise import Wrong, ask, exercise


class _Probe(nn.Module):
    """A tiny causal model that notes how it is called."""

    def __init__(self, seed: int):
        from course_utils.models import load_causal_lm

        super().__init__()
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
        self.inner = load_causal_lm(vocab_size=60, num_attention_heads=2, num_key_value_heads=2, **sizes)
        with torch.no_grad():
            for weight in self.inner.parameters():
                if weight.ndim == 2:
                    weight.mul_(8)  # large enough for attention to matter
        self.positions, self.calls, self.dtypes = 0, 0, set()
        self.inner.model.layers[0].mlp.down_proj.register_forward_hook(
            lambda module, inputs, output: self.dtypes.add(output.dtype)
        )

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        self.positions += input_ids.numel()
        self.calls += 1
        return self.inner(input_ids=input_ids, **options)


class _Counted(torch.optim.SGD):
    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def _moved(seed: int, documents: Sequence[Sequence[int]], lr: float, mean_of_means: bool) -> tuple[Tensor, float]:
    """The right step, a document at a time in fp32: how far the weights move, and the loss."""
    model = _Probe(seed)
    before = _vector(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    targets = sum(len(document) - 1 for document in documents)
    total = 0.0
    for document in documents:
        ids = torch.tensor([document])
        share = 1 / len(documents) if mean_of_means else (len(document) - 1) / targets
        loss = model(ids, labels=ids).loss * share
        loss.backward()
        total += loss.item()
    optimizer.step()
    return _vector(model) - before, total


@exercise(
    "09.5",
    "A fast step that is the same step",
    hints=(
        "You have all parts: pack_documents, PackedCollator, autocast, backward, step, zero_grad. Mind the mask's type "
        "under autocast, and what you return.",
        "One forward pass over the packed rows with bf16 autocast around it and nothing else; the weights stay fp32. "
        "PackedCollator(dtype=torch.bfloat16) makes the mask. Return loss.detach().",
    ),
)
def check_fast_step(answer: Callable) -> None:
    """``answer(model, optimizer, documents, row_length)`` makes one step and returns the loss as a tensor."""
    lr = 0.01
    for seed, lengths, row_length in ((0, (9, 14, 5, 20, 7, 9), 32), (1, (30, 2, 3, 17, 8), 40), (2, (12,) * 5, 24)):
        generator = torch.Generator().manual_seed(seed)
        documents = [torch.randint(5, 60, (n,), generator=generator).tolist() for n in lengths]
        given = f"documents of {lengths} tokens, row_length={row_length}"
        model = _Probe(seed)
        before, optimizer = _vector(model), _Counted(model.parameters(), lr=lr)
        loss = ask(answer, model, optimizer, [list(d) for d in documents], row_length, given=given, expected="the loss")
        if not isinstance(loss, Tensor):
            hint = "Reading the loss makes the program wait for the device: return it as a tensor, detached."
            raise Wrong(given=given, expected="a tensor", got=type(loss).__name__, hint=hint)
        if loss.requires_grad:
            hint = "The loss still holds its graph, and with it memory: return loss.detach()."
            raise Wrong(given=given, expected="a detached tensor", got="requires_grad=True", hint=hint)
        if any(p.dtype != torch.float32 for p in model.parameters()):
            hint = "The weights were turned to 16 bit: small updates stall. Autocast leaves them in fp32."
            raise Wrong(given=given, expected="fp32 weights", got="16-bit weights", hint=hint)
        if optimizer.steps != 1:
            hint = "All documents belong to one optimizer step."
            raise Wrong(given=given, expected="1 optimizer step", got=str(optimizer.steps), hint=hint)
        if model.dtypes != {torch.bfloat16}:
            hint = "The layers computed in fp32: put the forward pass under torch.autocast."
            raise Wrong(given=given, expected="bfloat16", got=str(model.dtypes), hint=hint)
        if any(p.grad is not None and p.grad.any() for p in model.parameters()):
            hint = "The gradients are still there: the next step would add to them."
            raise Wrong(given=given, expected="no gradients left", got="gradients", hint=hint)
        _check_move(_vector(model) - before, loss, seed, documents, lr, given)
        rows = _fewest_rows(lengths, row_length)
        if model.positions > rows * row_length:
            hint = "Too much is computed: pack the documents into as few rows as first fit needs."
            wanted = f"at most {rows * row_length} positions"
            raise Wrong(given=given, expected=wanted, got=f"{model.positions} positions", hint=hint)


def _fewest_rows(lengths: Sequence[int], row_length: int) -> int:
    from course_utils.data.packing import assign_rows

    return len(assign_rows(lengths, row_length))


def _check_move(moved: Tensor, loss: Tensor, seed: int, documents: list, lr: float, given: str) -> None:
    right, right_loss = _moved(seed, documents, lr, mean_of_means=False)
    means, _ = _moved(seed, documents, lr, mean_of_means=True)

    def off(wanted: Tensor) -> float:
        return ((moved - wanted).norm() / wanted.norm()).item()

    if off(right) < 0.06 and abs(loss.item() / right_loss - 1) < 0.02:  # bf16 has three digits
        return
    hint = "The step is another one than with each document alone: do documents see each other, or are first tokens "
    hint += "targets? Use the mask and the labels of PackedCollator."
    scaled = float(moved @ right / (right @ right))
    if off(means) < 0.06:
        hint = "That is the mean of the documents' means: every target has the same weight."
    elif off(right) < 0.06:
        hint = "The weights are right; return the mean loss over all targets."
    elif abs(scaled - 1) > 0.2 and off(scaled * right) < 0.1:
        hint = "Right direction, wrong length: divide by all targets of the step, once."
    got = f"{off(right):.0%} away, loss {loss.item():.3f}"
    raise Wrong(given=given, expected=f"the step of each document alone, loss {right_loss:.3f}", got=got, hint=hint)
