"""Wrong answers to lesson 15's exercises, each with words of the hint it must get."""

from course_utils.lessons.lesson_15.solutions import solution_1, solution_2, solution_3, solution_4, solution_5


def then(solution, change):
    """The solution with one thing broken again."""

    def answer(config):
        config = solution(config)
        change(config)
        return config

    return answer


def without_prefix(config):
    sizes = config["parallelism_config"]
    config["parallelism_config"] = {name.removeprefix("parallelism_config_"): size for name, size in sizes.items()}


def sharding_strategy(config):
    del config["fsdp_config"]["fsdp_reshard_after_forward"]
    config["fsdp_config"]["fsdp_sharding_strategy"] = "SHARD_GRAD_OP"


def list_of_classes(config):
    config["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] = ["Qwen3DecoderLayer"]


def offload_outside(config):
    config["offload_optimizer"] = config["zero_optimization"].pop("offload_optimizer")


def but(**changes):
    return lambda: solution_4() | changes


def instead(old, new):
    """The right command with one word replaced."""
    return lambda *given: [new if word.startswith(old) else word for word in solution_5(*given)]


WRONG = {
    "15.1": [
        (lambda config: config, "counts all machines' processes"),
        (then(solution_1, lambda c: c.update(num_processes=8)), "counts all machines' processes"),
        (then(solution_1, without_prefix), "keep their whole name"),
        (then(solution_1, sharding_strategy), "one yes-or-no question"),
        (
            then(
                solution_1, lambda c: c["fsdp_config"].update(fsdp_transformer_layer_cls_to_wrap=["Qwen3DecoderLayer"])
            ),
            "splits one string",
        ),
        (lambda config: list(config), "return it"),
    ],
    "15.2": [
        (then(solution_2, lambda c: c.update(offload_params=c.pop("cpu_offload"))), "looks for cpu_offload"),
        (then(solution_2, lambda c: c.update(fsdp_offload_params=c.pop("cpu_offload"))), "looks for cpu_offload"),
        (
            then(solution_2, lambda c: c.update(gradient_checkpointing=c.pop("activation_checkpointing"))),
            "any other spelling",
        ),
    ],
    "15.3": [
        (then(solution_3, lambda c: c.update(train_batch_size=64)), "micro-batch x accumulation x ranks"),
        (then(solution_3, lambda c: c.update(gradient_clipping="auto")), "filled in only by the Hugging Face"),
        (then(solution_3, offload_outside), "inside zero_optimization"),
        (
            then(solution_3, lambda c: c.update(gradient_accumulation_steps=1, train_batch_size=64)),
            "micro-batch x accumulation x ranks",
        ),
    ],
    "15.4": [
        (but(strategy="ddp"), "the verdict says"),
        (but(micro_batch=8), "the verdict says"),
        (but(checkpointing=True), "Is recomputation needed"),
        (but(offload="all"), "in no other way"),
        (but(micro_batch=3), "refused"),
        (but(gpus_per_node=16), "The rest of the run is fixed"),
    ],
    "15.5": [
        (instead("--node-rank", "--node-rank=0"), "differs from machine to machine"),
        (instead("--nproc-per-node", "--nproc-per-node=24"), "one machine's processes"),
        (instead("--master-addr", "--master-addr=127.0.0.1"), "machine 0"),
        (instead("--node-rank", "--rdzv-backend=c10d"), "static rendezvous"),
        (instead("--nnodes", "--num-nodes=3"), "torchrun --help"),
        (lambda *given: " ".join(solution_5(*given)), "One word per list entry"),
    ],
}
