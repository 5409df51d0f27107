"""How many processes a launcher starts, where they meet, and whether the job that starts it gives it that much."""

from __future__ import annotations

import re

from course_utils.launch.explain.launchers import Launch, option
from course_utils.launch.explain.reading import Open, Reading, number
from course_utils.launch.explain.shell import Command

ALONE = ("localhost", "127.0.0.1", "::1")
RANKS = ("SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID")
OUTSIDE = "outside srun: "
KEEPS = {"redirects": ("redirects", "r"), "tee": ("tee", "t")}


def count(reading: Reading, launch: Launch, command: Command, is_job: bool) -> tuple[int | None, int | None]:
    """Machines and processes on each; facts."""
    if launch.tool == "accelerate launch":
        nodes, world = number(option(launch, "num_machines")), number(option(launch, "num_processes"))
        if isinstance(world, int):
            reading.know("world_size", world, "--num_processes")
        if nodes and world and not isinstance(world, Open) and not isinstance(nodes, Open) and world % max(nodes, 1):
            reading.find("processes-round-down", world=world, machines=nodes, each=world // nodes)
        if isinstance(nodes, int):
            reading.know("nodes", nodes, "--num_machines")
        stage = number(option(launch, "zero_stage"))
        reading.know("strategy", f"zero{stage}" if stage in (1, 2, 3) else None, "--zero_stage")
        if precision := option(launch, "mixed_precision"):
            reading.know("precision", precision, "--mixed_precision")
        accumulation = number(option(launch, "gradient_accumulation_steps"))
        reading.know("accumulation", accumulation, "--gradient_accumulation_steps")
        each = world // nodes if isinstance(nodes, int) and isinstance(world, int) and nodes > 0 else None
        return (nodes if isinstance(nodes, int) else None), each
    if launch.tool == "deepspeed":
        nodes, each = number(option(launch, "num_nodes")), number(option(launch, "num_gpus"))
    else:
        nodes, each = number(option(launch, "nnodes")), number(option(launch, "nproc_per_node"))
        written = option(launch, "nproc_per_node")
        words = ("gpu", "cpu", "auto", "xpu", "")
        if written is not None and each is None and str(written) not in words:
            reading.find(
                "bad-value", name="--nproc-per-node", value=written, tool="torchrun", allowed="a number, gpu or auto"
            )
        nodes = nodes if option(launch, "nnodes") is not None else 1
        each = each if written is not None else 1
        if (
            option(launch, "nnodes") is not None
            and nodes is None
            and not re.fullmatch(r"\d+:\d+", str(option(launch, "nnodes")))
        ):
            reading.find(
                "bad-value",
                name="--nnodes",
                value=option(launch, "nnodes"),
                tool="torchrun",
                allowed="a number, or min:max",
            )
    nodes, each = (value if isinstance(value, int) else None for value in (nodes, each))
    reading.know("nodes", nodes, "--nnodes" if "torch" in launch.tool else "--num_nodes")
    reading.know("processes_per_node", each, "--nproc-per-node" if "torch" in launch.tool else "--num_gpus")
    if nodes and each:
        reading.know("world_size", nodes * each, "nodes x processes")
    return nodes, each


def meeting(reading: Reading, launch: Launch, nodes: int, inside_srun: bool) -> None:
    """Where several machines meet, and which of them this is."""
    backend = str(option(launch, "rdzv_backend") or "static")
    address = option(launch, "master_addr", "main_process_ip")
    endpoint = option(launch, "rdzv_endpoint")
    rank = option(launch, "node_rank", "machine_rank")
    if "torch" in launch.tool:
        if option(launch, "standalone"):
            reading.find("standalone-on-several", nodes=nodes)
            return
        for name in ("master_addr", "master_port", "node_rank"):
            if backend != "static" and option(launch, name) is not None:
                reading.find("static-only", name=f"--{name.replace('_', '-')}", backend=backend)
        if backend == "static" and rank is None:
            cure = "give `--node-rank`, a different one on each machine, or `--rdzv-backend=c10d`"
            reading.find("rendezvous-missing", nodes=nodes, cure=cure)
            return
        if endpoint is None and (address is None or backend != "static"):
            reading.find("rendezvous-missing", nodes=nodes, cure="give `--rdzv-endpoint=HOST:PORT` of machine 0")
        elif str(endpoint or address).rsplit(":", 1)[0] in ALONE:
            reading.find("local-master", address=str(endpoint or address), nodes=nodes)
    elif address is not None and str(address) in ALONE:
        reading.find("local-master", address=str(address), nodes=nodes)
    names = getattr(rank, "names", ())
    is_direct = bool(launch.prefix) or not inside_srun  # the batch script's own shell puts the value in
    outside = [name for name in names if name.startswith(OUTSIDE) or (name in RANKS and is_direct)]
    if outside and backend == "static":
        reading.find("rank-outside-srun", name=outside[0].removeprefix(OUTSIDE))
    if launch.tool == "accelerate launch" and rank is None:
        rank = "0 (accelerate's default)"  # or one file's machine_rank, the same on all machines
    if rank is not None and not isinstance(rank, Open) and inside_srun and backend == "static":
        reading.find("constant-rank", rank=rank, nodes=nodes)


def logs(reading: Reading, launch: Launch) -> None:
    """Where torchrun puts what the ranks print."""
    kept = {name: option(launch, *names) for name, names in KEEPS.items()}
    folder = option(launch, "log_dir")
    on = {name: value for name, value in kept.items() if value not in (None, "0", "")}
    if folder is not None and not on:
        reading.find("log-dir-empty")
    elif folder is None and "redirects" in on and not isinstance(on["redirects"], Open):
        reading.find("logs-in-tmp", value=on["redirects"])


def in_job(
    reading: Reading,
    launch: Launch,
    processes: int | None,
    environment: dict[str, str],
    started_by: bool,
    text: str,
) -> None:
    """The launcher against what the job asks for, and ports and threads."""
    tasks, gpus, cores = reading.fact("tasks_per_node"), reading.fact("gpus_per_node"), reading.fact("cores")
    if tasks and tasks > 1 and processes and processes > 1 and started_by:
        reading.find("tasks-times-processes", tasks=tasks, processes=processes)
    elif processes and gpus and processes != gpus:
        reading.find("gpus-not-processes", processes=processes, gpus=gpus)
    threads = number(environment.get("OMP_NUM_THREADS"))
    if isinstance(threads, int) and processes and cores and threads * processes > cores * (tasks or 1):
        reading.find("omp-too-many", processes=processes, threads=threads, cores=cores * (tasks or 1))
    if (
        cores
        and started_by
        and "SRUN_CPUS_PER_TASK" not in text
        and not re.search(r"srun\b[^\n]*(--cpus-per-task|-c[ =]?\$?\{?[\dA-Z])", text.replace("\\\n", " "))
    ):
        reading.find("srun-cores", cores=cores)
    port = number(option(launch, "master_port", "main_process_port"))
    if isinstance(port, int) and not (port == 0 or 1024 <= port <= 65535):
        reading.find("privileged-port", port=port)
