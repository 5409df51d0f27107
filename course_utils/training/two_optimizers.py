"""A Trainer with two optimizers: one for the model's loss, one for an auxiliary loss (lesson 07).

The model has ``aux_loss()``, a scalar that depends on the auxiliary parameters only. Four methods of the Trainer
change: who owns which parameter, what happens in a step, what a checkpoint holds, and what resuming reads.
Reference: transformers' page "Trainer", section "Subclassing Trainer methods".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

AUX_FILE = "aux_optimizer.pt"


def split_parameters(model: nn.Module, ending: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """``(main, auxiliary)``: parameters whose name's last part is ``ending`` are auxiliary, all others main.

    Each parameter is in one list, once; frozen ones (``requires_grad`` False) are in neither.

    Raises:
        ValueError: no trainable parameter has that name.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    auxiliary = [parameter for name, parameter in named if name.rpartition(".")[2] == ending]
    main = [parameter for name, parameter in named if name.rpartition(".")[2] != ending]
    if not auxiliary:
        names = sorted({name.rpartition(".")[2] for name, _ in named})
        raise ValueError(f"ending={ending!r} fits no trainable parameter; allowed: {', '.join(names)}")
    return main, auxiliary


class TwoOptimizersTrainer(Trainer):
    """Trains everything but the auxiliary parameters as Trainer does, and those on ``model.aux_loss()`` with Adam.

    Attributes:
        auxiliary: last part of the auxiliary parameters' names.
        auxiliary_lr: Adam's learning rate for them, constant.
    """

    auxiliary = "quantiles"
    auxiliary_lr = 2e-2

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's own optimizer without the auxiliary parameters, and ``self.aux_optimizer`` with them."""
        if self.optimizer is not None:
            return self.optimizer
        _, auxiliary = split_parameters(self.model if model is None else model, self.auxiliary)
        self.aux_optimizer = self.accelerator.prepare(torch.optim.Adam(auxiliary, lr=self.auxiliary_lr))
        for parameter in auxiliary:  # Trainer collects what requires a gradient: hide these for a moment
            parameter.requires_grad_(False)
        try:
            return super().create_optimizer(model)
        finally:
            for parameter in auxiliary:
                parameter.requires_grad_(True)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward as usual; with the window's last micro-batch also one auxiliary step."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            # Before Trainer clips: the auxiliary gradients are used and gone, they do not count in its norm.
            self.aux_optimizer.zero_grad()
            aux_loss = self.accelerator.unwrap_model(model).aux_loss()
            aux_loss.backward()
            self.aux_optimizer.step()
            self.aux_optimizer.zero_grad()
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.aux_optimizer.state_dict(), Path(output_dir) / AUX_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.aux_optimizer.load_state_dict(torch.load(Path(checkpoint) / AUX_FILE, weights_only=True))
