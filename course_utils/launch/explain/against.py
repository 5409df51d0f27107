"""Files of any name beside a spec: what they say about the run, compared with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from course_utils.errors import SpecError
from course_utils.launch.check.rows import Row, quiet
from course_utils.launch.explain.across import same
from course_utils.launch.explain.explain import read_file
from course_utils.launch.spec import Spec, overrides, settings

SUFFIXES = (".yaml", ".yml", ".json", ".py", ".sh", ".bash", ".sbatch", ".slurm")


def candidates(folder: Path) -> list[Path]:
    """Files of ``folder`` that might be launch files."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def known(folder: Path) -> list[Path]:
    """Those that can be explained.

    Raises:
        SpecError: none can.
    """
    found = []
    with quiet():
        for path in candidates(folder):
            try:
                read_file(path)
            except SpecError:
                continue
            found.append(path)
    if not found:
        raise SpecError(f"folder={str(folder)!r} holds no spec.yaml and no launch file; allowed: a folder with either")
    return found


def against(spec: Spec, paths: Sequence[str | os.PathLike[str]]) -> list[Row]:
    """A row for every fact of these files that a spec decides, and one for every finding; other files are left out."""
    asked, rows = facts(spec), []
    with quiet():
        for path in map(Path, paths):
            try:
                reading = read_file(path)
            except SpecError:
                continue
            for fact in dict.fromkeys(reading.facts):
                if fact.name in asked:
                    wanted = asked[fact.name]
                    equal = same(wanted, fact.value)
                    rows.append(
                        Row(path.name, f"{fact.name} ({fact.setting})", wanted, wanted if equal else fact.value)
                    )
            rows += [Row(path.name, finding.name, "no finding", finding.sentence) for finding in reading.findings]
            if not reading.facts and not reading.findings:
                rows.append(Row(path.name, "read as", reading.kind, reading.kind))
    return rows


def facts(spec: Spec) -> dict[str, Any]:
    """A spec in the words that all files share (``Fact``)."""
    found = {
        "strategy": spec.strategy,
        "nodes": spec.nodes,
        "world_size": spec.world_size,
        "processes_per_node": spec.gpus_per_node,
        "micro_batch": spec.micro_batch,
        "accumulation": spec.accumulation_steps,
        "global_batch": spec.effective_batch,
        "precision": "bf16"
        if spec.is_deepspeed and spec.precision == "bf16_weights"
        else settings.mixed_precision(spec),
        "max_grad_norm": overrides.gradient_clipping(spec),
        "offload": spec.offload != "none",
        "max_steps": spec.max_steps,
        "save_steps": spec.save_every,
        "time_limit": spec.time_limit,
    }
    if spec.learning_rate is not None:
        found["learning_rate"] = spec.learning_rate
    if spec.device == "cuda":
        found["gpus_per_node"] = spec.gpus_per_node
    if spec.is_deepspeed:
        found["zero_stage"] = int(spec.strategy[-1])
    if spec.is_fsdp:
        found |= {"reshard_after_forward": spec.reshard_after_forward, "checkpointing": spec.checkpointing}
        found |= {"state_dict": spec.state_dict}
    return found
