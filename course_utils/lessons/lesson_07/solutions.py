"""Solutions of lesson 07's exercises."""

from pathlib import Path

import torch

from course_utils.lessons.lesson_07.broken import LEVELS_FILE, BrokenTrainer

solution_1 = {"doubled", "critical only"}


def solution_2(rows):
    """Pad with zeros behind the points; a position is real while it is smaller than the cloud's size."""
    clouds = [torch.as_tensor(row["points"]) for row in rows]
    sizes = torch.tensor([len(cloud) for cloud in clouds])
    points = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True)
    mask = torch.arange(points.shape[1]) < sizes[:, None]
    labels = torch.tensor([row["label"] for row in rows])
    return {"points": points, "mask": mask, "labels": labels}


def solution_3(model):
    """The last part of the name decides; what is frozen belongs to nobody."""
    main, auxiliary = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_auxiliary = name.split(".")[-1] == "quantiles"
            (auxiliary if is_auxiliary else main).append(parameter)
    return main, auxiliary


def solution_4(grad, x, threshold, leak):
    """Inside: leak * x. Outside: x - (1 - leak) * threshold * sign(x)."""
    inside, sign = x.abs() <= threshold, torch.sign(x)
    grad_x = torch.where(inside, leak * grad, grad)
    grad_threshold = torch.where(inside, 0, -(1 - leak) * sign * grad).sum()
    grad_leak = torch.where(inside, x * grad, threshold * sign * grad).sum()
    return grad_x, grad_threshold, grad_leak


class solution_5(BrokenTrainer):  # noqa: N801 - the engine finds a solution by this name
    """One owner for each parameter, one auxiliary step a window, and what was saved is loaded."""

    def create_optimizer(self, model=None):
        self.model.levels.requires_grad_(False)  # hidden from Trainer's optimizer
        optimizer = super(BrokenTrainer, self).create_optimizer(model)
        self.model.levels.requires_grad_(True)
        self.aux_optimizer = torch.optim.Adam([self.model.levels], lr=0.05)
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super(BrokenTrainer, self).training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.aux_optimizer.zero_grad()
            model.aux_loss().backward()
            self.aux_optimizer.step()
            self.aux_optimizer.zero_grad()
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.aux_optimizer.load_state_dict(torch.load(Path(checkpoint) / LEVELS_FILE, weights_only=True))
