"""The head of an sbatch script: the directives as sbatch reads them, and what SLURM will set because of them."""

from __future__ import annotations

import re
import shlex

from course_utils.launch.check.slurm import minutes
from course_utils.launch.explain.reading import Reading, number

TOOL = "sbatch"
SHORT = {"J": "job-name", "N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "p": "partition"}
SHORT |= {
    "A": "account",
    "o": "output",
    "e": "error",
    "G": "gpus",
    "w": "nodelist",
    "q": "qos",
    "D": "chdir",
    "C": "constraint",
}
TRAP = re.compile(r"""^[ \t]*trap[ \t]+(?:'[^']*'|"[^"]*"|\S+)[ \t]+(.*)$""", re.M)  # the signals behind the action
OTHER_FILE = re.compile(r"^[ \t]*(source|\.)[ \t]+(?!\S*(activate|bashrc|profile|conda\S*)[\"']?[ \t]*$)\S", re.M)
SET_BY_SLURM = {
    "nodes": ("SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
    "ntasks-per-node": ("SLURM_NTASKS_PER_NODE",),
    "ntasks": ("SLURM_NTASKS", "SLURM_NPROCS"),
    "cpus-per-task": ("SLURM_CPUS_PER_TASK",),
    "gpus": ("SLURM_GPUS_ON_NODE",),
}


def explain(reading: Reading, text: str) -> dict[str, str]:
    """Add what the directives say; returns the variables that SLURM sets from them, by name."""
    lines = text.splitlines()
    asked = _directives(reading, lines)
    for name, value in asked.items():
        reading.set(f"#SBATCH --{name}", value, value, TOOL)
        if "$" in value or "`" in value:
            reading.find("sbatch-variable", text=f"--{name}={value}")
    found = {key: number(asked.get(key)) for key in ("nodes", "ntasks-per-node", "ntasks", "cpus-per-task")}
    found["gpus"] = gpus(asked)
    known = {variable: str(found[key]) for key, names in SET_BY_SLURM.items() for variable in names if found.get(key)}
    nodes = found["nodes"]  # None: sbatch's own words decide, and the script does not know
    if nodes and found["ntasks-per-node"] and not found["ntasks"]:
        known["SLURM_NTASKS"] = str(nodes * found["ntasks-per-node"])
    reading.know("nodes", nodes, "#SBATCH --nodes")
    reading.know("gpus_per_node", found["gpus"], "#SBATCH --gres")
    reading.know("tasks_per_node", found["ntasks-per-node"], "#SBATCH --ntasks-per-node")
    reading.know("cores", found["cpus-per-task"], "#SBATCH --cpus-per-task")
    if "time" not in asked:
        reading.find("no-time-limit")
    else:
        reading.know("time_limit", minutes(asked["time"]), "#SBATCH --time")
    body = "\n".join(line for line in lines if not line.startswith("#"))
    is_queued = "requeue" in asked or "requeue" in body
    if "signal" in asked and not is_queued and "sbatch" not in body:
        reading.find("no-requeue")
    if is_queued and "no-requeue" not in asked and asked.get("open-mode", "")[:1] != "a":
        reading.find("requeue-truncates")
    _warning(reading, asked.get("signal", ""), body)
    return known


def _warning(reading: Reading, signal: str, body: str) -> None:
    """A signal to the batch script (``B:``) needs a trap, and a trap needs a script that is not waiting."""
    target, colon, name = signal.partition("@")[0].rpartition(":")
    name = {"10": "USR1", "12": "USR2", "15": "TERM"}.get(name, name.upper().removeprefix("SIG"))
    if not (colon and "B" in target.upper() and name) or re.search(r"^[ \t]*exec[ \t]+srun\b", body, re.M):
        return
    trapped = " ".join(TRAP.findall(body))
    if not re.search(rf"\b(SIG)?{re.escape(name)}\b", trapped):
        if OTHER_FILE.search(body):  # which may set the trap
            return
        reading.find("signal-untrapped", signal=signal, name=name)
    elif not re.search(r"(?<!&)&[ \t]*(#.*)?$", body, re.M):
        reading.find("trap-too-late", name=name)


def gpus(asked: dict[str, str]) -> int | None:
    """GPUs of one machine, from whichever option says so."""
    for name in ("gpus-per-node", "gres", "gpus-per-task"):
        found = re.search(r"(?:^|[,:=])(?:gpu:)?(?:[\w.-]+:)?(\d+)(?:\(|,|$)", asked.get(name, ""))
        if found and (name != "gres" or "gpu" in asked[name]):
            return int(found[1]) * (number(asked.get("ntasks-per-node")) or 1 if name == "gpus-per-task" else 1)
    total, nodes = re.search(r"(\d+)$", asked.get("gpus", "")), number(asked.get("nodes")) or 1
    return int(total[1]) // nodes if total else None


def _directives(reading: Reading, lines: list[str]) -> dict[str, str]:
    """Options of the head, and a finding for each directive behind it."""
    asked: dict[str, str] = {}
    head = True
    for place, line in enumerate(lines, 1):
        if line.startswith("#SBATCH") and not head:
            reading.find("sbatch-late", line=place, text=line.strip())
        elif line.startswith("#SBATCH"):
            try:
                words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
            except ValueError:
                reading.find("shell-syntax", what="a quote", line=place)
                continue
            while words:
                word = words.pop(0)
                name, equals, value = word.lstrip("-").partition("=")
                if not word.startswith("--") and word.startswith("-"):
                    name, value = SHORT.get(word[1:2], word[1:2]), word[2:].lstrip("=")
                    equals = value
                if not equals and words and not words[0].startswith("-"):
                    value = words.pop(0)
                asked[name] = value
        elif line.strip() and not line.startswith("#"):
            head = False
    return asked
