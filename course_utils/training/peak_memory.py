"""The peak memory of a piece of code, measured by the operating system: Linux only (lesson 04).

Source: ``proc(5)``: writing 5 to ``/proc/self/clear_refs`` resets ``VmHWM``, the highest resident size so far.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib(function: Callable[[], Any]) -> tuple[float | None, Any]:
    """Call ``function``: by how many MiB it raised this process's resident memory at its highest, and what it returned.

    Memory that Python or the C library kept from earlier is used again without being counted: measure the smaller of
    two ways first, and compare coarsely.

    Returns:
        ``(MiB, result)``; None for the MiB where they cannot be measured: no Linux, or a container that forbids the
        reset. ``function`` was called all the same.
    """
    try:
        _RESET.write_text("5")
        before = _kib("VmRSS")
    except OSError:
        return None, function()
    result = function()
    return (_kib("VmHWM") - before) / 1024, result


def _kib(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
