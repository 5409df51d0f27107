"""What a launch script would start: the script is executed, with launchers that only write down what they are given.

So the shell itself does the quoting, the defaults and the paths, as it will on the cluster.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
# Python, because neither `env --null` nor another tool that separates with NUL is on every Unix.
WRITES = r"import os; os.write(1, b''.join(b'%s=%s\0' % item for item in os.environb.items()))"
STAND_IN = f"""#!/bin/sh
case "$*" in *preflight.py\\ --output_dir=*) file=preflight ;; *) file=arguments ;; esac
printf '%s\\0' "${{0##*/}}" "$@" > "$WRITE_DOWN/$file"
{shlex.quote(sys.executable)} -S -E -c {shlex.quote(WRITES)} > "$WRITE_DOWN/environment"
"""


class Started(NamedTuple):
    """What a script started: the launcher with its arguments, the environment it saw, and before it the preflight."""

    arguments: list[str]
    environment: dict[str, str]
    preflight: Sequence[str] = ()


def resolve(script: Path, **environment: str) -> Started:
    """Execute ``script`` in the current folder with stand-ins for the launchers; ``environment`` as a cluster sets it.

    Raises:
        RuntimeError: the script failed, or started none of the launchers.
    """
    with tempfile.TemporaryDirectory() as folder:
        pretended = stand_ins(Path(folder), dict.fromkeys(LAUNCHERS, STAND_IN))
        done = subprocess.run(
            ["bash", str(script)],
            env=pretended | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        complaint = done.stderr.decode(errors="replace").strip()
        if done.returncode:
            raise RuntimeError(f"the script ended with exit code {done.returncode}: {complaint}")
        if not Path(folder, "arguments").exists():
            raise RuntimeError(f"the script started none of {', '.join(LAUNCHERS)}: {complaint}")
        return started(Path(folder))


def stand_ins(folder: Path, commands: dict[str, str]) -> dict[str, str]:
    """Put scripts called like ``commands``' names into ``folder``; an environment in which they are found first."""
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    known = {name: os.environ[name] for name in ("HOME", "LANG", "PYTHONPATH", "TMPDIR") if name in os.environ}
    path = os.pathsep.join((str(folder), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return known | {"PATH": path, "WRITE_DOWN": str(folder)}


def started(folder: Path) -> Started:
    """What a stand-in wrote down into ``folder``."""
    arguments, variables = (_words(folder / name) for name in ("arguments", "environment"))
    preflight = _words(folder / "preflight") if (folder / "preflight").exists() else ()
    return Started(arguments, dict(variable.split("=", 1) for variable in variables), preflight)


def _words(file: Path) -> list[str]:
    return file.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
