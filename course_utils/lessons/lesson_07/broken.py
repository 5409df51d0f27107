"""The Trainer that exercise 07.5 repairs, the model it trains, and what is asked of the repaired one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from course_utils.teach.exercise import Wrong
from course_utils.training.settings import quiet_trainer

LEVELS_FILE = "levels_optimizer.pt"


class Watched(nn.Module):
    """A regression whose ``levels`` follow the lengths of its layers' weights, by a loss of their own."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
        self.levels = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """x (B, 3), labels (B, 1)."""
        logits = self.layers(x)
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}

    def aux_loss(self) -> Tensor:
        """Squared distance of the levels from the lengths of the layers' weights, which are held fixed."""
        lengths = torch.stack([self.layers[i].weight.detach().norm() for i in (0, 2)])
        return (self.levels - lengths).square().sum()


class BrokenTrainer(Trainer):
    """Should train ``levels`` on ``aux_loss`` with an optimizer of their own. Three of its four methods are wrong."""

    def create_optimizer(self, model=None):
        self.aux_optimizer = torch.optim.Adam([self.model.levels], lr=0.05)
        return super().create_optimizer(model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.aux_optimizer.step()
        model.aux_loss().backward()
        self.aux_optimizer.zero_grad()
        return loss

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        torch.save(self.aux_optimizer.state_dict(), Path(output_dir) / LEVELS_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)


def check_trainer(answer: Any) -> None:
    """Raise ``Wrong`` for the first thing that ``answer``, a subclass of ``BrokenTrainer``, gets wrong."""
    if not isinstance(answer, type) or not issubclass(answer, BrokenTrainer):
        raise Wrong(
            given="your answer",
            expected="a subclass of BrokenTrainer",
            got=repr(answer)[:80],
            hint="Write class Repaired(BrokenTrainer) and override the methods that are at fault.",
        )
    for width, accumulation in ((4, 1), (3, 2), (6, 3)):
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            _check(answer, width, accumulation, folder)


def _make(answer: type, width: int, accumulation: int, folder: str, steps: int = 4) -> Trainer:
    torch.manual_seed(width)
    rows = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(48)]
    return quiet_trainer(
        Watched(width),
        folder,
        rows,
        trainer_class=answer,
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=2,
        use_cpu=True,
        seed=0,
    )


def _check(answer: type, width: int, accumulation: int, folder: str) -> None:
    given = f"4 steps with {accumulation} micro-batches each, {width} hidden units"

    def need(holds: bool, expected: str, got: Any, hint: str) -> None:
        if not holds:
            raise Wrong(given=given, expected=expected, got=str(got)[:150], hint=hint)

    trainer = _make(answer, width, accumulation, folder)
    trainer.train()
    model, own, auxiliary = trainer.model, _names(trainer.optimizer, trainer), _names(trainer.aux_optimizer, trainer)
    everything = {name for name, _ in model.named_parameters()}
    need(
        "levels" not in own,
        "the main optimizer without levels",
        own,
        "Two optimizers own `levels`. Hide it from Trainer's.",
    )
    need(
        set(own) == everything - {"levels"}, "all layers in the main optimizer", own, "The main optimizer lost layers."
    )
    need(
        auxiliary == ["levels"],
        "levels alone in aux_optimizer",
        auxiliary,
        "aux_optimizer owns `levels` and nothing else.",
    )
    hint = "`levels` must stay trainable after create_optimizer: turn requires_grad on again."
    need(model.levels.requires_grad, "requires_grad True", False, hint)
    state = trainer.aux_optimizer.state_dict()["state"]
    taken = int(state[0]["step"]) if state else 0
    hint = "Step once per window: self.accelerator.sync_gradients is True at its last micro-batch."
    if not taken:
        hint = "aux_optimizer never stepped: when its step comes, `levels` have no gradient, so they do not move."
    need(taken == 4, "4 auxiliary steps", taken, hint)
    resumed = _make(answer, width, accumulation, folder)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    apart = {
        name: float((a - b).abs().max())
        for (name, a), b in zip(model.state_dict().items(), resumed.model.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    }
    hint = (
        "The weights resume, `levels` do not: its optimizer starts without its moments. Load the file that was saved."
    )
    need(not apart, "the weights of the uninterrupted run, bit for bit", apart, hint)


def _names(optimizer: Any, trainer: Trainer) -> list[str]:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return [
        names.get(id(p), "a tensor that is not the model's")
        for group in optimizer.param_groups
        for p in group["params"]
    ]
