"""How a benchmark records what it measured: the processor it ran on, and a JSON file that is whole or not there."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any


def processor() -> str:
    """The name of the CPU where the system tells it (Linux), else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(path: Path, report: dict[str, Any]) -> None:
    """Under a temporary name first: whoever reads at this moment finds the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, path)
