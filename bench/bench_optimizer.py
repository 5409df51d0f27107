"""Step times of six AdamW versions on the parameters of lesson 01's classifier, as ratios to torch's fused one.

    python bench/bench_optimizer.py                 # all six; compiling takes about 20 s; writes optimizer.json
    python bench/bench_optimizer.py --rounds 500
    python bench/bench_optimizer.py --device cuda   # prints; the file holds a CPU's numbers

Only `optimizer.step()` is timed. All versions take turns in every round, and the median counts. The goal of the
compiled version is <= 1.1 x fused; with --check a miss ends with exit code 1. Then each version takes 200 steps in
float64 on the same gradients, and the largest difference from `torch.optim.AdamW` is noted.

bench/results/optimizer.json is written only when all six versions were there, on a CPU; lesson 01 and its deck show it.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import record
import torch
from torch import nn

from course_utils.models import load_classifier
from course_utils.recipes.command_line import Parser, file_to_write, from_to
from course_utils.training.optim import AdamW, CompiledAdamW, ForeachAdamW, compiler_available
from course_utils.training.timing import interleaved_medians

GOAL = 1.1  # compiled / fused


def make_optimizer(cls, device, **options):
    """An optimizer over its own copy of the parameters, with gradients in place."""
    generator = torch.Generator().manual_seed(0)
    params = list(load_classifier(num_labels=10).to(device).parameters())
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(device)
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return cls(groups, lr=1e-3, **options)


def largest_difference(cls, steps=200):
    """Over all weights, after ``steps`` steps in float64 on the gradients that ``torch.optim.AdamW`` gets too."""
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8, 5), (7,), (3, 4))]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizers = [c(p, lr=1e-2, weight_decay=0.1) for c, p in ((cls, ours), (torch.optim.AdamW, theirs))]
    for _ in range(steps):
        for scale, p, q in zip((10.0, 1.0, 0.01), ours, theirs, strict=True):
            p.grad = scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    return max((p - q).abs().max().item() for p, q in zip(ours, theirs, strict=True))


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=from_to(1), default=200, help="measured steps of each version (default: 200)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--check", action="store_true", help=f"exit 1 unless compiled <= {GOAL} x fused")
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "optimizer.json")
    settings = parser.parse_args()

    theirs, device = torch.optim.AdamW, settings.device
    optimizers = {
        "torch for-loop": make_optimizer(theirs, device, foreach=False),
        "torch foreach": make_optimizer(theirs, device, foreach=True),
        "torch fused": make_optimizer(theirs, device, fused=True),
        "own readable": make_optimizer(AdamW, device),
        "own foreach": make_optimizer(ForeachAdamW, device),
    }
    if compiler_available():
        optimizers["own compiled"] = make_optimizer(CompiledAdamW, device)
    else:
        print("own compiled: skipped, torch.compile needs a C++ compiler (g++) and none was found")

    def timed_step(optimizer):
        optimizer.step()
        if device != "cpu":
            torch.accelerator.synchronize()

    steps = {name: (lambda o=optimizer: timed_step(o)) for name, optimizer in optimizers.items()}
    medians = interleaved_medians(steps, settings.rounds)
    size = sum(p.numel() for group in optimizers["torch fused"].param_groups for p in group["params"])
    where = (
        torch.cuda.get_device_name() if device != "cpu" else f"{record.processor()}, {torch.get_num_threads()} threads"
    )
    print(f"optimizer.step(), {size:,} parameters, median of {settings.rounds} interleaved rounds, {where}")
    print(f"{'version':16}{'ms':>8}{'x fused':>10}")
    for name, seconds in medians.items():
        print(f"{name:16}{seconds * 1e3:8.2f}{seconds / medians['torch fused']:10.2f}")
    differences = {}
    for name, cls in {"own readable": AdamW, "own foreach": ForeachAdamW, "own compiled": CompiledAdamW}.items():
        if name in medians:
            differences[name] = largest_difference(cls)
            print(f"{name}: largest difference from torch.optim.AdamW, float64, 200 steps: {differences[name]:.1e}")
    if "own compiled" in medians and device == "cpu":
        report = {"machine": record.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        report |= {"parameters": size, "rounds": settings.rounds, "fused_ms": round(medians["torch fused"] * 1e3, 3)}
        report["ratio_to_fused"] = {name: round(s / medians["torch fused"], 2) for name, s in medians.items()}
        report["largest_difference_float64"] = differences
        record.write(settings.out, report)
    if settings.check and medians.get("own compiled", 0) > GOAL * medians["torch fused"]:
        sys.exit(f"own compiled takes more than {GOAL} x torch fused")


if __name__ == "__main__":
    main()
