"""Exercises of lesson 07: invariances, a collator, split parameters, an operator's backward, two optimizers.

What the last one repairs stands in ``broken``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.lessons.lesson_07 import broken
from course_utils.teach.exercise import Wrong, ask, exercise

CHANGES = {
    "doubled": "every point twice",
    "padded": "eight more points, all at zero",
    "moved": "all points a little to the right",
    "critical only": "only the points that gave a maximum",
    "without critical": "all points except those that gave a maximum",
}


def changed_logits(change: str, seed: int) -> bool:
    """Whether ``change`` alters the logits of a PointNet with random weights on a random cloud."""
    from course_utils.models.point_net import PointNet

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PointNet()
    cloud = torch.randn(1, 200, 3, generator=generator)
    with torch.no_grad():
        critical = model.features(cloud)[1].unique()
        others = torch.ones(200, dtype=torch.bool).index_fill(0, critical, False)
        made = {
            "doubled": cloud.repeat(1, 2, 1),
            "padded": torch.cat([cloud, torch.zeros(1, 8, 3)], dim=1),
            "moved": cloud + torch.tensor([0.3, 0, 0]),
            "critical only": cloud[:, critical],
            "without critical": cloud[:, others],
        }[change]
        return not torch.allclose(model(made).logits, model(cloud).logits, atol=1e-5)


@exercise(
    "07.1",
    "what PointNet cannot see",
    hints=(
        "Go through f = classifier(max over points of h(point)) for each change: which part of it gets another input?",
        "The maximum of a set does not change when an element is repeated, or when one is left out that was nowhere "
        "the largest.",
    ),
    kind="predict",
)
def check_invariances(answer: Any) -> None:
    """``answer`` is the set of names in ``CHANGES`` that leave the logits as they are."""
    if isinstance(answer, str) or not isinstance(answer, set | frozenset | list | tuple):
        raise Wrong(
            given="the five changes", expected="a set of names", got=repr(answer)[:80], hint="Return a set of names."
        )
    if unknown := [name for name in answer if name not in CHANGES]:
        raise Wrong(
            given="the five changes",
            expected=f"names among {sorted(CHANGES)}",
            got=repr(unknown[0]),
            hint="One of your names is none of the five: copy them from CHANGES.",
        )
    reasons = {
        "doubled": "The maximum of a set with every element twice is the same.",
        "padded": "A point at zero is a point like any other: h sees it, and somewhere it is the largest.",
        "moved": "Every point's coordinates change, and h sees coordinates.",
        "critical only": "A point that is nowhere the largest is not in the result: without it nothing changes.",
        "without critical": "Exactly the points that made the result are gone: others take their place.",
    }
    for name, what in CHANGES.items():
        changes = any(changed_logits(name, seed) for seed in range(3))
        if changes == (name in answer):
            raise Wrong(
                given=f"{name!r}: {what}, three PointNets with random weights",
                expected="other logits" if changes else "the same logits",
                got="you have it among those that leave the logits alone" if changes else "you left it out",
                hint=reasons[name],
            )


@exercise(
    "07.2",
    "a collator for clouds of any size",
    hints=(
        "Look at the three keys of the batch one by one; for the mask, compare the position of a point with the size "
        "of its cloud.",
        "torch.nn.utils.rnn.pad_sequence stacks tensors of different lengths; an arange against a column of sizes "
        "gives the mask in one comparison.",
    ),
)
def check_collator(answer: Callable[[list[dict]], dict[str, Tensor]]) -> None:
    """``answer(rows)`` returns points (B, N, 3), mask (B, N) bool and labels (B,)."""
    for number, sizes in enumerate(([5, 3, 9], [4, 4], [1, 7, 2, 6])):
        generator = torch.Generator().manual_seed(number)
        rows = [{"points": torch.randn(n, 3, generator=generator), "label": n % 10} for n in sizes]
        given = f"clouds of {', '.join(map(str, sizes))} points"
        batch = ask(answer, [dict(row) for row in rows], given=given, expected="a dictionary of tensors")
        _check_batch(batch, rows, given)


def _check_batch(batch: Any, rows: list[dict], given: str) -> None:
    sizes, widest = [len(row["points"]) for row in rows], max(len(row["points"]) for row in rows)

    def need(holds: bool, expected: str, got: Any, hint: str) -> None:
        if not holds:
            raise Wrong(given=given, expected=expected, got=str(got)[:120], hint=hint)

    need(
        isinstance(batch, dict),
        "a dictionary",
        type(batch).__name__,
        "Return {'points': ..., 'mask': ..., 'labels': ...}.",
    )
    hint = "The model's forward(points, mask, labels) names the keys: the rows' `label` becomes `labels`."
    need(set(batch) == {"points", "mask", "labels"}, "the keys points, mask, labels", sorted(map(str, batch)), hint)
    are_tensors = all(isinstance(value, Tensor) for value in batch.values())
    kinds = {name: type(value).__name__ for name, value in batch.items()}
    need(are_tensors, "three tensors", kinds, "Stack what you collected: every value of a batch is a tensor.")
    points, mask, labels = batch["points"], batch["mask"], batch["labels"]
    hint = "Pad to the largest cloud of this batch, not further and not less."
    need(points.shape == (len(rows), widest, 3), f"points of shape {(len(rows), widest, 3)}", tuple(points.shape), hint)
    hint = "The mask has one entry a point, True or False: shape (B, N), torch.bool."
    need(
        mask.shape == points.shape[:2] and mask.dtype == torch.bool,
        f"a bool mask of shape {tuple(points.shape[:2])}",
        f"{mask.dtype}, {tuple(mask.shape)}",
        hint,
    )
    wanted = torch.arange(widest) < torch.tensor(sizes)[:, None]
    hint = "Count the True of each row: there are as many as the cloud has points, and they come first."
    if min(sizes) < widest and torch.equal(mask, ~wanted):
        hint = "Your mask is True on padding. Here True means a real point."
    need(torch.equal(mask, wanted), f"True for the first {sizes} entries", mask.sum(1).tolist(), hint)
    same = all(torch.equal(points[i, : len(row["points"])], row["points"]) for i, row in enumerate(rows))
    need(
        same, "each cloud's own points, from the start", "other numbers", "Padding stands behind the points of a cloud."
    )
    right = labels.tolist() == [row["label"] for row in rows]
    need(right, f"labels {[row['label'] for row in rows]}", labels.tolist(), "One label a cloud, in the rows' order.")


class _Named(nn.Module):
    """A parameter called ``quantiles`` in two submodules, one name that only contains the word, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.first, self.second = nn.Module(), nn.Module()
        self.first.quantiles = nn.Parameter(torch.zeros(3))
        self.second.quantiles = nn.Parameter(torch.ones(2))


class _LookAlike(_Named):
    def __init__(self):
        super().__init__()
        self.quantiles_head = nn.Linear(3, 1)


class _Frozen(_LookAlike):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


@exercise(
    "07.3",
    "every parameter to one optimizer",
    hints=(
        "model.named_parameters() gives (name, parameter). A name is a path with dots: first.quantiles.",
        "Compare the last part of the name, not whether the word occurs somewhere, and look at requires_grad.",
    ),
)
def check_split(answer: Callable[[nn.Module], tuple[list, list]]) -> None:
    """``answer(model)`` returns the lists ``(main, auxiliary)``."""
    cases = {
        "two submodules with a parameter `quantiles`": _Named(),
        "the same and a layer called `quantiles_head`": _LookAlike(),
        "the same and a frozen layer": _Frozen(),
    }
    for given, model in cases.items():
        found = ask(answer, model, given=given, expected="two lists of parameters")
        _check_lists(found, model, given)


def _check_lists(found: Any, model: nn.Module, given: str) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    is_pair = isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, list) for part in found)
    if not is_pair or not all(isinstance(p, Tensor) and id(p) in names for part in found for p in part):
        hint = "Return two lists of the model's own parameters: main first, then auxiliary."
        raise Wrong(given=given, expected="(main, auxiliary)", got=repr(found)[:100], hint=hint)
    got = [[names[id(p)] for p in part] for part in found]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    auxiliary = {name for name in trainable if name.split(".")[-1] == "quantiles"}
    wanted = [trainable - auxiliary, auxiliary]
    for part, names_of, who in zip(got, wanted, ("main", "auxiliary"), strict=True):
        if set(part) == names_of and len(part) == len(names_of):
            continue
        extra, absent = sorted(set(part) - names_of), sorted(names_of - set(part))
        hint = f"{who} lacks {', '.join(absent)}: each trainable parameter belongs to one of the two lists."
        if any("frozen" in name for name in extra):
            hint = "A frozen parameter (requires_grad False) needs no optimizer: leave it out of both."
        elif any("quantiles_head" in name for name in extra + absent):
            hint = "quantiles_head is an ordinary layer: only the last part of a name decides, and it must be equal."
        elif any(name.endswith("quantiles") for name in extra):
            hint = f"{extra[0]} is in main too: then two optimizers move it."
        elif len(part) != len(set(part)):
            hint = "A parameter occurs twice in one list."
        raise Wrong(given=given, expected=f"{who} = {sorted(names_of)}", got=str(sorted(part)), hint=hint)


def leaky(x: Tensor, threshold: Tensor, leak: Tensor) -> Tensor:
    """The operator of exercise 07.4: inside the threshold ``leak * x`` remains, outside nothing jumps."""
    return torch.where(x.abs() <= threshold, leak * x, x - (1 - leak) * threshold * torch.sign(x))


@exercise(
    "07.4",
    "the backward of a changed operator",
    hints=(
        "Differentiate the two lines of the rule separately, by x, threshold and leak; then multiply each by grad.",
        "Threshold and leak are one number for all elements, so their gradients are sums. The factor 1 - leak stands "
        "beside the threshold in the outer line.",
    ),
    kind="vary",
)
def check_backward(answer: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """``answer(grad, x, threshold, leak)`` returns the gradients of x, threshold and leak."""
    for number, (size, threshold, leak) in enumerate(((6, 0.5, 0.0), (8, 1.0, 0.25), (40, 0.3, 0.6))):
        generator = torch.Generator().manual_seed(number)
        x, grad = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
        inputs = [x, torch.tensor(threshold, dtype=torch.float64), torch.tensor(leak, dtype=torch.float64)]
        given = f"{size} numbers, threshold {threshold}, leak {leak}"
        found = ask(answer, grad.clone(), *[i.clone() for i in inputs], given=given, expected="three gradients")
        _check_gradients(found, grad, [i.requires_grad_() for i in inputs], given)


def _check_gradients(found: Any, grad: Tensor, inputs: list[Tensor], given: str) -> None:
    wanted = torch.autograd.grad(leaky(*inputs), inputs, grad)
    if not isinstance(found, tuple | list) or len(found) != 3 or not all(isinstance(f, Tensor) for f in found):
        hint = "Return three tensors: the gradients of x, of threshold and of leak."
        raise Wrong(given=given, expected="three tensors", got=repr(found)[:100], hint=hint)
    x, threshold, leak = (i.detach() for i in inputs)
    inside = x.abs() <= threshold
    plain = torch.autograd.grad(leaky(*inputs), inputs, torch.ones_like(grad))
    for name, got, right, without in zip(("x", "threshold", "leak"), found, wanted, plain, strict=True):
        if got.shape != right.shape:
            hint = f"{name} has shape {tuple(right.shape)}, and a gradient has its input's shape: sum over elements."
            raise Wrong(given=given, expected=f"shape {tuple(right.shape)}", got=str(tuple(got.shape)), hint=hint)
        if torch.allclose(got.double(), right, atol=1e-9):
            continue
        hints = {
            "x": "Inside, x is multiplied by leak; outside its slope is 1.",
            "threshold": "Outside the threshold enters as -(1 - leak) * threshold * sign(x); inside not at all.",
            "leak": "Inside leak multiplies x; outside it multiplies threshold * sign(x).",
        }
        hint = hints[name]
        if torch.allclose(got.double(), without, atol=1e-9):
            hint = "The chain rule: multiply by grad, the gradient that comes from above."
        elif torch.allclose(got.double(), -right, atol=1e-9):
            hint = f"The sign of the gradient of {name} is turned round."
        elif name == "threshold" and torch.allclose(got.double(), (-grad * torch.sign(x))[~inside].sum(), atol=1e-9):
            hint = "A share leak of x passes in any case, so the threshold acts on the rest only: a factor 1 - leak."
        raise Wrong(given=given, expected=_short(right), got=_short(got), hint=f"Gradient of {name}: {hint}")


def _short(tensor: Tensor) -> str:
    return str([round(value, 3) for value in tensor.flatten().tolist()[:6]])


@exercise(
    "07.5",
    "a Trainer with two optimizers, repaired",
    hints=(
        "Three methods of BrokenTrainer are at fault: ask of each parameter who owns it, count the auxiliary steps of "
        "a window (and what they step with), and compare what is saved with what is loaded.",
        "Section 6 of the lesson has the pattern: hide, super(), show again; step only when the window is complete; "
        "read in _load_optimizer_and_scheduler what _save_optimizer_and_scheduler wrote.",
    ),
    kind="debug",
)
def check_repair(answer: type) -> None:
    """``answer`` is a subclass of ``BrokenTrainer`` that trains ``Watched`` rightly and resumes bitwise."""
    broken.check_trainer(answer)
