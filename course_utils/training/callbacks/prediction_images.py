"""A picture of predictions in the trackers at every evaluation: a curve does not show which answers are wrong (14)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn


class PredictionImages(TrainerCallback):
    """``draw(model)`` at every evaluation, on rank 0, into TensorBoard's event files and into a W&B run if one is open.

    Args:
        draw: model in evaluation mode -> matplotlib figure; it must not draw random numbers.
        folder: where TensorBoard's files go; the Trainer's own may lie in the same folder.
        tag: the picture's name in the trackers.
    """

    def __init__(self, draw: Callable[[nn.Module], Figure], folder: str | Path, tag: str = "predictions"):
        self.draw, self.folder, self.tag = draw, str(folder), tag

    def on_evaluate(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        from torch.utils.tensorboard import SummaryWriter

        was_training = model.training
        figure = self.draw(model.eval())
        model.train(was_training)
        with SummaryWriter(self.folder) as writer:
            writer.add_figure(self.tag, figure, state.global_step, close=False)
        if "wandb" in args.report_to:
            import wandb

            if wandb.run is not None:
                wandb.log({self.tag: wandb.Image(figure)}, step=state.global_step)
