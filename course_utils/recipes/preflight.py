"""Look at the machines before training: is everybody there, alike, awake, and as fast as planned?

    torchrun --nproc-per-node=8 preflight.py --gpus=8 --output_dir=runs/finetune
    torchrun --nproc-per-node=8 preflight.py --gpus=8 --output_dir=runs/finetune --mode=stop --network=infiniband

The launch scripts start it before the program, from a copy of this file: it needs torch and nothing of the course.
Every rank writes down what it sees; rank 0 compares, writes preflight.json into the output folder and says in one
sentence each what is wrong, and on which machine. Exit code: 0, or 3 with ``--mode=stop`` where something is wrong.

Bandwidth is NCCL's "bus bandwidth" (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md): the bytes
per second that each GPU sends in an all-reduce of S bytes over n ranks, 2 (n - 1) / n x S / time.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "trl", "peft")
SIZES = {"cuda": (2**20, 2**24, 2**28), "cpu": (2**16, 2**20, 2**22)}  # bytes of an all-reduce
SLOW = {"cuda": 1.3, "cpu": 3.0}  # times the others' seconds for the same work; processor cores are shared
SKEW = 5.0  # seconds between two machines' clocks
ENOUGH = 0.5  # of the bandwidth that the plan assumed
FAST_NETWORKS = ("infiniband", "efa", "roce")


def read_options(words=None):
    """Its own words; of those after ``--program``, which are the program's, only a later ``--output_dir`` counts."""
    words = sys.argv[1:] if words is None else list(words)
    end = words.index("--program") if "--program" in words else len(words)
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(description=__doc__, **shape)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that each machine should show; 0: not asked")
    parser.add_argument("--output_dir", default=".", help="where preflight.json goes, and the checkpoints later")
    parser.add_argument("--disk", type=float, default=0, help="free space needed there [GB]")
    parser.add_argument("--network", default="any", help="between machines: any, ethernet, infiniband, efa, roce")
    parser.add_argument("--expect", type=float, default=0, help="bus bandwidth that the plan assumes [GB/s]; 0: none")
    parser.add_argument(
        "--mode", choices=("warn", "stop"), default="warn", help="stop: exit code 3 if anything is wrong"
    )
    parser.add_argument("--timeout", type=float, default=300, help="longest wait for the other ranks [s]")
    options = parser.parse_args(words[:end])
    folder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    folder.add_argument("--output_dir", default=options.output_dir)
    options.output_dir = folder.parse_known_args(words[end + 1 :])[0].output_dir
    return options


def versions():
    """Version of each package that is installed, of Python, CUDA and NCCL."""
    import torch

    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def free_disk(folder):
    """GB free where ``folder`` is or will be, and None if it cannot be written to."""
    place = Path(folder).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 1e9 if os.access(place, os.W_OK) else None


def seconds_of_work(device):
    """The best of five times for the same matrix products, on this rank's GPU or core alone."""
    import torch

    size = 4096 if device.type == "cuda" else 256
    matrix = torch.ones(size, size, device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32)
    return min(timed(lambda: [matrix @ matrix for _ in range(10)], device) for _ in range(6))


def timed(work, device):
    import torch

    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def bus_bandwidth(device, world):
    """``{bytes: GB/s}`` of an all-reduce, the median of five after a warm-up."""
    import torch
    import torch.distributed as dist

    found = {}
    for size in SIZES[device.type]:
        numbers = torch.ones(size // 4, device=device)
        times = [timed(lambda numbers=numbers: dist.all_reduce(numbers), device) for _ in range(7)][2:]
        found[size] = 2 * (world - 1) / world * size / statistics.median(times) / 1e9
    return found


def transport(log):
    """How NCCL talks to other machines, from the text of its own log (NCCL_DEBUG=INFO).

    Returns:
        ``{"network": "IB" | "Socket" | plugin's name | None, "devices": [...]}``; None: the log does not say.
    """
    network = [line.strip() for line in re.findall(r"NCCL INFO Using network (.+)", log)]
    if not network:  # NCCL before 2.5 named only what it would use
        network = [name for name in ("IB", "Socket") if re.search(rf"NET/{name} ?: Using \[0\]", log)][:1]
    devices = []
    for kind, listed in re.findall(r"NCCL INFO NET/(\w+) ?: Using (.+)", log):
        if network and kind == network[-1]:
            # Each word is [number]name:rest; IB's rest is the port and /IB or /RoCE, a socket's is its address.
            devices += re.findall(r"\[\d+\]([^\s:]+:\d+/\w+|[^\s:]+)", listed.split(";")[0])
    return {"network": network[-1] if network else None, "devices": list(dict.fromkeys(devices))}


def missing_ranks(store, world, timeout):
    """Ranks that did not report within ``timeout`` seconds."""
    try:
        store.wait([f"here/{rank}" for rank in range(world)], timedelta(seconds=timeout))
    except Exception:  # a DistStoreError or RuntimeError, depending on the version
        return [rank for rank in range(world) if not store.check([f"here/{rank}"])]
    return []


def problems(facts, options):
    """One sentence for everything that is wrong, naming the machine.

    Args:
        facts: of each rank in order, as ``look`` returns them.
    """
    found = []
    hosts = [fact["host"] for fact in facts]
    for name in sorted({name for fact in facts for name in fact["versions"]}):
        values = [fact["versions"].get(name, "none") for fact in facts]
        usual = statistics.mode(values)
        odd = {host: value for host, value in zip(hosts, values, strict=True) if value != usual}
        found += [f"{host} has {name} {value}, the others {usual}" for host, value in odd.items()]
    middle = statistics.median_low(fact["clock"] for fact in facts)
    late = {fact["host"]: fact["clock"] - middle for fact in facts if abs(fact["clock"] - middle) > SKEW}
    found += [f"the clock of {host} is {lag:+.0f} s off" for host, lag in late.items()]
    for host in dict.fromkeys(hosts):
        found += of_machine(next(fact for fact in facts if fact["host"] == host), options)
    usual = statistics.median_low(fact["work"] for fact in facts)
    for rank, fact in enumerate(facts):
        if fact["work"] > SLOW[fact["device"]] * usual:
            found.append(
                f"rank {rank} on {fact['host']} is slow: {fact['work'] / usual:.1f} times the others' time for the "
                "same matrix products"
            )
    fastest = facts[0]["bandwidth"][str(max(map(int, facts[0]["bandwidth"])))]
    if options.expect and fastest < ENOUGH * options.expect:
        found.append(
            f"all-reduce reaches {fastest:.1f} GB/s from {hosts[0]} to {hosts[-1]}, and the plan assumes "
            f"{options.expect:g}"
        )
    return found


def of_machine(fact, options):
    host, found = fact["host"], []
    if options.gpus and fact["gpus"] is not None and fact["gpus"] != options.gpus:
        found.append(f"{host} shows {fact['gpus']} GPUs, {options.gpus} were asked for")
    if fact["disk"] is None:
        found.append(f"{host} cannot write to {options.output_dir}")
    elif fact["disk"] < options.disk:
        found.append(
            f"{host} has {fact['disk']:.0f} GB free for {options.output_dir}, the checkpoints need {options.disk:.0f}"
        )
    if options.network in FAST_NETWORKS and fact["transport"]["network"] == "Socket":
        devices = ", ".join(fact["transport"]["devices"]) or "an unnamed interface"
        found.append(f"{host} talks over sockets ({devices}), {options.network} was asked for")
    return found


def look(options, device, world, log):
    """What this rank sees; JSON keeps no whole numbers as keys, so sizes are text."""
    import torch
    import torch.distributed as dist

    work = seconds_of_work(device)
    dist.barrier()
    clock = time.time()  # all ranks leave a barrier at nearly the same moment
    bandwidth = bus_bandwidth(device, world)
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "clock": clock,
        "disk": free_disk(options.output_dir),
        "gpus": torch.cuda.device_count() if device.type == "cuda" else None,
        "device": device.type,
        "work": work,
        "bandwidth": {str(size): speed for size, speed in bandwidth.items()},
        "transport": transport(log.read_text(errors="replace") if log.exists() else ""),
    }


def report(facts, options, wrong):
    """preflight.json, whole or not at all; a folder that cannot be written to is among the problems already."""
    text = json.dumps({"ranks": facts, "problems": wrong, "asked": vars(options)}, indent=1)
    folder = Path(options.output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".preflight-{os.getpid()}"
        fresh.write_text(text)
        fresh.replace(folder / "preflight.json")
    except OSError as error:
        print(f"preflight: {error}", file=sys.stderr)


def main(words=None):
    options = read_options(words)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "nccl.log")
        # NCCL reads these when it starts; the training that follows is another process.
        os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET", "NCCL_DEBUG_FILE": str(log)}
        return check(options, log)


def check(options, log):
    import torch
    import torch.distributed as dist

    local, seen = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if options.gpus and seen <= local:  # no collective could start
        print(f"preflight: {socket.gethostname()} shows {seen} GPUs, {options.gpus} were asked for", file=sys.stderr)
        return 3
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true"
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    wait = timedelta(seconds=options.timeout)
    base, rank, world = next(dist.rendezvous("env://", timeout=wait))
    store = dist.PrefixStore("preflight", base)
    store.set(f"here/{rank}", socket.gethostname())
    if missing := missing_ranks(store, world, options.timeout):
        each = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        machines = ", ".join(map(str, sorted({one // each for one in missing})))
        print(f"preflight: no word from ranks {missing} of machine {machines}", file=sys.stderr)
        return 3 if options.mode == "stop" else 0
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world, timeout=wait)
    try:
        store.set(f"fact/{rank}", json.dumps(look(options, device, world, log)))
        if rank == 0:
            facts = [json.loads(store.get(f"fact/{other}")) for other in range(world)]
            wrong = problems(facts, options)
            report(facts, options, wrong)
            say(facts, wrong)
            store.set("wrong", str(len(wrong)))
        number = int(store.get("wrong"))
        dist.barrier()  # the store goes with rank 0's machine
    finally:
        dist.destroy_process_group()
    return 3 if number and options.mode == "stop" else 0


def say(facts, wrong):
    speeds = ", ".join(f"{speed:.2f} GB/s of {int(size):,} bytes" for size, speed in facts[0]["bandwidth"].items())
    hosts = len({fact["host"] for fact in facts})
    network = facts[0]["transport"]["network"] or "unknown"
    print(f"preflight: {len(facts)} ranks on {hosts} machines; all-reduce {speeds}; network: {network}", flush=True)
    for sentence in wrong:
        print(f"preflight: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
