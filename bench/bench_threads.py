"""How a waiting OpenMP thread should wait: the step of lesson 01's model, alone and beside a second such program.

    python bench/bench_threads.py     # about four minutes on two cores; writes bench/results/threads.json

`GOMP_SPINCOUNT` says how often GNU's runtime looks for new work before it sleeps: 0 is OMP_WAIT_POLICY=PASSIVE, 300,000
is what it does when nothing is set. Every number is a ratio to PASSIVE with one thread, measured in the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import record

from course_utils.recipes.command_line import Parser, file_to_write

SPINS = (0, 500, 1_000, 5_000)
STEPS, ROUNDS = 40, 3


def step_seconds() -> float:
    """Median time of a step of lesson 01's classifier on 32 rows of 20 tokens."""
    from time import perf_counter

    import torch

    from course_utils.models import load_classifier

    torch.manual_seed(0)
    model = load_classifier(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids, labels = torch.randint(5, 8000, (32, 20)), torch.randint(0, 10, (32,))
    times = []
    for _ in range(STEPS):
        began = perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(perf_counter() - began)
    return median(times[5:])


def start(threads: int, spin: int) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": str(spin)}
    command = [sys.executable, __file__, "--child"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def seconds_of(*children: subprocess.Popen) -> float:
    return max(float(child.communicate()[0].splitlines()[-1]) for child in children)


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", action="store_true", help="measure in this process and print the seconds of a step")
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "threads.json")
    arguments = parser.parse_args()
    if arguments.child:
        print(step_seconds())
        return
    cores = os.cpu_count() or 1
    settings = [(1, 0), *((cores, spin) for spin in SPINS)]
    alone, beside = {setting: [] for setting in settings}, {setting: [] for setting in settings}
    for _ in range(ROUNDS):  # taking turns: a busy moment hits all of them
        for setting in settings:
            alone[setting].append(seconds_of(start(*setting)))
            beside[setting].append(seconds_of(start(*setting), start(*setting)))
    unit = median(alone[1, 0])
    rows = [
        {
            "threads": threads,
            "spin": spin,
            "alone": round(median(alone[threads, spin]) / unit, 2),
            "beside_another": round(median(beside[threads, spin]) / unit, 2),
        }
        for threads, spin in settings
    ]
    for row in rows:
        print(json.dumps(row))
    record.write(arguments.out, {"cores": cores, "unit": "one thread, alone", "rows": rows})


if __name__ == "__main__":
    main()
