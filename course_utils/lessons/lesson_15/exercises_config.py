"""Exercises 4 to 6 of lesson 15: three configurations that are silently ignored.

A repaired configuration is judged as the lesson judges its own files: it is put into a folder of launch files, and the
tool it is for says what it makes of it (``course_utils.launch.check.launchers``).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.lessons.lesson_15.broken_configs import ACCELERATE, DEEPSPEED, FSDP, Broken
from course_utils.teach.exercise import Wrong, ask, exercise

# What a row that differs tells the learner; the others speak for themselves.
HINTS = {
    "world size": "num_processes counts all machines' processes, not those of one machine.",
    "processes per node": "num_processes counts all machines' processes, not those of one machine.",
    "reshard after forward": "FSDP2 does not read fsdp_sharding_strategy. It asks one yes-or-no question: "
    "fsdp_reshard_after_forward.",
    "wrapped classes": "accelerate splits one string at its commas. A list arrives as its text, brackets and all; "
    "without the key no layer is named.",
    "replicate x shard x tensor x context": "Keys of parallelism_config keep their whole name: "
    "parallelism_config_dp_shard_size. Without the prefix each size is silently 1.",
    "offload": "TrainingArguments strips a leading fsdp_ and then looks for cpu_offload. offload_params is "
    "accelerate's own name.",
    "activations recomputed by": "The key is activation_checkpointing; any other spelling is accepted and not read.",
    "train_batch_size": "train_batch_size = micro-batch x accumulation x ranks, here 4 x 2 x 16.",
    '"auto" that nobody fills in': 'The Trainer fills in "auto" for what its own arguments say: batch sizes, clipping, '
    "precision. It has no argument for this one: write a number, or leave the line out.",
    "accumulation": "The run makes 2 forward passes per optimizer step.",
    "gradient clipping": "The run clips at 1.0, the Trainer's own number.",
    "contradicts deepspeed.json": "The run's flags say 4 sequences and 2 passes: train_batch_size = micro-batch x "
    "accumulation x ranks, here 4 x 2 x 16.",
    "optimizer and parameters offloaded to": "offload_optimizer belongs inside zero_optimization; at top level nobody "
    "reads it.",
}


def _repaired(broken: Broken, answer: Callable[[dict[str, Any]], Any]) -> None:
    """Judge ``answer(config)`` by what the tool makes of the file; raises ``Wrong`` for the first row that differs."""
    given = f"the {broken.file} of the exercise"
    config = ask(answer, copy.deepcopy(broken.written), given=given, expected="the repaired configuration")
    if not isinstance(config, dict):
        raise Wrong(
            given=given,
            expected="the repaired configuration as a dict",
            got=type(config).__name__,
            hint="Change what is wrong in config and return it.",
        )
    if not config:
        raise Wrong(
            given=given,
            expected="the given configuration, repaired",
            got=repr(config)[:200],
            hint="Keep the settings that are right: an empty file asks for the tool's defaults.",
        )
    rows = [row for row in _resolve(broken, config) if row.file in broken.tools]
    # A key in the wrong place and a sum that is wrong come first: they explain the rows that follow from them.
    order = {field: place for place, field in enumerate(HINTS)}
    different = sorted((row for row in rows if not row.same), key=lambda row: order.get(row.field, len(order)))
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
        return launchers.rows(spec, folder, fills_auto=True)


@exercise(
    "15.4",
    "an accelerate YAML that does what it says",
    hints=(
        "Write the spec that was asked for, render its accelerate.yaml, and lay the two beside each other. Four "
        "settings of the given one are accepted and not used.",
        "Look at the number of processes, at FSDP2's word for keeping weights gathered, at the type of "
        "fsdp_transformer_layer_cls_to_wrap, and at the names inside parallelism_config.",
    ),
    kind="debug",
)
def check_accelerate(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(config)`` returns the repaired ``ACCELERATE.written``."""
    _repaired(ACCELERATE, answer)


@exercise(
    "15.5",
    "an fsdp_config that TrainingArguments reads",
    hints=(
        "TrainingArguments strips a leading fsdp_, and what is left must be one of its own names. Which two keys of "
        "the eight are not?",
        "One of them is in the table of section 6. The other is a typing error: compare with a fsdp.json that the "
        "course writes for checkpointing=True.",
    ),
    kind="debug",
)
def check_fsdp(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(config)`` returns the repaired ``FSDP.written``."""
    _repaired(FSDP, answer)


@exercise(
    "15.6",
    "a DeepSpeed JSON that multiplies out",
    hints=(
        "train_batch_size must be micro-batch x accumulation x ranks and agree with the run's flags.",
        'offload_optimizer has a place of its own, and "auto" is filled in only where the Trainer has an argument for '
        "it: which of the two is not?",
    ),
    kind="debug",
)
def check_deepspeed(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """``answer(config)`` returns the repaired ``DEEPSPEED.written``."""
    _repaired(DEEPSPEED, answer)
