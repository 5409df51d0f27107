"""A shell or sbatch script: every launcher it starts, with its processes, its meeting point and its program."""

from __future__ import annotations

import re
from typing import Any

from course_utils.launch.explain import (
    accelerate_yaml,
    environment,
    job_script,
    launchers,
    processes,
    recognized,
    shell,
    training_arguments,
)
from course_utils.launch.explain.launchers import Launch, option
from course_utils.launch.explain.processes import OUTSIDE, RANKS
from course_utils.launch.explain.reading import Open, Reading
from course_utils.launch.explain.shell_text import Command, Script

MOST_DEPTH = 4
EXPORTED = re.compile(r"(?:--export=\w+,)?([A-Z][A-Z_0-9]*)=([^,]*)")  # of env and srun
WHERE = {"SLURM": "set by SLURM", "SKYPILOT": "set by SkyPilot", "PET": "set by Kubeflow", "SM": "set by SageMaker"}


def explain(reading: Reading, text: str) -> None:
    """Add settings, facts and findings of the script ``text``."""
    is_job = bool(re.search(r"^#SBATCH", text, re.M))
    reading.kind = "sbatch script" if is_job else "shell script"
    commands(reading, text, job_script.explain(reading, text) if is_job else {}, is_job)


def commands(reading: Reading, text: str, variables: dict[str, str], is_job: bool = False) -> list[Launch]:
    """Every launcher of a shell text; also used for the commands inside YAML files."""
    script = shell.read(text, variables)
    if script.unclosed:
        what, line = script.unclosed
        reading.find("shell-syntax", what=what, line=line)
    for name in environment.SHOWN:
        if name in script.variables:
            reading.set(f"${name}", script.variables[name], _open(script.variables[name]), "shell")
    starts = list(_starts(script.commands, script.variables, 0, ""))
    found = []
    ports: dict[str, Command] = {}
    for place, (command, launch, known, around) in enumerate(starts, 1):
        reading.run = str(place) if len(starts) > 1 else ""
        _launch(reading, launch, command, known, is_job, around, text)
        port = option(launch, "master_port", "main_process_port")
        if command.background and port and not isinstance(port, Open):
            if str(port) in ports:
                reading.find("same-port", port=port)
            ports[str(port)] = command
        found.append(launch)
    _environment(reading, script, [start[0] for start in starts], variables, text)
    reading.run = ""
    if not starts:
        reading.set("launcher", "none found", "no torchrun, accelerate launch or deepspeed in this file", "shell")
    return found


def _environment(reading: Reading, script: Script, started: list[Command], given: dict[str, str], text: str) -> None:
    """Variables that the programs see, be they exported, given by the caller, or written before a command."""
    known = script.variables
    seen = {name: value for name, value in known.items() if script.exports_all or name in {*script.exported, *given}}
    for command in [*script.commands, *started]:
        if command.words and str(command.words[0]) not in shell.DECLARING:
            seen |= command.variables
            seen |= dict(found.groups() for word in command.words if (found := EXPORTED.fullmatch(str(word))))
    environment.judge(reading, seen)
    environment.not_exported(reading, known.keys() - seen.keys(), text)


def _starts(commands: list[Command], variables: dict[str, str], depth: int, around: str) -> Any:
    """(command, launch, variables, what stands around it) of every launcher, ``bash -c '...'`` opened."""
    for command in commands:
        words = command.words
        quoted = next(
            (
                place
                for place, word in enumerate(words[:-1])
                if str(word) in launchers.SHELLS and re.fullmatch(r"-[a-z]*c[a-z]*", str(words[place + 1]))
            ),
            None,
        )
        if quoted is not None and len(words) > quoted + 2 and depth < MOST_DEPTH:
            before = " ".join([around, *map(str, words[:quoted])]).strip()
            known = variables | command.variables
            if "srun" in before.split():
                known = _seen_from_srun(known, words[quoted + 2])
            inner = shell.read(str(words[quoted + 2]), known)
            for nested in inner.commands:
                nested.background |= command.background
            yield from _starts(inner.commands, inner.variables, depth + 1, before or "bash")
            continue
        launch = launchers.read(words)
        if launch:
            before = " ".join([around, *map(str, launch.prefix)]).strip()
            yield command, launch, variables | command.variables, before


def _seen_from_srun(variables: dict[str, str], text: str) -> dict[str, str]:
    """Variables for a text that srun's tasks execute; a rank that the batch script put in is marked as such."""

    def marked(value: str) -> str:
        names = tuple(f"{OUTSIDE}{name}" if name in RANKS else name for name in getattr(value, "names", ()))
        return Open(value, names) if names else value

    found = {name: marked(value) for name, value in variables.items()}
    put_in = [name for name in getattr(text, "names", ()) if name in RANKS]  # "..." instead of '...'
    return found | {name: Open(f"${name}", (f"{OUTSIDE}{name}",)) for name in put_in}


def _open(value: Any) -> Any:
    """How a value that is not known yet is shown."""
    if not isinstance(value, Open):
        return value
    name = value.names[0] if value.names else "the caller"
    where = next((text for prefix, text in WHERE.items() if name.startswith(f"{prefix}_")), "set where it is started")
    return Open(f"open: {name} is {where}" if re.fullmatch(r"\w+", name) else f"open: {name}", value.names)


def _launch(
    reading: Reading,
    launch: Launch,
    command: Command,
    variables: dict[str, str],
    is_job: bool,
    around: str,
    text: str,
) -> None:
    tool = launch.tool
    if "torch" in tool:  # torchrun takes what is not given from PET_ variables
        for name in ("nnodes", "nproc_per_node", "node_rank", "master_addr", "master_port"):
            if f"PET_{name.upper()}" in variables:
                launch.options.setdefault(name, variables[f"PET_{name.upper()}"])
    if tool == "torch.distributed.launch":
        reading.find("launch-module-gone")
    number_of = f" {reading.run}" if reading.run else ""
    for name, value in launch.options.items():
        reading.set(f"{tool}{number_of}: --{name}", value, _open(value), tool)
    for name, near in launch.unknown:
        reading.find("launcher-unknown-option", tool=tool, name=name, cure=f"write `{near}`" if near else "delete it")
    if not launch.program:
        reading.find("program-missing", tool=tool)
    else:
        reading.set(f"{tool}{number_of}: program", launch.program, launch.program, tool)
    nodes, each = processes.count(reading, launch, command, is_job)
    started_by = "srun" in around.split() or any(word.startswith("mpirun") for word in around.split())
    if nodes and nodes > 1:
        processes.meeting(reading, launch, nodes, is_job and "srun" in around.split())
        if is_job and not started_by and not re.search(r"\b(srun|pdsh|ssh|mpirun|clush)\b", _code(text)):
            reading.find("one-machine-started", nodes=nodes)
    processes.in_job(reading, launch, each, variables, started_by, text)
    if tool == "torchrun":
        processes.logs(reading, launch)
    _program(reading, launch)


def _code(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _program(reading: Reading, launch: Launch) -> None:
    """The program's arguments: as TrainingArguments reads them, if they are for it."""
    if launch.tool != "deepspeed":
        for word in launch.arguments:
            text = str(word)
            if ("$$" in text or "${local_rank}" in text) and not isinstance(word, Open):
                reading.find("dollar-expanded", tool=launch.tool, name=text)
    values = recognized.words(launch.arguments)
    if "trust_remote_code" in values and str(values["trust_remote_code"]).lower() in ("true", "1"):
        reading.find("remote-code")
    values.pop("trust_remote_code", None)
    if recognized.is_trainer(values):
        training_arguments.judge(reading, values, may_be_others=True)
    config = option(launch, "config_file")
    if config is not None:
        reading.know("config_file", config, "--config_file")
    if launch.tool == "accelerate launch":
        known = accelerate_yaml.options()
        for name in launch.options:
            action = known.get(name)
            if action and action.choices and not isinstance(launch.options[name], Open):
                choices = [str(choice) for choice in action.choices]
                if str(launch.options[name]) not in choices:
                    allowed = ", ".join(choices[:8])
                    reading.find(
                        "bad-value", name=f"--{name}", value=launch.options[name], tool=launch.tool, allowed=allowed
                    )
