"""Wrong answers to lesson 15's exercises, each with words of the hint it must get."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from course_utils.launch import Spec, write
from course_utils.lessons.lesson_15.exercises_run import ORDER
from course_utils.lessons.lesson_15.solutions import (
    solution_1,
    solution_2,
    solution_3,
    solution_4,
    solution_5,
    solution_6,
    solution_8,
    solution_9,
)


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
    return lambda: solution_2() | changes


def instead(old, new):
    """The right command with one word replaced."""
    return lambda *given: [new if word.startswith(old) else word for word in solution_3(*given)]


def by_beginning(hosts, gpus, me, port):
    """gpu-1 is taken for gpu-10."""
    rank = next(rank for rank, host in enumerate(hosts) if host.startswith(me.split(".")[0]))
    return [f"--node-rank={rank}" if w.startswith("--node-rank") else w for w in solution_3(hosts, gpus, me, port)]


def always_several(hosts, gpus, me, port):
    words = ["torchrun", f"--nnodes={len(hosts)}", f"--nproc-per-node={gpus}", f"--master-addr={hosts[0]}"]
    rank = list(hosts).index(me.split(".")[0])
    return [*words, f"--node-rank={rank}", f"--master-port={port}"]


SCRATCH = TemporaryDirectory()


def own(name, text, asked=None):
    """A file of these words, and what is claimed of it."""

    def answer():
        path = Path(SCRATCH.name, name)
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return str(path), asked or {"micro_batch": 4, "accumulation": 2, "precision": "bf16"}

    return answer


HEALTHY = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "bf16": {"enabled": True}}
HEALTHY |= {"zero_optimization": {"stage": 2}}


def launched(**changes):
    """The order's files with some fields changed."""

    def answer(folder):
        spec = Spec(**ORDER | {"strategy": "fsdp2", "replicas": 2, "micro_batch": 2, "checkpointing": True} | changes)
        write(spec, folder)
        return spec

    return answer


def edited_afterwards(folder):
    spec = solution_9(folder)
    path = Path(folder, "accelerate.yaml")
    path.write_text(path.read_text().replace("num_processes: 16", "num_processes: 8"))
    return spec


def by_hand(folder):
    Path(folder).mkdir()
    Path(folder, "spec.yaml").write_text("model: [1")
    return folder


def without(*causes):
    """A diagnosis that never sees these causes."""
    return lambda *given: "fine" if solution_8(*given) in causes else solution_8(*given)


def shards_first(asked, run, log):
    held = max(run["parameters_held"]) > 1.01 * asked["parameters_held"]
    return "shards" if held else solution_8(asked, run, log)


def by_name(asked, run, log):
    found = solution_8(asked, run, log)
    return "fine" if found == "shards" and run["strategy"] == asked["strategy"] else found


def any_limit(asked, run, log):
    found = solution_8(asked, run, log)
    return "time" if found == "fine" and "TIME LIMIT" in log else found


WRONG = {
    "15.4": [
        (lambda config: config, "counts all machines' processes"),
        (then(solution_4, lambda c: c.update(num_processes=8)), "counts all machines' processes"),
        (then(solution_4, without_prefix), "keep their whole name"),
        (then(solution_4, sharding_strategy), "one yes-or-no question"),
        (
            then(
                solution_4, lambda c: c["fsdp_config"].update(fsdp_transformer_layer_cls_to_wrap=["Qwen3DecoderLayer"])
            ),
            "splits one string",
        ),
        (lambda config: list(config), "return it"),
        (lambda config: {}, "asks for the tool's defaults"),
    ],
    "15.5": [
        (then(solution_5, lambda c: c.update(offload_params=c.pop("cpu_offload"))), "looks for cpu_offload"),
        (then(solution_5, lambda c: c.update(fsdp_offload_params=c.pop("cpu_offload"))), "looks for cpu_offload"),
        (
            then(solution_5, lambda c: c.update(gradient_checkpointing=c.pop("activation_checkpointing"))),
            "any other spelling",
        ),
        (lambda config: {}, "asks for the tool's defaults"),
    ],
    "15.6": [
        (then(solution_6, lambda c: c.update(train_batch_size=64)), "micro-batch x accumulation x ranks"),
        (
            then(solution_6, lambda c: c["zero_optimization"].update(stage3_max_live_parameters="auto")),
            "no argument for this one",
        ),
        (then(solution_6, lambda c: c.update(gradient_clipping=0.5)), "clips at 1.0"),
        (lambda config: {}, "asks for the tool's defaults"),
        (then(solution_6, offload_outside), "inside zero_optimization"),
        (
            then(solution_6, lambda c: c.update(gradient_accumulation_steps=1, train_batch_size=64)),
            "micro-batch x accumulation x ranks",
        ),
    ],
    "15.3": [
        (instead("--node-rank", "--node-rank=0"), "this machine's place in hosts"),
        (by_beginning, "this machine's place in hosts"),
        (always_several, "on one machine, and only there"),
        (instead("--master-port", "--standalone"), "on one machine, and only there"),
        (instead("--nproc-per-node", "--nproc-per-node=24"), "one machine's processes"),
        (instead("--master-addr", "--master-addr=127.0.0.1"), "machine 0"),
        (instead("--node-rank", "--rdzv-backend=c10d"), "static rendezvous"),
        (instead("--nnodes", "--num-nodes=3"), "torchrun --help"),
        (lambda *given: " ".join(solution_3(*given)), "One word per list entry"),
    ],
    "15.1": [
        (solution_1 | {"once": 0.0}, "last backward pass only"),
        (solution_1 | {"once": 1.0}, "Part of the sum hides"),
        (solution_1 | {"each batch": 0.2}, "sticks out behind its own"),
        (solution_1 | {"one micro-batch": 0.2}, "takes longer"),
        (solution_1 | {"once, then gather": 0.2}, "when nothing is computed"),
        (solution_1 | {"once": "0.2"}, "from the moment on"),
        (solution_1 | {"once": True}, "from the moment on"),
        ({}, "four numbers"),
        ([0.2, 0.6, 0.0, 0.7], "four numbers"),
    ],
    "15.2": [
        (lambda: {}, "cross the slow network"),
        (but(strategy="ddp", replicas=1), "the verdict says"),
        (but(micro_batch=8), "the verdict says"),
        (but(checkpointing=True), "Is recomputation needed"),
        (but(offload="all"), "in no other way"),
        (but(strategy="zero1", replicas=1, micro_batch=1), "cross the slow network"),
        (but(micro_batch=3), "refused"),
        (but(gpus_per_node=16), "The rest of the run is fixed"),
        (but(micro_batch=1), "memory left for a larger micro-batch"),
    ],
    "15.7": [
        (own("a.json", HEALTHY | {"offload_optimizer": {"device": "cpu"}}), "read by nobody"),
        (own("b.json", HEALTHY | {"train_micro_batch_size_per_gpu": 8}), "asked to be 4 and is 8"),
        (own("c.json", HEALTHY, {"micro_batch": 4, "accumulation": 2, "learning_rate": 1e-4}), "no file says so"),
        (own("d.json", HEALTHY, {"micro_batch": 4}), "at least 3 things"),
        (own("e.json", "{"), "cannot be read"),
        (lambda: "launch.yaml", "Return two things"),
        (lambda: {}, "Return two things"),
        (lambda: (4, {}), "a list of paths"),
        (lambda: ("no/such.yaml", {"a": 1, "b": 2, "c": 3}), "cannot be read"),
    ],
    "15.8": [
        (lambda *given: "fine", "parameters_held"),
        (without("ranks"), "before anything else"),
        (shards_first, "before anything else"),
        (by_name, "name of the strategy proves nothing"),
        (without("batch"), "is the effective batch"),
        (without("memory"), "last lines of the log"),
        (without("time"), "names the time limit"),
        (without("forgot"), "resumed_from is 0"),
        (any_limit, "Nothing is wrong here"),
        (lambda *given: "everything", "short name"),
        (lambda *given: {}, "short name"),
        (lambda asked, run, log: run["no such"], "raised an exception"),
    ],
    "15.9": [
        (lambda folder: Spec(**ORDER), "Nothing was written"),
        (lambda folder: {}, "Nothing was written"),
        (launched(replicas=1, micro_batch=1, checkpointing=False), "names a change that helps"),
        (launched(replicas=1, micro_batch=1), "both wait less"),
        (launched(strategy="zero3", replicas=1, micro_batch=1, checkpointing=False), "inside a machine"),
        (launched(max_steps=300), "This was ordered"),
        (launched(lora_rank=16), "another training"),
        (edited_afterwards, "changed after it was written"),
        (by_hand, "easily wrong"),
    ],
}
