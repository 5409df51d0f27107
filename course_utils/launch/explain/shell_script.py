"""A shell or sbatch script: every launcher it starts, with its processes, its meeting point and its program."""

from __future__ import annotations

import re
from typing import Any

from course_utils.launch.explain import accelerate_yaml, job_script, launchers, shell, training_arguments
from course_utils.launch.explain.launchers import Launch, option
from course_utils.launch.explain.reading import Open, Reading, number
from course_utils.launch.explain.shell import Command

ALONE = ("localhost", "127.0.0.1", "::1")
RANKS = ("SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID")
OUTSIDE = "outside srun: "
MOST_DEPTH = 4
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
    _variables(reading, script.variables)
    starts = list(_starts(script.commands, script.variables, 0, ""))
    found = []
    ports: dict[str, Command] = {}
    for place, (command, launch, environment, around) in enumerate(starts, 1):
        reading.run = str(place) if len(starts) > 1 else ""
        _launch(reading, launch, command, environment, is_job, around, text)
        port = option(launch, "master_port", "main_process_port")
        if command.background and port and not isinstance(port, Open):
            if str(port) in ports:
                reading.find("same-port", port=port)
            ports[str(port)] = command
        found.append(launch)
    reading.run = ""
    if not starts:
        reading.set("launcher", "none found", "no torchrun, accelerate launch or deepspeed in this file", "shell")
    return found


def _variables(reading: Reading, variables: dict[str, str]) -> None:
    for name in ("OMP_NUM_THREADS", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"):
        if name in variables:
            reading.set(f"${name}", variables[name], _open(variables[name]), "shell")


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
    environment: dict[str, str],
    is_job: bool,
    around: str,
    text: str,
) -> None:
    tool = launch.tool
    if "torch" in tool:  # torchrun takes what is not given from PET_ variables
        for name in ("nnodes", "nproc_per_node", "node_rank", "master_addr", "master_port"):
            if f"PET_{name.upper()}" in environment:
                launch.options.setdefault(name, environment[f"PET_{name.upper()}"])
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
    nodes, processes = _processes(reading, launch, command, is_job)
    started_by = "srun" in around.split() or any(word.startswith("mpirun") for word in around.split())
    if nodes and nodes > 1:
        _meeting(reading, launch, nodes, is_job and "srun" in around.split())
        if is_job and not started_by and not re.search(r"\b(srun|pdsh|ssh|mpirun|clush)\b", _code(text)):
            reading.find("one-machine-started", nodes=nodes)
    _job(reading, launch, processes, environment, started_by, text)
    _program(reading, launch)


def _code(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _processes(reading: Reading, launch: Launch, command: Command, is_job: bool) -> tuple[int | None, int | None]:
    """Machines and processes on each; facts."""
    if launch.tool == "accelerate launch":
        nodes, world = number(option(launch, "num_machines")), number(option(launch, "num_processes"))
        if isinstance(world, int):
            reading.know("world_size", world, "--num_processes")
        if nodes and world and not isinstance(world, Open) and not isinstance(nodes, Open) and world % max(nodes, 1):
            reading.find("processes-round-down", world=world, machines=nodes, each=world // nodes)
        if isinstance(nodes, int):
            reading.know("nodes", nodes, "--num_machines")
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


def _meeting(reading: Reading, launch: Launch, nodes: int, inside_srun: bool) -> None:
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
    if outside and (backend == "static" or "torch" not in launch.tool):
        reading.find("rank-outside-srun", name=outside[0].removeprefix(OUTSIDE))
    if rank is not None and not isinstance(rank, Open) and inside_srun and backend == "static":
        reading.find("constant-rank", rank=rank, nodes=nodes)


def _job(
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


def _program(reading: Reading, launch: Launch) -> None:
    """The program's arguments: as TrainingArguments reads them, if they are for it."""
    if launch.tool != "deepspeed":
        for word in launch.arguments:
            text = str(word)
            if ("$$" in text or "${local_rank}" in text) and not isinstance(word, Open):
                reading.find("dollar-expanded", tool=launch.tool, name=text)
    values = training_arguments.words(launch.arguments)
    if "trust_remote_code" in values and str(values["trust_remote_code"]).lower() in ("true", "1"):
        reading.find("remote-code")
    values.pop("trust_remote_code", None)
    if training_arguments.is_trainer(values):
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
