"""What lesson 15 measures here: the planner against counted bytes, and a run that is stopped as a cluster stops it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from course_utils.launch import Spec, write
from course_utils.launch.check.folder import check
from course_utils.launch.check.rows import Row
from course_utils.launch.planner import memory
from course_utils.launch.planner.plan import plan
from course_utils.parallel.processes import kill, start, wait

STATE = (memory.weights, memory.gradients, memory.optimizer, memory.master_copies)
WORKING = ("whole gradients", "gathered units", "autocast copies", "activations", "logits")


def small_qwen3() -> Any:
    """A Qwen3 of three layers, whose steps can be counted in seconds."""
    from transformers import Qwen3Config

    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 3, "vocab_size": 16000}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "use_cache": False}
    return Qwen3Config(**sizes, tie_word_embeddings=True)


def measured_over_planned(spec: Spec, config: Any) -> tuple[float, float]:
    """Counted / planned bytes of one real step under ``FakeTensorMode``: the state, and all the rest when tightest."""
    from course_utils.launch.planner.measured import measured_shard, measured_step

    found = (measured_shard if spec.is_fsdp else measured_step)(spec, config)
    one = plan(spec.but(model=found.shape))
    count = memory.parameters(one.spec, found.shape)
    state = found.weights + found.gradients + found.optimizer
    return state / sum(part(one.spec, count) for part in STATE), found.working / sum(one.memory[n] for n in WORKING)


def planned_shard(spec: Spec) -> tuple[int, int]:
    """Numbers that each of two CPU ranks keeps of the course's decoder: of its weights, and of AdamW's two moments."""
    from course_utils.models import load_causal_lm
    from course_utils.models.configs import shape_of_model

    model = load_causal_lm()
    shape = shape_of_model(model, model.config)
    two = spec.on_cpu(2).but(model=shape)
    count = memory.parameters(two, shape)
    return memory.weights(two, count) // 4, memory.optimizer(two, count) // 8  # bytes of fp32


def stop_after_a_checkpoint(spec: Spec, place: Path, timeout: float = 200) -> dict[str, Any]:
    """Start the spec's torchrun.sh on two CPU processes, send it SIGTERM once a checkpoint is there, wait for its end.

    Returns:
        run.json: what the ranks wrote before they ended.

    Raises:
        TimeoutError: there was no checkpoint, or the run did not end, within ``timeout`` seconds.
    """
    write(spec.on_cpu(2), place / "launch", overwrite=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    script = start(["bash", "launch/torchrun.sh"], place / "stopped.log", os.environ | {"PATH": path}, place)
    output, deadline = place / spec.output_dir, time.monotonic() + timeout
    try:
        while not list(output.glob("checkpoint-*")) and script.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no checkpoint in {output} after {timeout:g} s")
            time.sleep(0.1)
        script.send_signal(signal.SIGTERM)
        if not wait([script], timeout):
            raise TimeoutError(f"the run did not end within {timeout:g} s of SIGTERM")
    finally:
        kill([script])
    return json.loads((output / "run.json").read_text(encoding="utf-8"))


def check_in(root: Path, spec: Spec, folder: str) -> tuple[list[Path], list[Row]]:
    """Write the spec's files into ``folder``, seen from ``root``, and let their tools read them.

    Raises:
        SpecError: the folder holds something else.
    """
    with contextlib.chdir(root):
        return write(spec, folder, overwrite=True), check(folder)


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row for each setting that three files or more resolve alike; all rows that differ."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.field, repr(row.asked), repr(row.resolved)), []).append(row)
    return [
        Row(f"{len(same)} files" if same[0].same else same[0].file, *same[0][1:])
        for same in groups.values()
        if len({row.file for row in same}) > 2 or not same[0].same
    ]
