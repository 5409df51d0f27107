"""Solutions of lesson 12's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

import torch
from torch import nn

# Bytes per parameter: 2 + 2 + 4 = 8; 2 + 2 + 4/4 = 5; 2 + (2 + 4)/4 = 3.5; 8/4 = 2. Times 2 billion.
solution_1 = {"ddp": 16, "zero1": 10, "zero2": 7, "zero3": 4}


def solution_2(weight, gradients, lr):
    """Reduce, pad, cut, update."""
    ranks = len(gradients)
    part = -(-weight.numel() // ranks)
    padding = (0, ranks * part - weight.numel())
    flat = nn.functional.pad(weight.flatten(), padding)
    total = nn.functional.pad(sum(gradients).flatten(), padding)
    slices = zip(flat.split(part), total.split(part), strict=True)
    return [own - lr * gradient for own, gradient in slices]


def solution_3(num_layers, layer, outside, gpus, budget):
    """Shards of the states, the outer unit, and two units where there are two."""
    states = 16 * (num_layers * layer + outside) / gpus
    for k in range(num_layers, 0, -1):
        if num_layers % k == 0:
            units = min(2, num_layers // k)
            if states + 4 * outside + 4 * units * k * layer <= budget:
                return k
    return 0


solution_4 = {
    "version": 2,
    "reshard_after_forward": False,
    "cpu_offload": True,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": "Qwen3DecoderLayer",
    "state_dict_type": "SHARDED_STATE_DICT",
}


def solution_5(model, lr, keep):
    """Layers, then the model, then the optimizer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    layers = model.model.layers
    for number, layer in enumerate(layers):
        fully_shard(layer, mp_policy=policy, reshard_after_forward=number < len(layers) - keep)
    fully_shard(model, mp_policy=policy)
    return model, torch.optim.AdamW(model.parameters(), lr=lr)
