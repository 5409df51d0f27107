"""How well the trained decoder of lesson 11 predicts this project's own sentences."""

from __future__ import annotations

import torch
from torch import nn

from course_utils.parallel import reference


@torch.no_grad()
def losses(model: nn.Module, sentences: list[str], source: str) -> list[float]:
    """Mean loss per target (nats) of each sentence."""
    found = []
    for ids in reference.encode(sentences, source):
        row = torch.tensor([ids])
        batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}
        found.append(reference.summed_loss(model, batch).item() / reference.count_targets(batch))
    return found


def load_trained(seed: int, file: str) -> nn.Module:
    """The model whose weights rank 0 has saved into ``file``."""
    from safetensors.torch import load_model

    model = reference.new_model(seed)
    load_model(model, file)
    return model.eval()
