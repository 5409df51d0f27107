"""Campaign: drawn configurations of the three own AdamWs beside torch's: equal, or refused in one sentence.

    python -m tests.campaign.optimizers --count 200 --seed 0          # of each class
    python -m tests.campaign.optimizers --count 20 --only CompiledAdamW

A configuration: up to six tensors of drawn shapes (no dimension and no number among them), types and strides, in one to
three groups with settings of their own; gradients that come and go, are zero, huge, tiny or infinite; a learning rate
that changes; a closure; a state that travels to torch's AdamW and back in the middle. One in four has something that
torch takes and these refuse: a switch (amsgrad, maximize, ...), a tensor as a rate, complex numbers, a sparse gradient.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from typing import Any, NamedTuple

import torch
from torch import nn

from course_utils.training import optim
from course_utils.training.optim import AdamW, CompiledAdamW, ForeachAdamW, compiler_available
from tests.campaign.tally import Tally

CLASSES = [AdamW, ForeachAdamW, *([CompiledAdamW] if compiler_available() else [])]
SHAPES = [(), (0,), (1,), (5,), (3, 4), (2, 3, 2), (4, 1), (1, 7), (2, 0, 3)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ODD = {
    "lr": [-0.1, float("nan"), float("inf"), torch.tensor(0.1), True],
    "betas": [(0.9,), (0.9, 0.99, 0.999), (0.9, 1.0), (-0.1, 0.9), (torch.tensor(0.9), torch.tensor(0.99))],
    "eps": [-1e-8, float("nan"), 0.0],
    "weight_decay": [-0.1, float("inf"), torch.tensor(0.1)],
    "amsgrad": [True],
    "maximize": [True],
    "differentiable": [True],
}
WHERE = ["group", "added group", "loaded state"]


class Configuration(NamedTuple):
    """What is drawn; ``repr`` tells all of it."""

    seed: int
    tensors: list[tuple[tuple[int, ...], torch.dtype, str]]  # shape, type, layout
    groups: list[tuple[int, dict[str, Any]]]  # how many of the tensors, settings
    steps: int
    appearing: float  # how often a tensor has a gradient
    scale: float  # of the gradients
    special: str  # "", "zero", "inf": what one gradient is
    travels: bool
    closure: bool


def draw_one(draw: random.Random) -> Configuration:
    dtypes = draw.sample(DTYPES, draw.randint(1, 3))
    count = draw.randint(1, 6)
    layouts = ["usual", "transposed", "expanded storage"]
    tensors = [(draw.choice(SHAPES), draw.choice(dtypes), draw.choice(layouts)) for _ in range(count)]
    groups, left = [], count
    while left:
        taken = draw.randint(1, left)
        settings: dict[str, Any] = {
            "lr": draw.choice([0.0, 0, 1e-3, 0.1, 1]),
            "betas": draw.choice([(0.9, 0.999), (0.0, 0.0), [0.5, 0.9], (0, 0.95), (0.99, 0.5)]),
            "eps": draw.choice([1e-8, 1e-3, 1]),
            "weight_decay": draw.choice([0, 0.0, 0.01, 0.5]),
            "foreach": draw.choice([None, False, True]),
        }
        groups.append((taken, dict(draw.sample(list(settings.items()), draw.randint(0, len(settings))))))
        left -= taken
    more = draw.choice([1.0, 0.5]), draw.choice([1e-4, 1.0, 1e3]), draw.choice(["", "", "zero", "inf"])
    return Configuration(
        draw.randrange(10**6), tensors, groups, draw.randint(2, 12), *more, draw.random() < 0.3, draw.random() < 0.2
    )


def parameters(given: Configuration, generator: torch.Generator) -> list[nn.Parameter]:
    found = []
    for shape, dtype, layout in given.tensors:
        value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        if layout == "transposed" and value.ndim > 1:
            value = value.transpose(0, -1).contiguous().transpose(0, -1)
        elif layout == "expanded storage" and value.ndim:
            value = torch.stack([value, value], -1)[..., 0]  # every second number of its storage
        found.append(nn.Parameter(value))
    return found


def run(cls: type, given: Configuration, fused: bool = False) -> tuple[list[torch.Tensor], list[Any]]:
    """The weights at the end, and the optimizer's state of each."""
    generator, draw = torch.Generator().manual_seed(given.seed), random.Random(given.seed)
    params = parameters(given, generator)
    if fused:  # which takes the numbers in the order of its memory: of a transposed parameter the wrong ones
        params = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]
    groups, taken = [], 0
    for count, settings in given.groups:
        own = settings | ({"fused": True, "foreach": False} if fused else {})
        groups.append({"params": params[taken : taken + count]} | own)
        taken += count
    optimizer = cls(groups)
    special = draw.randrange(given.steps), draw.randrange(len(params))
    for step in range(given.steps):
        for number, p in enumerate(params):
            gradient = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * given.scale).to(p.dtype)
            if given.special and (step, number) == special:
                gradient = torch.full_like(gradient, {"zero": 0.0, "inf": float("inf")}[given.special])
            p.grad = gradient if draw.random() < given.appearing else None
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.9
        loss = optimizer.step((lambda: 3.0) if given.closure else None)
        assert loss == (3.0 if given.closure else None)
        if given.travels and step == given.steps // 2:
            state = copy.deepcopy(optimizer.state_dict())
            other = torch.optim.AdamW if cls is not torch.optim.AdamW else cls
            between = other([dict(group) for group in optimizer.param_groups])
            between.load_state_dict(state)
            optimizer.load_state_dict(copy.deepcopy(between.state_dict()))
    return [p.detach() for p in params], [optimizer.state.get(p, {}) for p in params]


def difference(cls: type, given: Configuration) -> str | None:
    """What differs from torch's AdamW, or what was raised.

    The compiled version keeps what is between two lines of the update in float32, as torch's fused one does: with
    parameters of 16 bits the other two round it (1e-8 is 0 there), as torch's other two do.
    """
    is_compiled = cls is CompiledAdamW
    if is_compiled:  # 64 kernels a process: the others would not be compiled
        torch._dynamo.reset()
        optim._compiled_update.cache_clear()
    wanted, states = run(torch.optim.AdamW, given, fused=is_compiled)
    try:
        found, own = run(cls, given)
    except Exception as error:  # any: torch took it
        return f"{type(error).__name__}: {str(error)[:300]}"
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        if own[number].keys() != states[number].keys():
            return f"the state of tensor {number} holds {list(own[number])}, torch's {list(states[number])}"
        pairs = [("weights", ours, theirs), *((name, own[number][name], states[number][name]) for name in own[number])]
        for name, a, b in pairs:
            if a.dtype != b.dtype or a.shape != b.shape or (a.stride() != b.stride() and not is_compiled):
                return (
                    f"{name} of tensor {number}: {a.dtype} {a.shape} {a.stride()} for {b.dtype} {b.shape} {b.stride()}"
                )
            # One unit in the last place a step: the same sums in another order.
            unit = torch.finfo(a.dtype).eps * (given.steps + 4)
            scale = max(1.0, b.double().nan_to_num(0, 0, 0).abs().max().item() if b.numel() else 0.0)
            a, b = (x.double().nan_to_num(float("inf"), float("inf"), float("inf")) for x in (a, b))  # one kind of lost
            if not torch.allclose(a, b, rtol=unit, atol=unit * scale):
                apart = (a - b).abs().max().item()
                return f"{name} of tensor {number} is {apart:.2g} off ({theirs.dtype})"
    return None


def refused(cls: type, given: Configuration, draw: random.Random) -> str | None:
    """None if something that torch takes, and these three do not follow, is refused in one sentence."""
    params = parameters(given, torch.Generator().manual_seed(given.seed))
    if draw.random() < 0.2:
        return _sentence(lambda: cls([nn.Parameter(torch.ones(2, dtype=torch.complex64))]), "complex64")
    if draw.random() < 0.2:
        table = nn.Embedding(4, 2, sparse=True)
        table(torch.tensor([1])).sum().backward()
        return _sentence(cls(table.parameters()).step, "sparse")
    name = draw.choice(list(ODD))
    value, where = draw.choice(ODD[name]), draw.choice(WHERE)
    if where == "group":
        return _sentence(lambda: cls([{"params": params, name: value}]), f"{name}=")
    optimizer = cls(params)
    if where == "added group":
        added = {"params": [nn.Parameter(torch.ones(2))], name: value}
        return _sentence(lambda: optimizer.add_param_group(added), f"{name}=")
    state = torch.optim.AdamW(params).state_dict()
    state["param_groups"][0][name] = value
    return _sentence(lambda: optimizer.load_state_dict(state), f"{name}=")


def _sentence(attempt: Any, word: str) -> str | None:
    try:
        attempt()
    except ValueError as error:
        text = str(error)
        return None if word in text and "allowed: " in text and "\n" not in text else f"refused as {text!r}"
    except Exception as error:  # any: it should have been a sentence
        return f"{type(error).__name__}: {error}"
    return f"{word} was taken"


def campaign(count: int, seed: int, only: str = "", seconds: float = float("inf")) -> Tally:
    """``count`` configurations of each class whose name begins with ``only``."""
    tally, began = Tally(), time.monotonic()
    for cls in (cls for cls in CLASSES if cls.__name__.startswith(only)):
        draw = random.Random(f"{seed} {cls.__name__}")
        for number in range(count):
            if time.monotonic() - began > seconds:
                break
            given = draw_one(draw)
            fault = refused(cls, given, draw) if number % 4 == 3 else difference(cls, given)
            tally.count(f"configuration: {cls.__name__}", fault and f"{given}: {fault}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="configurations of each class")
    parser.add_argument("--seed", type=int, default=0, help="of the configurations")
    parser.add_argument("--only", default="", help="classes whose name begins so")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no try after so many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tally = campaign(given.count, given.seed, given.only, given.seconds)
    tally.check()


if __name__ == "__main__":
    main()
