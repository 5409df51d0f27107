"""Look at the machines before training: is everybody there, alike, awake, and as fast as planned?

    torchrun --nproc-per-node=8 preflight.py --gpus=8 --output_dir=runs/finetune
    torchrun --nproc-per-node=8 preflight.py --gpus=8 --output_dir=runs/finetune --mode=stop --network=infiniband

The launch scripts start it before the program, from a copy in one file: that needs torch and nothing of the course.
Every rank writes down what it sees; rank 0 compares, writes preflight.json into the output folder and says in one
sentence each what is wrong, and on which machine. Exit code: 0, or 3 with ``--mode=stop`` where something is wrong.

Bandwidth is NCCL's "bus bandwidth" (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md): the bytes
per second that each GPU sends in an all-reduce of S bytes over n ranks, 2 (n - 1) / n x S / time. An all-reduce is as
fast as its slowest link, so between machines each link is measured too: every machine exchanges S bytes with the next
one, and the last with the first, each GPU with its counterpart. A machine whose links are both slow has a slow link.
With two machines there is one link, and no telling whose end of it is slow.
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

from course_utils.recipes.preflight_verdict import problems

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "trl", "peft")
SIZES = {"cuda": (2**20, 2**24, 2**28), "cpu": (2**16, 2**20, 2**22)}  # bytes of an all-reduce


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


def rounds(machines):
    """Pairs of neighbours on a ring of machines, in rounds: in each round every machine has one partner at most."""
    if machines == 2:
        return [[(0, 1)]]
    ring = [(number, (number + 1) % machines) for number in range(machines)]
    even = machines - machines % 2  # the last pair of an odd ring meets both the first machine and the last but one
    return [part for part in (ring[0:even:2], ring[1:even:2], ring[even:]) if part]


def links(device, rank, machine, each, machines):
    """``{machine: GB/s}``: what this rank sends to its counterpart on each neighbour, while it receives as much.

    Args:
        each: ranks on a machine; rank i of one machine talks to rank i of another, all at the same time.
    """
    import torch
    import torch.distributed as dist

    found = {}
    if machines < 2:
        return found
    size = SIZES[device.type][-1]
    sent, received = (torch.ones(size // 4, device=device) for _ in range(2))
    for pairs in rounds(machines):
        partner = next((a + b - machine for a, b in pairs if machine in (a, b)), None)
        dist.barrier()
        if partner is not None:
            peer = rank + (partner - machine) * each
            times = [timed(lambda peer=peer: exchange(sent, received, peer), device) for _ in range(7)][2:]
            found[partner] = size / statistics.median(times) / 1e9
    return found


def exchange(sent, received, peer):
    import torch.distributed as dist

    both = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
    for work in dist.batch_isend_irecv(both):
        work.wait()


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


def look(options, device, world, log):
    """What this rank sees; JSON keeps no whole numbers as keys, so sizes are text."""
    import torch
    import torch.distributed as dist

    work = seconds_of_work(device)
    dist.barrier()
    clock = time.time()  # all ranks leave a barrier at nearly the same moment
    bandwidth = bus_bandwidth(device, world)
    each = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    machine = int(os.environ.get("GROUP_RANK", 0))  # torchrun's number of it; two machines may have the same name
    between = links(device, dist.get_rank(), machine, each, world // each)
    return {
        "host": socket.gethostname(),
        "machine": machine,
        "versions": versions(),
        "clock": clock,
        "disk": free_disk(options.output_dir),
        "gpus": torch.cuda.device_count() if device.type == "cuda" else None,
        "device": device.type,
        "work": work,
        "bandwidth": {str(size): speed for size, speed in bandwidth.items()},
        "links": {str(other): speed for other, speed in between.items()},
        "transport": transport(log.read_text(errors="replace") if log.exists() else ""),
    }


def report(facts, options, wrong):
    """preflight.json, whole or not at all; a folder that cannot be written to is among the problems already."""
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = json.dumps({"at": began, "ranks": facts, "problems": wrong, "asked": vars(options)}, indent=1)
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
    machines = len({(fact["machine"], fact["host"]) for fact in facts})
    network = facts[0]["transport"]["network"] or "unknown"
    between = sorted(speed for fact in facts for speed in fact["links"].values())
    slowest = f"; between machines {between[0]:.2f} to {between[-1]:.2f} GB/s" if between else ""
    print(f"preflight: {len(facts)} ranks on {machines} machines; all-reduce {speeds}{slowest}; network: {network}")
    sys.stdout.flush()
    for sentence in wrong:
        print(f"preflight: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
