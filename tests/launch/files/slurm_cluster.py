"""A SLURM cluster of two nodes on this machine, for as long as a ``with`` block or a command lasts.

    python tests/launch/slurm_cluster.py sbatch --wait launch/slurm.sbatch     # from the project root

Debian's packages ``slurm-wlm`` and ``munge`` bring the real daemons. They work in a temporary folder: nothing is
installed, /etc stays as it is, and every process started here is ended here. The nodes are called 127.0.0.2 and
127.0.0.3, names that every Linux machine resolves to itself, so that MASTER_ADDR works without touching /etc/hosts.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from course_utils.parallel.processes import free_ports

NODES = ("127.0.0.2", "127.0.0.3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue")
SBIN = "/usr/sbin:/sbin"  # Debian's place for daemons, not on every user's PATH

# cred_expire: a requeued job starts when its old credential is no longer valid, after two minutes by default;
# a busy machine must still start it within that time.
# sched_*: no waits that protect large clusters.
# ProctrackType: real clusters follow processes by cgroup, which containers rarely allow.
# config_overrides: the nodes have 8 GPUs and 64 cores by their own word, so that jobs for GPU machines are accepted.
CONF = """\
ClusterName=lesson15
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType={proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
NodeName=127.0.0.[2-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]},{ports[2]}] CPUs=64 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
PartitionName=gpu-long Nodes=ALL MaxTime=INFINITE
"""


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    for program in PROGRAMS:
        if not shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}"):
            return f"no {program} on this machine (Debian: apt-get install slurm-wlm munge)"
    return ""


@contextmanager
def cluster(proctrack: str = "proctrack/pgid") -> Iterator[dict[str, str]]:
    """Start the daemons; gives the environment in which ``sbatch``, ``srun`` and ``scontrol`` find them.

    Raises:
        RuntimeError: the nodes did not get ready within 20 s; the message holds the ends of the daemons' logs.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # munged refuses a socket that other users could not reach
        _configure(folder, proctrack)
        # Variables of a job this itself runs in would be taken for settings of ours.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}
        for name, command in _daemons(folder).items():
            with (folder / f"{name}.log").open("w") as log:
                daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.callback(_end, daemon)
            if name == "munged":
                _wait_for((folder / "munge.socket").exists, folder)
        stack.callback(_end_jobs, environment)
        _wait_for(lambda: _idle(environment) == len(NODES), folder)
        yield environment


def _configure(folder: Path, proctrack: str) -> None:
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    user = pwd.getpwuid(os.getuid()).pw_name
    values = {"host": socket.gethostname(), "ports": free_ports(3), "user": user, "folder": folder}
    (folder / "slurm.conf").write_text(CONF.format(proctrack=proctrack, **values))
    (folder / "cgroup.conf").write_text("ConstrainCores=no\n")
    for gpu in range(8):
        (folder / f"gpu{gpu}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")


def _daemons(folder: Path) -> dict[str, list[str]]:
    """Each in the foreground (-F, -D), so that it is our child and ends when we say so."""
    munge = [f"--{name}={folder}/munged.{name}" for name in ("pid-file", "log-file", "seed-file")]
    munge += [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    found = {"munged": ["munged", "--foreground", "--force", *munge]}
    found["slurmctld"] = ["slurmctld", "-D", "-f", f"{folder}/slurm.conf"]
    return found | {f"slurmd-{node}": ["slurmd", "-D", "-N", node, "-f", f"{folder}/slurm.conf"] for node in NODES}


def _idle(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--partition=main", "--states=idle", "--format=%N"]
    return len(subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split())


def _wait_for(ready: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}: {path.read_text()[-600:]}" for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"the SLURM cluster did not get ready in 20 s\n{logs}")
        time.sleep(0.1)


def _end_jobs(environment: dict[str, str]) -> None:
    """Kill what still runs, before the daemons that know about it are gone."""
    user = f"--user={pwd.getpwuid(os.getuid()).pw_name}"
    subprocess.run(["scancel", "--state=PENDING", user], env=environment)
    subprocess.run(["scancel", "--state=RUNNING", "--full", "--signal=KILL", user], env=environment)
    deadline = time.monotonic() + 10
    while subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True).stdout:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)


def _end(daemon: subprocess.Popen) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


if __name__ == "__main__":
    if missing() or not sys.argv[1:]:
        sys.exit(missing() or __doc__)
    with cluster() as found:
        sys.exit(subprocess.run(sys.argv[1:], env=found).returncode)
