"""AdamW written from its update rule, three times: readable, foreach, compiled (lesson 01).

Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), Algorithm 2, in torch's form: decay is
multiplied by the learning rate, in the paper only by the schedule's factor. So halving lr also halves the decay here.
With gradient g, step t counted from 1 and learning rate lr (the schedule's factor included):

    p <- p - lr * weight_decay * p                    decay acts on the weights, not through the gradient
    m <- beta1 * m + (1 - beta1) * g                  moving average of g       (exp_avg)
    v <- beta2 * v + (1 - beta2) * g * g              moving average of g**2    (exp_avg_sq)
    p <- p - lr * m_hat / (sqrt(v_hat) + eps)         m_hat = m / (1 - beta1**t),  v_hat = v / (1 - beta2**t)

State names and shapes are ``torch.optim.AdamW``'s, so ``state_dict`` travels between it and all three classes.
"""

from __future__ import annotations

import functools
import math
import sysconfig
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MOST_KERNELS = 8  # of one CompiledAdamW; what would need more runs uncompiled
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_SWITCHES = {"amsgrad": False, "maximize": False, "differentiable": False, "decoupled_weight_decay": True}  # torch's


class AdamW(torch.optim.Optimizer):
    """AdamW, one parameter at a time: the version to read.

    Args:
        params: real tensors, or groups as ``parameter_groups`` makes them.
        lr: learning rate, >= 0.
        betas: decay of the two moving averages, each in [0, 1).
        eps: added to the root, > 0; it bounds the step where gradients vanish.
        weight_decay: decoupled decay, >= 0; each step shrinks a weight by ``lr * weight_decay`` of itself.

    Raises:
        ValueError: an argument out of its range, or one of torch's switches (amsgrad, maximize, ...) in a group or in
            a loaded state; a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        _check_group(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group is checked first."""
        _check_group(self.defaults | param_group)
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.is_complex():
                raise ValueError(f"a parameter is {p.dtype}; allowed: real ones (torch.view_as_real)")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, for a state of these three classes or of torch's AdamW.

        Raises:
            ValueError: it was made with a setting that would be ignored here, or lacks something; nothing is loaded.
        """
        for group in state_dict["param_groups"]:
            _check_group(group)
        for number, entry in state_dict["state"].items():
            if missing := [name for name in _MOMENTS if name not in entry]:
                raise ValueError(f"the state of parameter {number} lacks {missing[0]}; allowed: a state of AdamW")
        super().load_state_dict(state_dict)
        for entry in self.state.values():  # old states count with plain numbers
            entry["step"] = torch.as_tensor(entry["step"], dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; returns the closure's loss when one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.layout != torch.strided for p in params):
                raise ValueError("a parameter has a sparse gradient; allowed: dense ones (Embedding(sparse=False))")
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict, params: list[nn.Parameter]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        for p in params:
            state = self._state_of(p)
            m, v, g = state["exp_avg"], state["exp_avg_sq"], p.grad
            state["step"] += 1
            t = state["step"].item()

            p.mul_(1 - lr * group["weight_decay"])
            m.lerp_(g, 1 - beta1)  # m + (1 - beta1) * (g - m)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            # Both averages start at zero and are too small by exactly these factors at step t.
            m_scale, v_scale = 1 - beta1**t, 1 - beta2**t
            root = (v.sqrt() / v_scale**0.5).add_(group["eps"])
            p.addcdiv_(m, root, value=-lr / m_scale)

    def _state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)  # on the CPU: reading it must not wait for a GPU
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state


class ForeachAdamW(AdamW):
    """AdamW on lists of tensors: each line is one call for all parameters, so a GPU gets few kernels, not hundreds."""

    def _update(self, group: dict, params: list[nn.Parameter]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        states = [self._state_of(p) for p in params]
        g, m, v = [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        steps = [s["step"] for s in states]
        torch._foreach_add_(steps, 1)
        counts = [step.item() for step in steps]  # they differ when a layer had no gradient in some steps

        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, 1 - beta2)
        roots = torch._foreach_sqrt(v)
        torch._foreach_div_(roots, [(1 - beta2**t) ** 0.5 for t in counts])
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, m, roots, [-lr / (1 - beta1**t) for t in counts])


class CompiledAdamW(ForeachAdamW):
    """AdamW as one generated kernel: every number is read and written once per step instead of once per line.

    ``torch.compile`` fuses the elementwise lines of the update. What changes from step to step (learning rate, bias
    corrections) enters as a tensor: a Python float would be baked into the code and compiled anew every step. A kernel
    is made for a list of parameters; where gradients come and go, and more than a few lists occur, the further ones
    take ``ForeachAdamW``'s way.

    Raises:
        RuntimeError: no C++ compiler on this machine (``torch.compile`` generates C++ or Triton code).
    """

    def __init__(self, *args, **kwargs):
        if not compiler_available():
            raise RuntimeError(
                "CompiledAdamW needs a C++ compiler and Python's headers; "
                "install g++ and python3-dev, or use ForeachAdamW"
            )
        super().__init__(*args, **kwargs)
        self._kernels: set[tuple[int, ...]] = set()  # the lists of parameters that have one

    def _update(self, group: dict, params: list[nn.Parameter]) -> None:
        alike: dict[tuple, list[nn.Parameter]] = {}  # usually one entry: all at the same step, of one type
        for p in params:
            alike.setdefault((self._state_of(p)["step"].item() + 1, p.dtype, p.device), []).append(p)
        for (t, _, _), chosen in alike.items():
            if not self._update_compiled(group, chosen, t):
                super()._update(group, chosen)

    def _update_compiled(self, group: dict, params: list[nn.Parameter], t: float) -> bool:
        """Step ``t`` of parameters of one type on one device; False, and nothing is done, without a kernel for them."""
        kernel = tuple(map(id, params))
        if kernel not in self._kernels and len(self._kernels) >= MOST_KERNELS:
            return False
        self._kernels.add(kernel)
        lr, (beta1, beta2) = group["lr"], group["betas"]
        numbers = [1 - lr * group["weight_decay"], (1 - beta2**t) ** 0.5, -lr / (1 - beta1**t)]
        numbers += [1 - beta1, beta2, 1 - beta2, group["eps"]]
        precision = torch.promote_types(params[0].dtype, torch.float32)  # 1 - 1e-5 is 1 in bfloat16
        scalars = torch.tensor(numbers, dtype=precision, device=params[0].device)
        states = [self.state[p] for p in params]
        moments = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        # A tensor without a dimension counts as a constant for the compiler: what is written into it is lost.
        lists = [[x if x.ndim else x.unsqueeze(0) for x in xs] for xs in (params, [p.grad for p in params], *moments)]
        try:
            _compiled_update()(*lists, scalars)
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # the kernels of all optimizers together are too many
            return False
        torch._foreach_add_([state["step"] for state in states], 1)
        return True


def _adamw_lists(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], scalars: Tensor
) -> None:
    """The body that is compiled.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: equally long, of one type.
        scalars: (7,): decay factor, root of v's bias correction, negative step size, 1 - beta1, beta2, 1 - beta2, eps.
    """
    decay, v_root, step_size, new_in_m, old_in_v, new_in_v, eps = scalars.unbind()
    for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        new_m = m + new_in_m * (g - m)
        new_v = old_in_v * v + new_in_v * g * g
        m.copy_(new_m)
        v.copy_(new_v)
        p.copy_(p * decay + step_size * new_m / (new_v.sqrt() / v_root + eps))


@functools.cache
def _compiled_update() -> Callable:
    # One variant per list of shapes; torch's default limit of 8 variants is for code that should not vary.
    return torch.compile(_adamw_lists, fullgraph=True, dynamic=False, recompile_limit=64)


def compiler_available() -> bool:
    """True when ``torch.compile`` finds what it compiles with on a CPU: a C++ compiler (environment variable CXX, then
    the usual names) and Python's headers, which Debian and Ubuntu keep in a package of their own (python3-dev)."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: matrices with ``weight_decay``, biases and norm parameters without.

    A matrix's size is what regularisation is about. A norm's scale or a bias is one number per feature; pulling it to
    zero removes signal and buys nothing. Both are vectors, so the number of dimensions decides, as in GPT-2's public
    reimplementations; on the course's models the result equals ``Trainer.get_decay_parameter_names`` (tested).

    Args:
        model: its parameters with ``requires_grad`` are divided; a tied tensor counts once.
        weight_decay: >= 0.

    Returns:
        Groups with keys ``params`` and ``weight_decay``; an empty one is left out.
    """
    _check_range("weight_decay", weight_decay, weight_decay >= 0, "a number >= 0")
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _check_group(group: dict[str, Any]) -> None:
    """Raise ``ValueError`` for a group of settings, given, added or loaded, that the three classes do not follow."""
    for name in ("lr", "betas", "eps", "weight_decay"):
        if name not in group:
            raise ValueError(f"{name} is missing in a group; allowed: groups of AdamW")
    betas, eps = group["betas"], group["eps"]
    for name in ("lr", "weight_decay"):
        _check_range(name, group[name], _is_number(group[name]) and group[name] >= 0, "a finite number >= 0")
    two = isinstance(betas, tuple | list) and len(betas) == 2 and all(map(_is_number, betas))
    _check_range("betas", betas, two and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")
    _check_range("eps", eps, _is_number(eps) and eps > 0, "a finite number > 0")
    for name, followed in _SWITCHES.items():
        _check_range(name, group.get(name, followed), group.get(name, followed) == followed, f"{followed}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_range(name: str, value: object, allowed: bool, text: str) -> None:
    if not allowed:
        raise ValueError(f"{name}={value} is out of range; allowed: {text}")
