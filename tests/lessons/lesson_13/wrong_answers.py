"""Wrong answers to lesson 13's exercises, each with words of the hint it must get."""

import copy

from course_utils.lessons.lesson_13.solutions import solution_2, solution_3, solution_4, solution_5

RIGHT = {"parameters": 120, "gradients": 120, "copies": 15, "optimizer": 30}


def in_place(config, known):
    config.update(solution_2(config, known))
    return config


def outer_only(config, known):
    return {
        name: value if isinstance(value, dict) else solution_2({name: value}, known)[name]
        for name, value in config.items()
    }


def no_ranks(config, known):
    wrong = solution_2(config, known | {"ranks": 1})
    return wrong


def overwrites(config, known):
    filled = solution_2(config, known)
    filled["gradient_clipping"] = known["max_grad_norm"]
    return filled


def copies_64(config, known):
    filled = solution_2(config, known)
    if config["zero_optimization"]["reduce_bucket_size"] == "auto":
        filled["zero_optimization"]["reduce_bucket_size"] = 4096
    return filled


def without(name, block=None):
    def repair(config, ranks):
        fixed = solution_3(config, ranks)
        (fixed[block] if block else fixed).pop(name, None)
        return fixed

    return repair


def other_batch(config, ranks):
    fixed = copy.deepcopy(config)
    product = fixed["train_micro_batch_size_per_gpu"] * fixed["gradient_accumulation_steps"] * ranks
    return fixed | {"train_batch_size": product}


def keeps_scheduler(config, ranks):
    return solution_3(config, ranks) | {name: config[name] for name in ("scheduler",) if name in config}


def keeps_accumulation(config, ranks):
    return solution_3(config, ranks) | {"gradient_accumulation_steps": config["gradient_accumulation_steps"]}


def other_stage(config, ranks):
    fixed = solution_3(config, ranks)
    fixed["zero_optimization"]["stage"] = 2
    return fixed


def forgets_copies(parameters, ranks, budget):
    part = parameters / ranks
    sizes = (16 * parameters, 8 * parameters + 8 * part, 4 * parameters + 12 * part, 16 * part)
    return next((stage for stage, size in enumerate(sizes) if size <= budget), None)


def copies_in_stage_0(parameters, ranks, budget):
    return max(1, solution_4(parameters, ranks, budget) or 0)


def strict(parameters, ranks, budget):
    return solution_4(parameters, ranks, budget - 1)


def changed(path, value):
    """The solution with one value changed (None: left out)."""

    def write(run):
        config = solution_5(run)
        *blocks, name = path.split(".")
        holder = config
        for block in blocks:
            holder = holder.setdefault(block, {})
        holder[name] = value(run)
        if holder[name] is None:
            del holder[name]
        return config

    return write


WRONG = {
    "13.1": [
        (RIGHT | {"gradients": 15}, "stage 2 on"),
        (RIGHT | {"parameters": 15}, "stage 3 only"),
        (RIGHT | {"optimizer": 15}, "two moments"),
        (RIGHT | {"optimizer": 240}, "plain data parallel"),
        (RIGHT | {"copies": 0}, "copies of its own"),
        (RIGHT | {"copies": 120}, "its own slice"),
        (RIGHT | {"parameters": 120_000_000}, "millions of bytes"),
        ({}, "all four"),
        (285, "all four"),
    ],
    "13.2": [
        (in_place, "given config was changed"),
        (outer_only, "still auto"),
        (no_ranks, "three numbers multiplied"),
        (overwrites, "leave numbers alone"),
        (copies_64, "two widths"),
        (lambda config, known: {}, "still be there"),
        (lambda config, known: "auto", "as a dict"),
    ],
    "13.3": [
        (without("gradient_clipping"), "when the line is missing"),
        (without("stage3_param_persistence_threshold", "zero_optimization"), "Every tensor"),
        (other_batch, "repair the other one"),
        (keeps_scheduler, "one too many"),
        (keeps_accumulation, "must be the batch"),
        (other_stage, "Leave the stage"),
        (lambda config, ranks: {}, "zero_optimization"),
    ],
    "13.4": [
        (forgets_copies, "master copy"),
        (copies_in_stage_0, "lowest that fits counts"),
        (strict, "equals the budget"),
        (lambda parameters, ranks, budget: 3, "lower one does too"),
        (lambda parameters, ranks, budget: budget / 0, "raised an exception"),
    ],
    "13.5": [
        (changed("gradient_clipping", lambda run: run["max_norm"]), "clips at 1.0"),
        (changed("gradient_accumulation_steps", lambda run: run["rows"] // run["micro"]), "must be the rows"),
        (changed("bf16", lambda run: run["bf16"]), "block bf16"),
        (changed("zero_optimization.stage3_param_persistence_threshold", lambda run: run["smallest"]), "mean nothing"),
        (changed("zero_optimization.offload_param", lambda run: {"device": "cpu"}), "'all' only"),
        (changed("zero_force_ds_cpu_optimizer", lambda run: None), "insists on an optimizer"),
        (changed("zero_allow_untested_optimizer", lambda run: None), "may use it"),
        (changed("zero_optimization.stage3_gather_16bit_weights_on_model_save", lambda run: None), "save_model"),
        (lambda run: {}, "block zero_optimization"),
    ],
}
