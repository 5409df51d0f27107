"""preflight.py beside the launch files: a copy of the recipe, and what the scripts ask of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from course_utils.errors import SpecError
from course_utils.gpus import GPUS
from course_utils.launch.spec import Spec, state
from course_utils.models.configs import shape_of

RECIPES = Path(__file__).parents[2] / "recipes"
IMPORT = "from course_utils.recipes.preflight_verdict import problems\n"


def applies(spec: Spec) -> bool:
    """More than one rank, and not switched off."""
    return spec.preflight != "off" and spec.world_size > 1


def values(spec: Spec, folder: str) -> dict[str, Any]:
    return {"source": source()}


def source() -> str:
    """The recipe in one file: what it imports of the course stands in the import's place, without its docstring."""
    main, verdict = ((RECIPES / name).read_text("utf-8") for name in ("preflight.py", "preflight_verdict.py"))
    if IMPORT not in main:
        raise RuntimeError(f"recipes/preflight.py does not have the line {IMPORT!r}")
    body = verdict.split('"""', 2)[2].split("import statistics\n", 1)[1].strip("\n")
    return main.replace(IMPORT, f"{body}\n")


def words(spec: Spec) -> list[str]:
    """Its arguments: what the plan takes for granted."""
    found = [f"--output_dir={spec.output_dir}", f"--mode={spec.preflight}"]
    if (needed := disk(spec)) is not None:
        found.append(f"--disk={needed}")
    if spec.device == "cuda":
        found += [f"--gpus={spec.gpus_per_node}", f"--expect={bandwidth(spec):g}"]
        if spec.nodes > 1:
            found.append(f"--network={spec.network_kind}")
    return found


def bandwidth(spec: Spec) -> float:
    """GB/s that each GPU sends in a large all-reduce, as the plan assumes: of links and network the slower."""
    kind = GPUS[spec.gpu]
    return min(kind.link, spec.network or kind.network) if spec.nodes > 1 else kind.link


def disk(spec: Spec) -> int | None:
    """GB of all checkpoints that are on the disk at once; None where the model's shape is not known here."""
    try:
        size = state.checkpoint(spec, shape_of(spec.model, hub=False)).size / 1e9
    except (SpecError, OSError):
        return None
    number = math.ceil(spec.max_steps / spec.save_every)
    return math.ceil(size * min(number, (spec.save_total_limit or number) + 1))
