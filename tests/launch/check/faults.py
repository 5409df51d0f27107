"""Ways in which settings get lost in launch files, each to be planted into a written folder (lesson 15)."""

import json
from pathlib import Path

PASSED_ON = '  "${@//[$]/$dollars}"'  # what follows the script's name


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text, f"the fault cannot be planted: {old!r} is not in {name}"
    (folder / name).write_text(text.replace(old, new))


def edit_json(folder: Path, name: str, change) -> None:
    settings = json.loads((folder / name).read_text())
    change(settings)
    (folder / name).write_text(json.dumps(settings))


# name: (spec, how the fault is planted, the row that must turn red); each is a way settings get lost in practice
FAULTS = {
    "reshard string under FSDP1": (
        {"strategy": "fsdp1", "reshard_after_forward": False},
        lambda f: edit(f, "accelerate.yaml", "fsdp_sharding_strategy:", "fsdp_reshard_after_forward:"),
        ("accelerate.sh", "sharding strategy"),
    ),
    "TrainingArguments has no sharding strategy": (
        {"strategy": "fsdp1", "reshard_after_forward": False},
        lambda f: edit(f, "torchrun.sh", "export FSDP_SHARDING_STRATEGY", "FSDP_SHARDING_STRATEGY"),
        ("torchrun.sh", "sharding strategy"),
    ),
    "sharding strategy under FSDP2": (
        {"strategy": "fsdp2", "reshard_after_forward": False},
        lambda f: edit(f, "accelerate.yaml", "reshard_after_forward: false", "sharding_strategy: SHARD_GRAD_OP"),
        ("accelerate.sh", "reshard after forward"),
    ),
    "sharding strategy in fsdp.json": (
        {"strategy": "fsdp2", "reshard_after_forward": False},
        lambda f: edit(f, "fsdp.json", '"reshard_after_forward": false', '"sharding_strategy": "SHARD_GRAD_OP"'),
        ("fsdp.json", "keys that nobody reads"),
    ),
    "list of layer classes": (
        {"strategy": "fsdp2"},
        lambda f: edit(f, "accelerate.yaml", 'cls_to_wrap: "Qwen3DecoderLayer"', "cls_to_wrap: [Qwen3DecoderLayer]"),
        ("accelerate.sh", "wrapped classes"),
    ),
    "version forgotten": (
        {"strategy": "fsdp2"},
        lambda f: edit(f, "accelerate.yaml", "  fsdp_version: 2", "  # 2"),
        ("accelerate.sh", "strategy"),
    ),
    "misspelt FSDP key": (
        {"strategy": "fsdp2", "offload": "all"},
        lambda f: edit(f, "accelerate.yaml", "fsdp_offload_params", "fsdp_offload_parameters"),
        ("accelerate.yaml", "keys that nobody reads"),
    ),
    "parallelism keys without prefix": (
        {"strategy": "fsdp2", "nodes": 2, "replicas": 2},
        lambda f: edit(f, "accelerate.yaml", "parallelism_config_dp", "dp"),
        ("accelerate.sh", "replicate x shard x tensor x context"),
    ),
    "parallelism not exported": (
        {"strategy": "fsdp2", "nodes": 2, "tensor_parallel": 2},
        lambda f: edit(f, "torchrun.sh", "export ACCELERATE_USE_PARALLELISM_CONFIG=true", ""),
        ("torchrun.sh", "effective batch"),
    ),
    "rendezvous keys in the YAML": (
        {"strategy": "ddp", "nodes": 2},
        lambda f: edit(f, "accelerate.yaml", "use_cpu:", "rdzv_backend: c10d\nuse_cpu:"),
        ("accelerate.yaml", "settings that are ignored"),
    ),
    "same_network in the YAML": (
        {"strategy": "ddp", "nodes": 2},
        lambda f: (
            edit(f, "accelerate.sh", "--same_network", ""),
            edit(f, "accelerate.yaml", "use_cpu:", "same_network: true\nuse_cpu:"),
        ),
        ("accelerate.sh", "same_network"),
    ),
    "machine rank not passed on": (
        {"strategy": "fsdp2", "nodes": 2},
        lambda f: edit(f, "accelerate.sh", '"--machine_rank=$NODE_RANK"', ""),
        ("accelerate.sh", "rank of the last node"),
    ),
    "accelerate's prefix in fsdp.json": (
        {"strategy": "fsdp2", "offload": "all"},
        lambda f: edit(f, "fsdp.json", '"cpu_offload"', '"fsdp_offload_params"'),
        ("torchrun.sh", "offload"),
    ),
    "a word behind --fsdp": (
        {"strategy": "fsdp2"},
        lambda f: edit(f, "torchrun.sh", "  --fsdp  #", "  --fsdp true  #"),
        ("torchrun.sh", "can be resolved"),
    ),
    "accumulation at the YAML's top level": (
        {"strategy": "zero2", "accumulation": 4},
        lambda f: edit(f, "accelerate.yaml", "debug:", "gradient_accumulation_steps: 4\ndebug:"),
        ("accelerate.sh", "can be resolved"),
    ),
    "16 processes on 3 machines": (
        {"strategy": "fsdp2", "nodes": 3, "gpus_per_node": 6},
        lambda f: edit(f, "accelerate.yaml", "num_processes: 18", "num_processes: 16"),
        ("accelerate.yaml", "processes divide by machines"),
    ),
    "processes per machine instead of in all": (
        {"strategy": "ddp", "nodes": 2},
        lambda f: edit(f, "accelerate.yaml", "num_processes: 16", "num_processes: 8"),
        ("accelerate.sh", "world size"),
    ),
    "mixed precision beside a DeepSpeed file": (
        {"strategy": "zero3"},
        lambda f: edit(f, "accelerate.yaml", "debug:", "mixed_precision: fp16\ndebug:"),
        ("accelerate.sh", "can be resolved"),
    ),
    "train_batch_size does not multiply out": (
        {"strategy": "zero2", "nodes": 2},
        lambda f: edit_json(f, "deepspeed.json", lambda s: s.update(train_batch_size=8)),
        ("deepspeed.json", "can be resolved"),
    ),
    "train_batch_size against the flags": (
        {"strategy": "zero2"},
        lambda f: edit_json(
            f, "deepspeed.json", lambda s: s.update(train_batch_size=16, gradient_accumulation_steps=2)
        ),
        ("torchrun.sh", "contradicts deepspeed.json"),
    ),
    "auto": (
        {"strategy": "zero1"},
        lambda f: edit_json(f, "deepspeed.json", lambda s: s.update(train_micro_batch_size_per_gpu="auto")),
        ("deepspeed.json", '"auto" values'),
    ),
    "clipping against the flags": (
        {"strategy": "zero3"},
        lambda f: edit_json(f, "deepspeed.json", lambda s: s.update(gradient_clipping=0.5)),
        ("deepspeed.json", "gradient clipping"),
    ),
    "offload left out": (
        {"strategy": "zero3", "offload": "all"},
        lambda f: edit_json(f, "deepspeed.json", lambda s: s["zero_optimization"].pop("offload_param")),
        ("torchrun.sh", "optimizer and parameters offloaded to"),
    ),
    "another ZeRO stage": (
        {"strategy": "zero3"},
        lambda f: edit_json(f, "deepspeed.json", lambda s: s["zero_optimization"].update(stage=2)),
        ("accelerate.sh", "strategy"),
    ),
    "recomputation twice": (
        {"strategy": "fsdp2", "checkpointing": True},
        lambda f: edit(f, "torchrun.sh", "--activation_checkpointing=False", "--activation_checkpointing=True"),
        ("torchrun.sh", "activations recomputed by"),
    ),
    "hostfile missing": (
        {"strategy": "zero2", "nodes": 2},
        lambda f: (f / "hostfile").unlink(),
        ("deepspeed.sh", "can be resolved"),
    ),
    "hostfile missing and not asked for": (
        {"strategy": "zero2", "nodes": 2},
        lambda f: ((f / "hostfile").unlink(), edit(f, "deepspeed.sh", "exit 2", ":")),
        ("hostfile", "found by deepspeed"),
    ),
    "a slot too few": (
        {"strategy": "zero2", "nodes": 2},
        lambda f: edit(f, "hostfile", "node2 slots=8", "node2 slots=7"),
        ("hostfile", "processes on each"),
    ),
    "deepspeed adds --local_rank": (
        {"strategy": "zero1"},
        lambda f: edit(f, "deepspeed.sh", "--no_local_rank", ""),
        ("deepspeed.sh", "adds --local_rank"),
    ),
    "an unquoted argument": (
        {"strategy": "ddp", "arguments": ("two words",)},
        lambda f: edit(f, "torchrun.sh", "'two words'", "two words"),
        ("torchrun.sh", "arguments"),
    ),
    "a flag twice": (
        {"strategy": "ddp"},
        lambda f: edit(f, "torchrun.sh", PASSED_ON, f"  --max_steps=5{PASSED_ON}"),
        ("torchrun.sh", "optimizer steps"),
    ),
    "another output folder": (
        {"strategy": "ddp"},
        lambda f: edit(f, "accelerate.sh", "--output_dir=runs/finetune", "--output_dir=runs/other"),
        ("accelerate.sh", "output_dir"),
    ),
    "another model": (
        {"strategy": "ddp"},
        lambda f: edit(f, "torchrun.sh", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"),
        ("torchrun.sh", "--model_name_or_path"),
    ),
    "no task: a classifier": (
        {"strategy": "ddp"},
        lambda f: edit(f, "torchrun.sh", "--task=causal_lm", ""),
        ("torchrun.sh", "task"),
    ),
    "another task, behind the right one": (
        {"strategy": "zero1"},
        lambda f: edit(f, "accelerate.sh", PASSED_ON, f"  --task classification{PASSED_ON}"),
        ("accelerate.sh", "task"),
    ),
    "a task that was not asked for": (
        {"strategy": "ddp", "model": "course/encoder"},
        lambda f: edit(f, "torchrun.sh", "--task=classification", "--task=causal_lm"),
        ("torchrun.sh", "task"),
    ),
    "no data": (
        {"strategy": "fsdp2", "arguments": ("--train_file=mine.jsonl",)},
        lambda f: edit(f, "torchrun.sh", "--train_file=mine.jsonl", ""),
        ("torchrun.sh", "training data"),
    ),
    "the checkpoint's type": (
        {"strategy": "fsdp2"},
        lambda f: edit(f, "torchrun.sh", "--dtype=float32", ""),
        ("torchrun.sh", "--dtype"),
    ),
    "autocast left out": (
        {"strategy": "ddp"},
        lambda f: edit(f, "torchrun.sh", "--bf16=True", "--bf16=False"),
        ("torchrun.sh", "precision"),
    ),
    "every rank alone on the CPU": (
        {"strategy": "ddp", "device": "cpu", "gpus_per_node": 2},
        lambda f: edit(f, "torchrun.sh", "--use_cpu=True", ""),
        ("torchrun.sh", "on the CPU"),
    ),
    "full checkpoints": (
        {"strategy": "fsdp2"},
        lambda f: edit(f, "fsdp.json", "SHARDED_STATE_DICT", "FULL_STATE_DICT"),
        ("torchrun.sh", "checkpoints"),
    ),
    "fewer processes": (
        {"strategy": "fsdp2"},
        lambda f: edit(f, "torchrun.sh", "--nproc-per-node=8", "--nproc-per-node=4"),
        ("torchrun.sh", "effective batch"),
    ),
    "no YAML": (
        {"strategy": "ddp"},
        lambda f: (f / "accelerate.yaml").write_text("a: ]"),
        ("accelerate.sh", "can be resolved"),
    ),
    "no JSON": (
        {"strategy": "zero1"},
        lambda f: (f / "deepspeed.json").write_text("{"),
        ("deepspeed.json", "can be resolved"),
    ),
    "a script is missing": (
        {"strategy": "ddp"},
        lambda f: (f / "torchrun.sh").unlink(),
        ("torchrun.sh", "can be resolved"),
    ),
    "a script that starts nothing": (
        {"strategy": "ddp"},
        lambda f: (f / "torchrun.sh").write_text("#!/bin/bash\ntrue\n"),
        ("torchrun.sh", "can be resolved"),
    ),
}  # fmt: skip
