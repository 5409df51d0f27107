"""What the Trainer tests share: a classifier of two layers and runs of a second."""

import torch
from torch import nn

from course_utils.training.settings import quiet_trainer


class Classifier(nn.Module):
    """Dropout, so that the random state matters; a dictionary with the loss, as the Trainer wants it."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        output = {"logits": logits}
        if labels is not None:
            output = {"loss": nn.functional.cross_entropy(logits, labels)} | output
        return output


class GreedyClassifier(Classifier):
    """Accepts num_items_in_batch, like ModernBERT's classifier, and ignores it."""

    def forward(self, x, labels=None, **kwargs):
        return super().forward(x, labels)


def make_rows(count=64):
    generator = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(6, generator=generator), "labels": torch.tensor(i % 3)} for i in range(count)]


def make_trainer(folder, model=None, **settings):
    defaults = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1}
    defaults |= {"use_cpu": True, "seed": 0}
    return quiet_trainer(model or Classifier(), folder, make_rows(), make_rows(20), **(defaults | settings))


def same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
