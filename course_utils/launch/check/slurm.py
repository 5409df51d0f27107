"""slurm.sbatch: its directives as sbatch reads them, and its body executed on two pretended machines.

Where a SLURM controller answers, ``sbatch --test-only`` is asked as well: it knows the cluster's partitions and limits,
and submits nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from course_utils.launch.check import program as check_program
from course_utils.launch.check.launchers import arriving
from course_utils.launch.check.program import Program
from course_utils.launch.check.rows import Row, guarded
from course_utils.launch.check.scripts import LAUNCHERS, STAND_IN, Started, stand_ins, started
from course_utils.launch.spec import Spec, settings

FILE = "slurm.sbatch"
# srun: the first and the last task, one after the other; out of so many, two show what is the same and what is not.
SRUN = """#!/bin/sh
while case $1 in -* | [0-9]*) ;; *) false ;; esac; do shift; done  # its own options
for rank in $RANKS; do
  mkdir -p "$MACHINES/$rank"
  WRITE_DOWN=$MACHINES/$rank SLURM_PROCID=$rank SLURM_NODEID=$rank "$@" || exit
done
"""
SCONTROL = """#!/bin/sh
[ "$1 $2" != "show hostnames" ] || seq -f "machine%g" 0 $((SLURM_JOB_NUM_NODES - 1))
"""
APPTAINER = '#!/bin/sh\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n'  # the command without its container
# What sbatch sets in every job (its manual, "OUTPUT ENVIRONMENT VARIABLES"); not what only some jobs have.
MISSING = "#!/bin/sh\necho 'scontrol: command not found' >&2\nexit 127\n"
ALWAYS = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOBID": "1",
    "SLURM_JOB_NAME": "job",
    "SLURM_JOB_PARTITION": "partition",
    "SLURM_JOB_ACCOUNT": "account",
    "SLURM_JOB_USER": "user",
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_GID": "1000",
    "SLURM_CLUSTER_NAME": "cluster",
    "SLURM_SUBMIT_HOST": "login",
    "SLURM_GTIDS": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",  # as SLURM says outside srun, on the first machine
    "SLURM_TASK_PID": "1",
    "SLURM_TOPOLOGY_ADDR": "machine0",
    "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
    "SLURMD_NODENAME": "machine0",
}
NOTHING = "#!/bin/sh\n"
SLEEP = "#!/bin/sh\nexec /bin/sleep 0.02\n"  # nothing here takes as long as on a cluster


def rows(spec: Spec, folder: Path) -> list[Row]:
    """slurm.sbatch in ``folder`` against ``spec``. Executes the script, SLURM's commands and the launchers excepted."""
    found = guarded(FILE, _directives, spec, folder / FILE) + guarded(FILE, _body, spec, folder / FILE)
    return found + guarded(FILE, _controller, folder / FILE)


def read_directives(text: str) -> argparse.Namespace:
    """The options that sbatch takes from a script: up to the first line that is neither empty nor a comment.

    sbatch splits words at spaces and knows quotes, but no variables; options may be shortened, the last one counts.
    """
    words: list[str] = []
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            words += shlex.split(line.removeprefix("#SBATCH"), comments=True)
        elif line.strip() and not line.startswith("#"):
            break
    parser = argparse.ArgumentParser(prog="sbatch", exit_on_error=False)
    for short, name in (("J", "job-name"), ("N", "nodes"), ("c", "cpus-per-task"), ("t", "time")):
        parser.add_argument(f"-{short}", f"--{name}")
    for short, name in (("p", "partition"), ("A", "account"), ("o", "output")):
        parser.add_argument(f"-{short}", f"--{name}", default="")
    for name in ("ntasks-per-node", "gres", "gpus-per-node", "mem", "signal", "open-mode"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--exclusive", nargs="?", const="")
    parser.add_argument("--requeue", action="store_true")
    parser.add_argument("--no-requeue", dest="requeue", action="store_false")
    return parser.parse_known_args(words)[0]


def minutes(time: str | None) -> int | None:
    """SLURM's notation in minutes, seconds rounded up: 90, 90:00, 1:30:00, 0-1, 0-1:30 and 0-1:30:00 are the same."""
    if not time or not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        return None
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, mins, seconds = parts + [0] * (3 - len(parts))
    else:
        hours, mins, seconds = [[0, *parts, 0], [0, *parts], parts][len(parts) - 1]
    return int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)


def _directives(spec: Spec, script: Path) -> Iterable[Row]:
    text = script.read_text(encoding="utf-8")
    asked = read_directives(text)
    read = sum(line.startswith("#SBATCH") for line in _head(text))
    yield Row(FILE, "directives that sbatch does not read", 0, len(re.findall("^#SBATCH", text, re.M)) - read)
    yield Row(FILE, "job name", spec.name, asked.job_name)
    yield Row(FILE, "machines", str(spec.nodes), asked.nodes)
    yield Row(FILE, "tasks per machine", "1", asked.ntasks_per_node)
    gpus = asked.gpus_per_node or (asked.gres or "gpu:0").removeprefix("gpu:")
    yield Row(FILE, "GPUs per machine", spec.gpus_per_node if spec.device == "cuda" else 0, int(gpus.split(":")[-1]))
    yield Row(FILE, "cores per machine", str(spec.gpus_per_node * spec.cpus_per_gpu), asked.cpus_per_task)
    yield Row(FILE, "memory per machine (0: all)", "0" if spec.device == "cuda" else None, asked.mem)
    yield Row(FILE, "time limit in minutes", spec.time_limit, minutes(asked.time))
    yield Row(FILE, "warning to this script", f"B:USR1@{spec.warning}", asked.signal)
    yield Row(FILE, "may be queued again", True, asked.requeue)
    yield Row(FILE, "output of each stay is kept", "append", asked.open_mode)
    if spec.exclusive:
        yield Row(FILE, "machines for this job alone", True, asked.exclusive is not None)
    yield Row(FILE, "partition", spec.partition, asked.partition)
    yield Row(FILE, "account", spec.account, asked.account)


def _head(text: str) -> Iterable[str]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            return
        yield line


def _body(spec: Spec, script: Path) -> Iterable[Row]:
    """What torchrun is given on the first and on the last machine, read by torchrun itself."""
    from torch.distributed.run import config_from_args, parse_args

    machines = _on_machines(script)
    yield Row(FILE, "machines that start torchrun", sorted({0, spec.nodes - 1}), sorted(machines))
    ranks = {}
    for machine, (words, environment, _) in machines.items():
        args = parse_args(words[1:])
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"} | environment, clear=True):
            config, _, command = config_from_args(args)
        ranks[machine] = config.rdzv_configs.get("rank")
    if spec.nodes > 1:
        yield Row(FILE, "ranks of first and last machine", [0, spec.nodes - 1], [ranks[key] for key in sorted(ranks)])
        first = f"machine0:{settings.slurm_port(spec, int(ALWAYS['SLURM_JOB_ID']))}"
        yield Row(FILE, "first machine", first, config.rdzv_endpoint)
        yield Row(FILE, "first machine where scontrol is missing", "none: the job stops", _without_scontrol(script))
    cores = environment.get("SRUN_CPUS_PER_TASK")
    yield Row(FILE, "cores per machine inside srun", str(spec.gpus_per_node * spec.cpus_per_gpu), cores)
    yield Row(FILE, "processes per machine", spec.gpus_per_node, config.nproc_per_node)
    program = command[command.index(args.training_script) + 1 :]
    name, *program = arriving([args.training_script, *program])
    world_size = config.max_nodes * config.nproc_per_node
    found = Program(FILE, name, bool(args.module), program, environment, world_size)
    yield from check_program.rows(spec, found)


def _without_scontrol(script: Path) -> str:
    """Where the machines would meet if scontrol failed, as on a machine or in a container that lacks it.

    A fallback such as ``$(scontrol ... || echo localhost)`` would make every machine the first one.
    """
    from torch.distributed.run import config_from_args, parse_args

    try:
        machines = _on_machines(script, MISSING)
    except RuntimeError:
        return "none: the job stops"
    words, environment = machines[min(machines)][:2] if machines else ([], {})
    if not words:
        return "none: the job stops"
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"} | environment, clear=True):
        endpoint = config_from_args(parse_args(words[1:]))[0].rdzv_endpoint
    return "none: the job stops" if endpoint.startswith(":") or not endpoint else endpoint


def _on_machines(script: Path, scontrol: str = SCONTROL) -> dict[int, Started]:
    """Execute a copy of ``script``, as SLURM does, in the current folder; what each machine started, by its number."""
    asked = read_directives(script.read_text(encoding="utf-8"))
    last = int(asked.nodes or 1) * int(asked.ntasks_per_node or 1) - 1
    commands = dict.fromkeys(LAUNCHERS, STAND_IN)
    commands |= {"srun": SRUN, "scontrol": scontrol, "scancel": NOTHING, "sleep": SLEEP}
    commands["apptainer"] = APPTAINER
    with tempfile.TemporaryDirectory() as folder:
        environment = stand_ins(Path(folder), commands)
        environment |= ALWAYS | {"MACHINES": folder, "RANKS": " ".join(map(str, sorted({0, last})))}
        copy = shutil.copy(script, Path(folder, "slurm_script"))
        environment |= {
            "SLURM_SUBMIT_DIR": str(Path.cwd()),
            "SLURM_JOB_NODELIST": f"machine[0-{last}]",
            "SLURM_NODELIST": f"machine[0-{last}]",
            "SLURM_JOB_NUM_NODES": asked.nodes or "1",
            "SLURM_NNODES": asked.nodes or "1",
            "SLURM_TASKS_PER_NODE": f"{asked.ntasks_per_node or 1}(x{asked.nodes or 1})",
            "SLURM_CPUS_ON_NODE": asked.cpus_per_task or "1",
            "SLURM_JOB_CPUS_PER_NODE": f"{asked.cpus_per_task or 1}(x{asked.nodes or 1})",
        }
        if asked.cpus_per_task:
            environment["SLURM_CPUS_PER_TASK"] = asked.cpus_per_task
        if asked.ntasks_per_node:  # these three only where the job asked
            tasks = int(asked.nodes or 1) * int(asked.ntasks_per_node)
            environment |= {"SLURM_NTASKS_PER_NODE": asked.ntasks_per_node, "SLURM_NTASKS": str(tasks)}
            environment["SLURM_NPROCS"] = str(tasks)
        if (asked.gres or "").startswith("gpu") or asked.gpus_per_node:
            number = (asked.gpus_per_node or asked.gres).split(":")[-1]
            environment |= {"SLURM_GPUS_ON_NODE": number, "SLURM_JOB_GPUS": ",".join(map(str, range(int(number))))}
            environment["CUDA_VISIBLE_DEVICES"] = environment["SLURM_JOB_GPUS"]
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
        done = subprocess.run(["bash", str(copy)], env=environment, timeout=120, **quiet)
        if done.returncode:
            raise RuntimeError(f"the script ended with exit code {done.returncode}: {done.stderr.strip()}")
        return {int(path.parent.name): started(path.parent) for path in Path(folder).glob("*/arguments")}


def _controller(script: Path) -> Iterable[Row]:
    """``sbatch --test-only``, where there is a cluster to ask."""
    if not (shutil.which("sbatch") and shutil.which("scontrol")):
        return
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    try:
        if "is UP" not in subprocess.run(["scontrol", "ping"], timeout=10, **quiet).stdout:
            return
        done = subprocess.run(["sbatch", "--test-only", str(script)], timeout=30, **quiet)
    except subprocess.TimeoutExpired:  # the controller is busy: nothing about the file
        return
    yield Row(FILE, "sbatch --test-only", "accepted", "accepted" if done.returncode == 0 else done.stderr.strip())
