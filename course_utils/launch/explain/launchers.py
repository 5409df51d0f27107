"""torchrun, accelerate launch and deepspeed as words: which options they are given, and which program with what."""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import Any, NamedTuple

from course_utils.launch.explain.reading import Open

# deepspeed 0.19, launcher/runner.py: its parser is built inside a function. True: takes no value.
DEEPSPEED = dict.fromkeys(
    [
        "-H",
        "--hostfile",
        "-i",
        "--include",
        "-e",
        "--exclude",
        "--num_nodes",
        "--num_gpus",
        "--master_port",
        "--master_addr",
        "--node_rank",
        "--launcher",
        "--launcher_args",
        "--enable_each_rank_log",
        "--autotuning",
        "--elastic_training",
        "--min_elastic_nodes",
        "--max_elastic_nodes",
        "--bind_core_list",
        "--ssh_port",
        "--venv_script",
        "--log_level",
    ],
    False,
) | dict.fromkeys(
    [
        "--module",
        "--no_python",
        "--no_local_rank",
        "--no_ssh",
        "--no_ssh_check",
        "--force_multi",
        "--save_pid",
        "--bind_cores_to_rank",
        "-q",
        "--quiet",
        "-h",
        "--help",
    ],
    True,
)
PYTHON = re.compile(r"python[\d.]*|\$\{?PYTHON\w*\}?")
MODULES = {"torch.distributed.run": "torchrun", "torch.distributed.launch": "torch.distributed.launch"}
MODULES |= {"accelerate.commands.launch": "accelerate launch", "deepspeed.launcher.runner": "deepspeed"}
SHELLS = ("bash", "sh", "zsh", "/bin/bash", "/bin/sh")


class Launch(NamedTuple):
    """One start of a launcher. ``options``: name without dashes, ``-`` as ``_`` -> value (True: a switch)."""

    tool: str  # torchrun, accelerate launch, deepspeed, or python
    options: dict[str, Any]
    unknown: list[tuple[str, str]]  # (option, nearest known one or "")
    program: str
    is_module: bool
    arguments: list[str]
    prefix: list[str]  # srun, mpirun, ... before it


class Bad(NamedTuple):
    """A value that the option cannot have."""

    option: str
    value: str


@cache
def _options(tool: str) -> dict[str, bool]:
    """Option strings of a launcher -> whether it takes no value."""
    if tool == "deepspeed":
        return DEEPSPEED
    if tool == "torchrun":
        from torch.distributed.run import get_args_parser as parser
    else:
        from accelerate.commands.launch import launch_command_parser as parser
    return {text: action.nargs == 0 for action in parser()._actions for text in action.option_strings}


def find(words: list[str]) -> tuple[str, int, int] | None:
    """The launcher among a command's words: its name, where it stands, and where its options begin."""
    for place, word in enumerate(words):
        base = str(word).rsplit("/", 1)[-1]
        following = [str(other) for other in words[place + 1 : place + 3]]
        if base == "torchrun":
            return "torchrun", place, place + 1
        if base == "accelerate" and following[:1] == ["launch"]:
            return "accelerate launch", place, place + 2
        if base == "accelerate-launch":
            return "accelerate launch", place, place + 1
        if base in ("deepspeed", "deepspeed.pt", "ds"):
            return "deepspeed", place, place + 1
        if PYTHON.fullmatch(base) and (module := _module(words, place)) and module[0] in MODULES:
            return MODULES[module[0]], place, module[1]
        if base in ("echo", "which", "pip", "cat", "grep", "pkill", "killall", "kill", "command", "printf", "export"):
            return None
    return None


def _module(words: list[str], place: int) -> tuple[str, int] | None:
    """The module that ``python ... -m MODULE`` starts, and where its own words begin; None: no module."""
    place += 1
    while place < len(words) and str(words[place]).startswith("-") and words[place] != "-m":
        place += 2 if words[place] in ("-X", "-W") else 1
    return (str(words[place + 1]), place + 2) if words[place : place + 1] == ["-m"] and words[place + 1 :] else None


def read(words: list[str]) -> Launch | None:
    """The launcher that a simple command starts; None: it starts none (also ``python program.py``)."""
    found = find(words)
    if found is None:
        return None
    tool, place, rest = found
    table = _options({"torch.distributed.launch": "torchrun"}.get(tool, tool))
    options: dict[str, Any] = {}
    unknown: list[tuple[str, str]] = []
    queue = list(words[rest:])
    while queue and str(queue[0]).startswith("-") and queue[0] != "--":
        word = queue.pop(0)
        name, equals, value = str(word).partition("=")
        full = _full_name(name, table)
        if full is None:
            near = difflib.get_close_matches(name, table, 1, 0.7)
            unknown.append((name, near[0] if near else ""))
            if not equals and queue and not str(queue[0]).startswith("-") and len(queue) > 1:
                queue.pop(0)
            continue
        key = full.lstrip("-").replace("-", "_")
        if table[full]:
            options[key] = True
        elif equals:
            options[key] = Open(value, word.names) if isinstance(word, Open) else value
        else:
            options[key] = queue.pop(0) if queue else ""
    queue = queue[1:] if queue[:1] == ["--"] else queue
    is_module = bool(options.get("module") or options.get("m"))
    program = str(queue[0]) if queue else ""
    return Launch(tool, options, unknown, program, is_module, queue[1:], list(words[:place]))


def _full_name(name: str, table: dict[str, bool]) -> str | None:
    """The option that argparse takes ``name`` for: itself, or the only one that begins so."""
    if name in table:
        return name
    if not name.startswith("--"):
        return None
    swapped = "--" + name[2:].replace("-", "_")
    if swapped in table:
        return swapped
    starts = {text for text in table if text.startswith(name)}
    starts = {text for text in starts if text.replace("-", "_") == min(starts, key=len).replace("-", "_")} or starts
    return min(starts, key=len) if len({text.replace("-", "_") for text in starts}) == 1 else None


def option(launch: Launch, *names: str) -> Any:
    """The value of the first of these options that is given; None: none."""
    return next((launch.options[name] for name in names if name in launch.options), None)
