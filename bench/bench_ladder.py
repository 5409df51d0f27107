"""The ladder of lesson 09, from a naive training step to a fast one, and TRL's SFTTrainer at its top.

    python bench/bench_ladder.py                    # 3 to 4 minutes on two idle cores; writes bench/results/ladder.json
    python bench/bench_ladder.py --rounds 9 --out /tmp/try.json
    python bench/bench_ladder.py --device cuda      # a model of about 1 B; writes bench/results/ladder_cuda.json

Every rung trains the same model on the same documents in as many optimizer steps. The rungs take turns (on a GPU, where
they do not fit side by side, they run one after the other); round i of one is compared with round i of the naive rung,
and the median of the ratios counts. TRL packs, logs its entropy and accuracy at every step (its own way), and runs with
bf16 and without checkpointing, like the rung it stands against. Two packings are measured: `bfd`, its default, keeps
documents apart; `wrapped` cuts and joins them and lets them see each other. A loader worker fills its queue of two
batches while other rungs have their turn, which flatters its rung by what two batches cost to make: milliseconds.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import record
import torch
from trl_climb import STEPS, TrlClimb

from course_utils import teach
from course_utils.data import load_language_modelling
from course_utils.data.batches import IGNORED
from course_utils.models import load_causal_lm, load_tokenizer
from course_utils.models.configs import shape_of_config
from course_utils.models.flops import training_flops_per_token
from course_utils.recipes.command_line import Parser, file_to_write, from_to
from course_utils.training.ladder import GPU_LADDER, LADDER, Climb, interleaved, rate, speedup
from course_utils.training.optim import compiler_available

# Model, row length, documents of an optimizer step.
SIZES = {
    "cpu": (
        {"hidden_size": 384, "intermediate_size": 1056, "num_hidden_layers": 6, "num_attention_heads": 6}
        | {"num_key_value_heads": 3, "head_dim": 64},
        128,
        16,
    ),
    "cuda": (
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 16}
        | {"num_key_value_heads": 8, "head_dim": 128},
        512,
        192,
    ),
}
TRL_PACKINGS = ("bfd", "wrapped")


def make_model(tokenizer, sizes, row_length):
    torch.manual_seed(0)
    return load_causal_lm(vocab_size=len(tokenizer), max_position_embeddings=max(512, row_length), **sizes)


def not_run(rung, device):
    """Why a rung cannot run here; empty if it can."""
    if rung in GPU_LADDER and device == "cpu":
        return "not run: no GPU"
    if rung.liger:
        try:
            import liger_kernel.transformers  # noqa: F401
        except ImportError:
            return "not run: liger-kernel is not installed"
    return ""


def matmul_peak(device, dtype, size, repeats=5):
    """The best FLOP/s of a square matrix multiplication: what this machine can reach, measured."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def measure(makers, rounds, device):
    """Rounds of each, the climbs that are still there, and the seconds of each one's first round.

    On a CPU all rungs take turns. On a GPU models of about 1 B with their optimizers do not fit side by side: the rungs
    run one after the other, and round i of two of them still trains on the same documents.
    """
    first_seconds, found = {}, {}

    def first(name, climb):
        began = time.perf_counter()
        climb.round()
        first_seconds[name] = round(time.perf_counter() - began, 1)
        print(f"first round of {name}: {first_seconds[name]} s", file=sys.stderr)

    if device == "cpu":
        climbs = {name: make() for name, make in makers.items()}
        for name, climb in climbs.items():
            first(name, climb)
        return interleaved(list(climbs.values()), rounds, warmup=1), climbs, first_seconds
    for name, make in makers.items():
        climb = make()
        first(name, climb)
        found |= interleaved([climb], rounds, warmup=1)
        del climb
        gc.collect()
        torch.cuda.empty_cache()
    return found, {}, first_seconds


def parts_of_a_step(climb, batches):
    """Median seconds of each part of the fastest rung's step."""
    found = {name: [] for name in ("forward", "backward", "clip", "optimizer")}

    def lap(name, began):
        if climb.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        found[name].append(now - began)
        return now

    for batch in batches:
        batch = {name: value.to(climb.device) for name, value in batch.items()}
        now = time.perf_counter()
        with torch.autocast(climb.device, dtype=torch.bfloat16, enabled=climb.rung.bf16):
            loss = climb.model(**batch).loss
        now = lap("forward", now)
        loss.backward()
        now = lap("backward", now)
        torch.nn.utils.clip_grad_norm_(climb.weights, 1.0, foreach=True)
        now = lap("clip", now)
        climb.optimizer.step()
        climb.optimizer.zero_grad()
        lap("optimizer", now)
    return {name: statistics.median(values) for name, values in found.items()}


def rounded(interval):
    return {"ratio": round(interval.value, 2), "low": round(interval.low, 2), "high": round(interval.high, 2)}


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=from_to(1), default=5, help="measured rounds of each rung (default: 5)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--width", type=from_to(64), help="another hidden size: heads of 64, MLP 2.75 times as wide (CPU)"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it takes a minute)")
    parser.add_argument("--out", type=file_to_write)
    settings = parser.parse_args()
    name = "ladder.json" if settings.device == "cpu" else "ladder_cuda.json"
    out = settings.out or Path(__file__).parent / "results" / name

    warnings.filterwarnings("ignore")
    teach.start()
    torch.set_num_threads(os.cpu_count() or 1)
    sizes, row_length, per_step = SIZES[settings.device]
    if settings.width:
        heads = settings.width // 64
        sizes = sizes | {"hidden_size": settings.width, "intermediate_size": settings.width * 11 // 4}
        sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    tokenizer, warmup = load_tokenizer(), 2
    needed = per_step * STEPS * (settings.rounds + warmup + 2)
    texts = load_language_modelling()["train"].shuffle(seed=0)["text"][:needed]
    model = make_model(tokenizer, sizes, row_length)
    shape = shape_of_config(model.config)
    machine = torch.cuda.get_device_name() if settings.device == "cuda" else record.processor()
    load = round(os.getloadavg()[0], 1)
    print(f"{machine}, {torch.get_num_threads()} threads, load {load}, torch {torch.__version__}, "
          f"{model.num_parameters():,} parameters")  # fmt: skip

    rungs = [*LADDER, *GPU_LADDER]
    reasons = {rung.name: not_run(rung, settings.device) for rung in rungs}
    if settings.no_compile or not compiler_available():
        why = "not run: --no-compile" if settings.no_compile else "not run: no C++ compiler"
        rungs = [rung if rung.name == "torch.compile" else replace(rung, compiled=False) for rung in rungs]
        reasons["torch.compile"] = why
    options = {"row_length": row_length, "per_step": per_step, "steps": STEPS, "device": settings.device}

    def build(rung):
        return Climb(rung, texts, tokenizer, make_model(tokenizer, sizes, row_length), **options)

    def build_trl(packing):
        model = make_model(tokenizer, sizes, row_length)
        return TrlClimb(packing, texts, tokenizer, model, row_length, rows, settings.device, folder)

    makers = {rung.name: partial(build, rung) for rung in rungs if not reasons[rung.name]}
    rows = Climb(rungs[4], texts, tokenizer, make_model(tokenizer, {}, row_length), **options).rows_per_step()
    with tempfile.TemporaryDirectory() as folder:
        makers |= {TrlClimb.name_of(packing): partial(build_trl, packing) for packing in TRL_PACKINGS}
        found, climbs, first_seconds = measure(makers, settings.rounds, settings.device)
        compile_seconds = first_seconds.get("torch.compile")
    base = found["naive"]
    name = max((rung.name for rung in rungs if not reasons[rung.name]), key=lambda name: rate(found[name]))
    fastest = climbs.get(name) or makers[name]()  # on a GPU they do not all fit
    results, before = [], base
    for rung in rungs:
        row = {"name": rung.name}
        if reasons[rung.name]:
            row["not_run"] = reasons[rung.name]
        else:
            one = found[rung.name]
            computed = sum(r.computed for r in one) / sum(r.useful for r in one)
            row |= rounded(speedup(one, base)) | {"useful_per_second": round(rate(one))}
            row |= {"computed_per_useful": round(computed, 2), "cpu": rounded(speedup(one, base, "cpu"))}
            row["against_the_rung_below"] = rounded(speedup(one, before))
            before = one
        results.append(row)
        print(json.dumps(row))
    against = []
    for one in map(TrlClimb.name_of, TRL_PACKINGS):
        rounds = found[one]
        row = {"name": one, "rows": rows}
        row |= rounded(speedup(rounds, base))
        row |= {"useful_per_second": round(rate(rounds)), "ours": rounded(speedup(found[fastest.rung.name], rounds))}
        against.append(row)
        print(json.dumps(row))

    batches = fastest.next_batches(6)
    parts = parts_of_a_step(fastest, batches)
    positions = statistics.median(batch["input_ids"].numel() for batch in batches)
    useful = statistics.median(int(batch["labels"][:, 1:].ne(IGNORED).sum()) for batch in batches)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    size = 1024 if settings.device == "cpu" else 8192
    peaks = {name: matmul_peak(settings.device, dtype, size) for name, dtype in kinds.items()}
    seconds, peak = sum(parts.values()), peaks["bf16" if fastest.rung.bf16 else "fp32"]
    per_token = training_flops_per_token(shape, row_length)
    step = {
        "rung": fastest.rung.name,
        "milliseconds": {name: round(1e3 * value, 1) for name, value in parts.items()},
        "flops_per_token": round(per_token),
        "share_of_peak": round(per_token * positions / seconds / peak, 3),
        "mfu_useful": round(per_token * useful / seconds / peak, 3),
    }
    print(json.dumps(step))
    print("the matrix multiplications alone would take", f"{per_token * positions / peak / seconds:.0%} of the step")
    report = {
        "processor": machine,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": load,
        "torch": torch.__version__,
        "model": sizes | {"vocab_size": len(tokenizer), "parameters": model.num_parameters()},
        "step": f"{per_step} documents, rows of {row_length} tokens",
        "rounds": settings.rounds,
        "rungs": results,
        "compile_seconds": compile_seconds,
        "trl": against,
        "peak_gflops": {name: round(value / 1e9, 1) for name, value in peaks.items()},
        "fastest": step,
    }
    record.write(out, report)


if __name__ == "__main__":
    main()
