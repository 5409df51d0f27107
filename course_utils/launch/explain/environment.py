"""Environment variables that a file sets: debugging switches left on, names that changed, values nobody sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from course_utils.launch.explain.reading import Open, Reading, truth
from course_utils.launch.spec.silent import OFF_VARIABLES, OLD_VARIABLES, SLOW_VARIABLES

SHOWN = ("OMP_NUM_THREADS", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_ERROR_FILE")
OTHER_NETWORK = ("FI_PROVIDER", "NCCL_NET", "NCCL_NET_PLUGIN")  # not InfiniBand's verbs, which may then be off
# Only programs read these: a value that stays in the shell is lost. Not what SLURM may have exported already.
FOR_PROGRAMS = re.compile(r"(NCCL|TORCH|HF|WANDB|PYTORCH|TOKENIZERS|ACCELERATE|TRANSFORMERS)_\w+|OMP_NUM_THREADS")


def judge(reading: Reading, variables: Mapping[str, Any]) -> None:
    """Add findings about variables that programs see. What is open is left alone."""
    nodes, each = reading.fact("nodes"), reading.fact("processes_per_node")
    for name, value in variables.items():
        if isinstance(value, Open) or value is None:
            continue
        text = str(value).strip()
        if name in OLD_VARIABLES:
            reading.find("variable-renamed", name=name, cure=OLD_VARIABLES[name])
        if name in SLOW_VARIABLES and truth(text) is True and not _is_right(name, variables, nodes, each):
            reading.find("variable-slow", name=name, value=text, what=SLOW_VARIABLES[name])
        if name == "TORCH_DISTRIBUTED_DEBUG" and text.upper() == "DETAIL":
            what = "every collective is first compared among all ranks"
            reading.find("variable-slow", name=name, value=text, what=what)
        if name == "NCCL_DEBUG" and text.upper() in ("INFO", "TRACE"):
            reading.find("variable-noisy", name=name, value=text)
        if name in OFF_VARIABLES and truth(text) is False:
            reading.find("variable-off", name=name, value=text, what=OFF_VARIABLES[name])


def _is_right(name: str, variables: Mapping[str, Any], nodes: Any, each: Any) -> bool:
    """Whether there is nothing to lose: one machine, one GPU, or a network of another kind."""
    if name == "NCCL_IB_DISABLE":
        return nodes == 1 or any(variables.get(other) for other in OTHER_NETWORK)
    return name in ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE") and each == 1


def not_exported(reading: Reading, names: Iterable[str], text: str) -> None:
    """Assignments that no program sees, because nothing exports them and the script does not use them either."""
    for name in names:
        if FOR_PROGRAMS.fullmatch(name) and not re.search(rf"\$\{{?{name}\b|\bexport\b[^\n]*\b{name}\b", text):
            reading.find("variable-not-exported", name=name)
