"""Wrong answers to lesson 12's exercises, each with words of the hint it must get."""

import torch
from torch import nn

from course_utils.lessons.lesson_12 import solutions
from course_utils.lessons.lesson_12.solutions import solution_2, solution_3, solution_4


def mean_of_gradients(weight, gradients, lr):
    return solution_2(weight, [g / len(gradients) for g in gradients], lr)


def own_gradient(weight, gradients, lr):
    slices = [solution_2(weight, [g] + [0 * g] * (len(gradients) - 1), lr) for g in gradients]
    return [slices[rank][rank] for rank in range(len(gradients))]


def not_padded(weight, gradients, lr):
    flat = (weight - lr * sum(gradients)).flatten()
    return list(flat.tensor_split(len(gradients)))


def by_rows(weight, gradients, lr):
    return list((weight - lr * sum(gradients)).chunk(len(gradients)))


def all_of_it(weight, gradients, lr):
    return [(weight - lr * sum(gradients)).flatten()] * len(gradients)


def no_step(weight, gradients, lr):
    return solution_2(weight, [0 * g for g in gradients], lr)


def uphill(weight, gradients, lr):
    return solution_2(weight, gradients, -lr)


def fits(case, peak):
    num_layers, layer, outside, gpus, budget = case
    divisors = [k for k in range(1, num_layers + 1) if num_layers % k == 0]
    return max((k for k in divisors if peak(k, *case[:4]) <= budget), default=0)


def one_unit_gathered(*case):
    return fits(case, lambda k, n, layer, outside, gpus: 16 * (n * layer + outside) / gpus + 4 * (outside + k * layer))


def outer_forgotten(*case):
    return solution_3(case[0], case[1], 0, case[3], case[4] - 16 * case[2] / case[3])


def two_of_one(*case):
    return fits(
        case, lambda k, n, layer, outside, gpus: 16 * (n * layer + outside) / gpus + 4 * (outside + 2 * k * layer)
    )


def states_forgotten(*case):
    return fits(case, lambda k, n, layer, outside, gpus: 4 * outside + 4 * min(2, n // k) * k * layer)


def policy():
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(torch.bfloat16, torch.float32)


def sharded(model, lr, reshards, mp_policy=None, root=True):
    """Layer ``i`` reshards if ``reshards(i)``; the root is sharded as well if ``root``."""
    from torch.distributed.fsdp import fully_shard

    for number, layer in enumerate(model.model.layers):
        fully_shard(layer, mp_policy=mp_policy or policy(), reshard_after_forward=reshards(number))
    if root:
        fully_shard(model, mp_policy=mp_policy or policy())
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


def one_unit(model, lr, keep):
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mp_policy=policy())
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


def layers_only(model, lr, keep):
    return sharded(model, lr, lambda i: i < len(model.model.layers) - keep, root=False)


def optimizer_first(model, lr, keep):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return solutions.solution_5(model, lr, keep)[0], optimizer


def keeps_the_wrong_way(model, lr, keep):
    return sharded(model, lr, lambda i: i >= len(model.model.layers) - keep)


def keeps_the_first(model, lr, keep):
    return sharded(model, lr, lambda i: i >= keep)


def keeps_none(model, lr, keep):
    return sharded(model, lr, lambda i: True)


def minus_zero(model, lr, keep):
    kept = range(len(model.model.layers))[-keep:]
    return sharded(model, lr, lambda i: i not in kept)


def no_policy(model, lr, keep):
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return sharded(model, lr, lambda i: i < len(model.model.layers) - keep, MixedPrecisionPolicy())


def other_optimizer(model, lr, keep):
    model, _ = solutions.solution_5(model, lr, keep)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def model_only(model, lr, keep):
    return solutions.solution_5(model, lr, keep)[0]


def not_sharded(model, lr, keep):
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


def other(**changes):
    return {name: value for name, value in (solution_4 | changes).items() if value is not None}


WRONG = {
    "12.1": [
        ({"ddp": 32, "zero1": 20, "zero2": 14, "zero3": 8}, "16 bytes a parameter"),
        ({"ddp": 12, "zero1": 9, "zero2": 6, "zero3": 3}, "two moments"),
        ({"ddp": 16, "zero1": 12, "zero2": 8, "zero3": 8}, "an Nth"),
        ({"ddp": 16, "zero1": 10, "zero2": 10, "zero3": 4}, "gradients as well"),
        ({"ddp": 16, "zero1": 10, "zero2": 7, "zero3": 16}, "divides all"),
        ({"ddp": 16, "zero1": "ten", "zero2": 7, "zero3": 4}, "Which of the three"),
        ({}, "four numbers"),
    ],
    "12.2": [
        (mean_of_gradients, "mean of the gradients"),
        (own_gradient, "gradients of all ranks"),
        (not_padded, "pad before you cut"),
        (by_rows, "The slices are flat"),
        (all_of_it, "Cut it"),
        (no_step, "the step is missing"),
        (uphill, "subtract"),
        (lambda weight, gradients, lr: weight, "a tensor for each rank"),
        (lambda weight, gradients, lr: nn.functional.no_such(weight), "raised an exception"),
    ],
    "12.3": [
        (one_unit_gathered, "two of them"),
        (outer_forgotten, "outer unit"),
        (states_forgotten, "there all the time"),
        (two_of_one, "no second one"),
        (lambda *case: 1, "largest k"),
        (lambda *case: 5, "divide the number of layers"),
    ],
    "12.4": [
        (
            {"fsdp_version": 2, "sharding_strategy": "SHARD_GRAD_OP", "fsdp_offload_params": True},
            "It still reshards",
        ),
        (other(cpu_offload=None, fsdp_offload_params=True), "hides the key"),
        (
            other(transformer_layer_cls_to_wrap=None, transformer_cls_names_to_wrap="Qwen3DecoderLayer"),
            "No layer class",
        ),
        (other(state_dict_type=None, checkpoint_type="SHARDED_STATE_DICT"), "called otherwise"),
        (other(auto_wrap_policy="SIZE_BASED_WRAP"), "by layer class"),
        (other(auto_wrap_policy="NO_WRAP"), "by layer class"),
        (other(auto_wrap_policy=None, fsdp_auto_wrap="NO_WRAP", transformer_layer_cls_to_wrap=None), "No layer class"),
        (["version"], "a dict"),
    ],
    "12.5": [
        (one_unit, "gathered at once"),
        (layers_only, "shard the model too"),
        (optimizer_first, "Make it after sharding"),
        (keeps_the_wrong_way, "whether to keep"),
        (keeps_the_first, "the first layers"),
        (keeps_none, "Every layer is freed"),
        (minus_zero, "the whole list"),
        (no_policy, "mp_policy is missing"),
        (other_optimizer, "Is it AdamW"),
        (model_only, "Return two things"),
        (not_sharded, "Nothing is sharded"),
    ],
}
