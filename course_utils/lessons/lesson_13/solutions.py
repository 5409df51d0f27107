"""Solutions of lesson 13's exercises; the lesson shows them with ``teach.show_solution``."""

from __future__ import annotations

import copy

# Weights and gradients whole: 4 bytes x 30 million. Copies 4 and moments 8 bytes, divided by 8 ranks.
solution_1 = {"parameters": 120, "gradients": 120, "copies": 15, "optimizer": 30}


def solution_2(config, known):
    """One value a name, products where they are due, and the same for the dictionaries inside."""
    hidden = known["hidden_size"]
    values = {
        "train_batch_size": known["micro"] * known["accumulation"] * known["ranks"],
        "train_micro_batch_size_per_gpu": known["micro"],
        "gradient_accumulation_steps": known["accumulation"],
        "gradient_clipping": known["max_grad_norm"],
        "enabled": known["bf16"],
        "reduce_bucket_size": hidden**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden**2),
        "stage3_param_persistence_threshold": 10 * hidden,
    }
    filled = {}
    for name, value in config.items():
        if isinstance(value, dict):
            filled[name] = solution_2(value, known)
        else:
            filled[name] = values[name] if value == "auto" else value
    return filled


def solution_3(config, ranks):
    """Accumulation that fits, one scheduler, clipping written down, a threshold of 0."""
    repaired = copy.deepcopy(config)
    micro = repaired["train_micro_batch_size_per_gpu"]
    repaired["gradient_accumulation_steps"] = repaired["train_batch_size"] // micro // ranks
    repaired.pop("scheduler", None)
    repaired["gradient_clipping"] = 0.0
    zero = repaired["zero_optimization"]
    if zero["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = 0
    return repaired


def solution_4(parameters, ranks, budget):
    """Bytes of the four columns; stage 0 has no master copy."""
    whole, part = parameters, parameters / ranks
    sizes = [
        4 * whole + 4 * whole + 8 * whole,
        4 * whole + 4 * whole + 12 * part,
        4 * whole + 4 * part + 12 * part,
        4 * part + 4 * part + 12 * part,
    ]
    for stage, size in enumerate(sizes):
        if size <= budget:
            return stage
    return None


def solution_5(run):
    """Line by line."""
    zero = {"stage": run["stage"]}
    if run["offload"] != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if run["offload"] == "all":
        zero["offload_param"] = {"device": "cpu"}
    if run["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = run["smallest"]
        zero["stage3_gather_16bit_weights_on_model_save"] = run["save_whole"]
    config = {
        "train_batch_size": run["rows"],
        "train_micro_batch_size_per_gpu": run["micro"],
        "gradient_accumulation_steps": run["rows"] // run["micro"] // run["ranks"],
        "gradient_clipping": run["max_norm"] or 0.0,
        "bf16": {"enabled": run["bf16"]},
        "zero_optimization": zero,
    }
    if run["torch_optimizer"]:
        config["zero_allow_untested_optimizer"] = True
        if run["offload"] != "none":
            config["zero_force_ds_cpu_optimizer"] = False
    return config
