"""Exercises of lesson 15: three configurations that are silently ignored, a plan for a 7B model, a node's command.

A repaired configuration is judged as the lesson judges its own files: it is put into a folder of launch files, and the
tool it is for says what it makes of it (``course_utils.launch.check.launchers``).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from course_utils.lessons.lesson_15.broken_configs import ACCELERATE, DEEPSPEED, FSDP, Broken
from course_utils.teach.exercise import Wrong, exercise

# What a row that differs tells the learner; the others speak for themselves.
HINTS = {
    "world size": "num_processes counts all machines' processes, not those of one machine.",
    "processes per node": "num_processes counts all machines' processes, not those of one machine.",
    "reshard after forward": "FSDP2 does not read fsdp_sharding_strategy. It asks one yes-or-no question: "
    "fsdp_reshard_after_forward.",
    "wrapped classes": "accelerate splits one string at its commas. A list arrives as its text, brackets and all.",
    "replicate x shard x tensor x context": "Keys of parallelism_config keep their whole name: "
    "parallelism_config_dp_shard_size. Without the prefix each size is silently 1.",
    "offload": "TrainingArguments strips a leading fsdp_ and then looks for cpu_offload. offload_params is "
    "accelerate's own name.",
    "activations recomputed by": "The key is activation_checkpointing; any other spelling is accepted and not read.",
    "train_batch_size": "train_batch_size = micro-batch x accumulation x ranks, here 4 x 2 x 16.",
    "accumulation": "The run makes 2 forward passes per optimizer step.",
    "contradicts deepspeed.json": "The run's flags say 4 sequences and 2 passes: train_batch_size = micro-batch x "
    "accumulation x ranks, here 4 x 2 x 16.",
    '"auto" values': '"auto" is filled in only by the Hugging Face integration. Write the number: the Trainer clips at '
    "1.0.",
    "optimizer and parameters offloaded to": "offload_optimizer belongs inside zero_optimization; at top level nobody "
    "reads it.",
}


def _repaired(broken: Broken, answer: Callable[[dict[str, Any]], Any]) -> None:
    """Judge ``answer(config)`` by what the tool makes of the file; raises ``Wrong`` for the first row that differs."""
    config = answer(copy.deepcopy(broken.written))
    if not isinstance(config, dict):
        raise Wrong(
            given=f"the {broken.file} of the exercise",
            expected="the repaired configuration as a dict",
            got=type(config).__name__,
            hint="Change what is wrong in config and return it.",
        )
    rows = [row for row in _resolve(broken, config) if row.file in broken.tools]
    # A key in the wrong place and a sum that is wrong come first: they explain the rows that follow from them.
    different = sorted((row for row in rows if not row.same), key=lambda row: row.field not in HINTS)
    if different:
        row = different[0]
        detail = f" It says: {row.resolved}" if row.field == "can be resolved" else ""
        hint = HINTS.get(row.field, f"Compare {row.field!r} with what is asked.{detail}")
        raise Wrong(
            given=f"{broken.file}, read by the tool it is for",
            expected=f"{row.field}: {row.asked!r}",
            got=repr(row.resolved)[:300],
            hint=hint,
        )


def _resolve(broken: Broken, config: dict[str, Any]) -> list[Any]:
    from course_utils.launch import Spec, write
    from course_utils.launch.check import launchers
    from course_utils.launch.spec.settings import accelerate_config

    spec = Spec(**broken.asked)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(scratch, "launch")
        write(spec, folder)
        if broken.file == "accelerate.yaml":  # what the exercise does not speak of is as it should be
            config = {"machine_rank": 0, "debug": accelerate_config(spec)["debug"]} | config
        (folder / broken.file).write_text(json.dumps(config, default=str))  # JSON is YAML
        return launchers.rows(spec, folder)


@exercise(
    "15.1",
    "an accelerate YAML that does what it says",
    hints=(
        "Four things are wrong: the number of processes, FSDP2's word for keeping weights gathered, the type of "
        "fsdp_transformer_layer_cls_to_wrap, and the names inside parallelism_config.",
    ),
)
def check_accelerate(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(config)`` returns the repaired ``ACCELERATE.written``."""
    _repaired(ACCELERATE, answer)


@exercise(
    "15.2",
    "an fsdp_config that TrainingArguments reads",
    hints=(
        "TrainingArguments strips a leading fsdp_, and what is left must be one of its own names. "
        "Two keys of the eight "
        "are not: section 9 shows one of them, a typing error made the other.",
    ),
)
def check_fsdp(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(config)`` returns the repaired ``FSDP.written``."""
    _repaired(FSDP, answer)


@exercise(
    "15.3",
    "a DeepSpeed JSON that multiplies out",
    hints=(
        "train_batch_size must be micro-batch x accumulation x ranks and agree with the run's "
        "flags. offload_optimizer has "
        'a place of its own, and "auto" is a number that somebody must know.',
    ),
)
def check_deepspeed(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(config)`` returns the repaired ``DEEPSPEED.written``."""
    _repaired(DEEPSPEED, answer)


# 15.4: the run, and what the learner decides
SEVEN_B = {
    "model": "meta-llama/Llama-2-7b-hf",
    "nodes": 1,
    "gpus_per_node": 8,
    "gpu": "A100-80GB",
    "sequence_length": 8192,
    "global_batch": 128,
    "precision": "bf16",
}
CHOICES = ("strategy", "offload", "reshard_after_forward", "micro_batch", "checkpointing")
NEAR_ENOUGH = 0.97  # of the best tokens/s: below that the planner's assumptions do not tell two plans apart


def best_tokens_per_second() -> float:
    """The fastest plan that fits, over all choices the exercise allows."""
    from course_utils.launch import Spec, strategies

    base = Spec(**SEVEN_B)
    plans = [
        one
        for checkpointing in (False, True)
        for micro_batch in (1, 2, 4, 8, 16)
        for one in strategies(base.but(checkpointing=checkpointing, micro_batch=micro_batch))
    ]
    return max(one.speed.tokens_per_second for one in plans if one.fits)


@exercise(
    "15.4",
    "a 7B model on 8 x 80 GB",
    hints=(
        "Ask the planner: strategies(Spec(**SEVEN_B)) lists what fits, the fastest first. Then ask again with "
        "checkpointing=True and larger micro-batches, and think about what each of them costs in time.",
    ),
)
def check_seven_b(answer: Callable[[], dict[str, Any]]) -> None:
    """``answer()`` returns fields of a spec out of ``CHOICES``."""
    from course_utils.launch import Spec, SpecError
    from course_utils.launch.planner.plan import plan
    from course_utils.launch.planner.report import verdict

    fields = answer()
    given, expected = "Llama-2-7b on 8 x A100-80GB, 128 sequences of 8192 tokens a step", "fields of a spec that fits"
    if not isinstance(fields, dict) or set(fields) - set(CHOICES):
        raise Wrong(
            given=given,
            expected=f"a dict with some of {CHOICES}",
            got=repr(fields),
            hint="The rest of the run is fixed.",
        )
    try:
        found = plan(Spec(**SEVEN_B | fields))
    except SpecError as error:
        raise Wrong(given=given, expected=expected, got=str(error), hint="The spec itself is refused.") from None
    if not found.fits:
        raise Wrong(
            given=given, expected=expected, got=verdict(found), hint="It does not fit: the verdict says what may."
        )
    best = best_tokens_per_second()
    if found.speed.tokens_per_second < NEAR_ENOUGH * best:
        raise Wrong(
            given=given,
            expected=f"at least {NEAR_ENOUGH:.0%} of {best:,.0f} tokens/s",
            got=f"{found.speed.tokens_per_second:,.0f} tokens/s",
            hint=_slow(found),
        )


def _slow(found: Any) -> str:
    spec = found.spec
    if spec.offload != "none":
        return "It fits, but the GPUs wait for host memory. Offload is for what fits in no other way."
    if spec.checkpointing:
        return "It fits with room to spare, and every forward pass runs twice. Is recomputation needed?"
    return "It fits, but it communicates more than others that fit."


HOSTS = ("gpu-a", "gpu-b", "gpu-c")


@exercise(
    "15.5",
    "the command for machine k",
    hints=(
        "Everything is the same on each machine except one number. The number of processes is that of one machine; the "
        "address and the port are those of machine 0.",
    ),
)
def check_command(answer: Callable[[tuple[str, ...], int, int, int], list[str]]) -> None:
    """``answer(hosts, gpus, k, port)`` returns the words of machine ``k``'s torchrun command, up to its program."""
    for hosts, gpus, k, port in ((HOSTS, 8, 2, 29500), (HOSTS, 4, 0, 29511), (HOSTS[:2], 8, 1, 29500)):
        _check_one_command(answer(hosts, gpus, k, port), hosts, gpus, k, port)


def _check_one_command(words: Any, hosts: tuple[str, ...], gpus: int, k: int, port: int) -> None:
    given = f"machine {k} of {', '.join(hosts)}; {gpus} GPUs each; port {port}"
    if not isinstance(words, list) or words[:1] != ["torchrun"] or not all(isinstance(word, str) for word in words):
        raise Wrong(
            given=given,
            expected="['torchrun', ...]: a list of words",
            got=repr(words)[:200],
            hint="One word per list entry, numbers as text: '--nnodes=3'.",
        )
    config = _elastic(words[1:], given)
    seen = {
        "machines": (len(hosts), config.max_nodes),
        "processes per machine": (gpus, config.nproc_per_node),
        "rendezvous": ("static", config.rdzv_backend),
        "rank of this machine": (k, config.rdzv_configs.get("rank")),
        "meeting point": (f"{hosts[0]}:{port}", config.rdzv_endpoint),
    }
    hints = {
        "machines": "--nnodes is the number of machines.",
        "processes per machine": "--nproc-per-node counts one machine's processes, not all of them.",
        "rendezvous": "Fixed ranks need the static rendezvous: no --standalone, no --rdzv-backend.",
        "rank of this machine": "--node-rank is the one number that differs from machine to machine.",
        "meeting point": "All machines meet at machine 0, hosts[0]: that is --master-addr and --master-port.",
    }
    for what, (asked, resolved) in seen.items():
        if asked != resolved:
            raise Wrong(given=given, expected=f"{what}: {asked!r}", got=repr(resolved), hint=hints[what])


def _elastic(words: list[str], given: str) -> Any:
    """What torchrun makes of the words, a program appended."""
    from torch.distributed.run import config_from_args, parse_args

    complaint = io.StringIO()
    quiet = mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"})  # unset, torchrun sets it and says so
    try:
        with quiet, contextlib.redirect_stderr(complaint):
            return config_from_args(parse_args([*words, "program.py"]))[0]
    except SystemExit:
        text = complaint.getvalue().strip().splitlines()[-1]
        raise Wrong(
            given=given, expected="words that torchrun knows", got=text, hint="`torchrun --help` lists its options."
        ) from None
