"""ZeRO by hand: three classes with one interface, each a change to the one before (lesson 12).

    zero = Zero2(model, units, make_optimizer)   # on every rank, inside a process group
    loss.backward()
    zero.step()                                  # the sum of the ranks' gradients, one optimizer step, fresh weights

What is divided among N ranks: stage 1 the optimizer's state, stage 2 the gradients as well, stage 3 the parameters too.
Gradients are summed over the ranks: divide the loss by the targets of all ranks.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5; the
order of gathering and freeing in stage 3 is FSDP's (Zhao et al. 2023, "PyTorch FSDP", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Unit:
    """Parameters that travel together: one flat buffer, cut into a slice for each rank.

    ``whole`` (N * part,) holds all of them, padded with zeros to a multiple of the N ranks; the model's parameters are
    views into it. ``own`` (part,) is this rank's slice, the parameter that its optimizer updates: here a view too.

    Args:
        parameters: of one kind of number, on one device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self.shapes = [p.shape for p in self.parameters]
        count, ranks = sum(p.numel() for p in self.parameters), dist.get_world_size()
        self.part = -(-count // ranks)
        self.whole = self.parameters[0].new_zeros(ranks * self.part, requires_grad=False)
        for parameter, view in zip(self.parameters, self.views(self.whole), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.own = nn.Parameter(self.slice_of(self.whole))

    def views(self, flat: Tensor) -> list[Tensor]:
        """``flat`` (N * part,) cut into the parameters' shapes; the padding is left out."""
        sizes = [shape.numel() for shape in self.shapes]
        pieces = flat[: sum(sizes)].split(sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def slice_of(self, flat: Tensor) -> Tensor:
        """This rank's slice (part,) of ``flat`` (N * part,), a view."""
        start = dist.get_rank() * self.part
        return flat[start : start + self.part]

    def gather(self) -> None:
        """All-gather: ``whole`` from everybody's ``own``."""
        dist.all_gather_into_tensor(self.whole, self.own.detach())

    def reduce(self, gradient: Tensor) -> Tensor:
        """Reduce-scatter: this rank's slice (part,) of the ranks' summed gradients (N * part,)."""
        mine = torch.empty_like(self.own)
        dist.reduce_scatter_tensor(mine, gradient)
        return mine


class Zero1:
    """Stage 1: every rank has all parameters and gradients, and the optimizer state of its slice only.

    Args:
        model: equal on all ranks.
        units: modules that become units of their own; what is in none of them is the last unit.
        make_optimizer: takes the list of this rank's slices.
    """

    def __init__(self, model: nn.Module, units: Sequence[nn.Module], make_optimizer: MakeOptimizer):
        inside = [list(module.parameters()) for module in units]
        taken = {p for parameters in inside for p in parameters}
        rest = [p for p in model.parameters() if p not in taken]
        self.model, self.units = model, [Unit(parameters) for parameters in [*inside, rest] if parameters]
        self.prepare_gradients()
        self.optimizer = make_optimizer([unit.own for unit in self.units])

    def prepare_gradients(self) -> None:
        """``backward`` adds into one flat gradient per unit, which stays."""
        self.gradients = [torch.zeros_like(unit.whole) for unit in self.units]
        for unit, gradient in zip(self.units, self.gradients, strict=True):
            for parameter, view in zip(unit.parameters, unit.views(gradient), strict=True):
                parameter.grad = view

    def step(self) -> None:
        self.reduce_gradients()
        self.optimizer.step()
        self.clear_gradients()
        self.publish()

    def reduce_gradients(self) -> None:
        for unit, gradient in zip(self.units, self.gradients, strict=True):
            unit.own.grad = unit.reduce(gradient)

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad()
        for gradient in self.gradients:
            gradient.zero_()

    def publish(self) -> None:
        """Each rank has updated its slice: everybody needs all of them."""
        for unit in self.units:
            unit.gather()

    def whole_weights(self) -> Tensor:
        """All parameters of the model in one row, on every rank."""
        with torch.no_grad():
            return torch.cat([p.detach().flatten().float().cpu() for p in self.model.parameters()])

    def gathered_bytes(self) -> int:
        """Bytes of whole parameters that are there right now."""
        return sum(unit.whole.untyped_storage().nbytes() for unit in self.units)


class Zero2(Zero1):
    """Stage 2: a unit's gradients are reduced as soon as ``backward`` has all of them; only the slice is kept."""

    def prepare_gradients(self) -> None:
        for unit in self.units:
            unit.missing = len(unit.parameters)
            for parameter in unit.parameters:
                parameter.register_post_accumulate_grad_hook(lambda p, unit=unit: self.arrived(unit))

    def arrived(self, unit: Unit) -> None:
        """A parameter of ``unit`` has its gradient; after the last one the unit is reduced."""
        unit.missing -= 1
        if unit.missing:
            return
        unit.missing = len(unit.parameters)
        flat = torch.zeros_like(unit.whole)
        for parameter, view in zip(unit.parameters, unit.views(flat), strict=True):
            view.copy_(parameter.grad)
            parameter.grad = None
        mine = unit.reduce(flat)
        unit.own.grad = mine if unit.own.grad is None else unit.own.grad + mine

    def reduce_gradients(self) -> None:
        """Done during ``backward``."""

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad()


class Zero3(Zero2):
    """Stage 3: a rank keeps its slice of each unit's parameters and gathers the rest just before it is computed with.

    A unit is gathered before its forward pass and freed after it, gathered again before its backward pass and freed
    when its gradients are reduced. What is in no unit (embedding, last norm, output layer) stays in between: its
    backward pass comes first.

    Args:
        reshard_after_forward: False: units stay gathered from the forward to the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[nn.Module],
        make_optimizer: MakeOptimizer,
        reshard_after_forward: bool = True,
    ):
        super().__init__(model, units, make_optimizer)
        for unit in self.units:
            unit.own.data = unit.own.detach().clone()  # memory of its own: whole is going to be freed
            free(unit)
        for module, unit in zip(units, self.units, strict=False):
            module.register_forward_pre_hook(lambda *_, unit=unit: fetch(unit))
            if reshard_after_forward:
                module.register_forward_hook(lambda *_, unit=unit: free(unit))
            module.register_full_backward_pre_hook(lambda *_, unit=unit: fetch(unit))
        model.register_forward_pre_hook(lambda *_: fetch(self.units[-1]))
        model.register_forward_hook(self.after_forward)

    def after_forward(self, *_: object) -> None:
        if not torch.is_grad_enabled():  # no backward pass will free them
            for unit in self.units:
                free(unit)

    def arrived(self, unit: Unit) -> None:
        super().arrived(unit)
        if unit.missing == len(unit.parameters):  # reduced
            free(unit)

    def publish(self) -> None:
        """Nothing: the next forward pass gathers what it needs."""

    def whole_weights(self) -> Tensor:
        for unit in self.units:
            fetch(unit)
        weights = super().whole_weights()
        for unit in self.units:
            free(unit)
        return weights


def fetch(unit: Unit) -> None:
    """Give ``whole`` its memory back and gather it, if it is not there.

    The storage stays the same object: all views of it see the numbers again, also those that autograd saved.
    """
    size = unit.whole.numel() * unit.whole.element_size()
    if unit.whole.untyped_storage().nbytes() != size:
        unit.whole.untyped_storage().resize_(size)
        unit.gather()


def free(unit: Unit) -> None:
    """Take away ``whole``'s memory. The model's parameters stay views of it, with nothing inside."""
    unit.whole.untyped_storage().resize_(0)


STAGES = {"zero1": Zero1, "zero2": Zero2, "zero3": Zero3}
