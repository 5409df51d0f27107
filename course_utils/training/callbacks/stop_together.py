"""Make the ranks agree on when to stop: a rank that stops alone leaves the others waiting (lesson 05)."""

from __future__ import annotations

import torch
from transformers import TrainerCallback


class StopTogether(TrainerCallback):
    """If one rank wants to stop or save, all do; steps on which they disagreed are in ``disagreements``.

    Give it last: it must see what the other callbacks decided. It exchanges two numbers a step, so it costs one small
    collective and one wait a step; on a single process it does nothing. Decisions made in ``on_evaluate`` come after
    ``on_step_end``: they are exchanged at the end of the evaluation too.
    """

    def __init__(self):
        self.disagreements: list[int] = []

    def on_step_end(self, args, state, control, **kwargs):
        self._agree(args, state, control)

    def on_evaluate(self, args, state, control, **kwargs):
        self._agree(args, state, control)

    def _agree(self, args, state, control) -> None:
        if args.world_size == 1:
            return
        wishes = torch.tensor([control.should_training_stop, control.should_save], device=args.device).float()
        most, least = wishes.clone(), wishes.clone()
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        if not torch.equal(most, least):
            self.disagreements.append(state.global_step)
        control.should_training_stop, control.should_save = (bool(wish) for wish in most.tolist())
