"""How far the planner is from the truth, what other estimators say, and how long planning and rendering take.

    python bench/bench_planner.py
    python bench/bench_planner.py --check        # exit 1 where an error is above its goal

The truth is torch's MemTracker on real models without memory (FakeTensorMode), FSDPMemTracker with ranks that do not
exist, as in lesson 15. Goals: model states within 1 %, everything else at the peak within 10 %.
"""

import os
import statistics
import sys
import time
import warnings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed says that it found no GPU

from transformers import GPT2Config, LlamaConfig, Qwen3Config

from course_utils.launch.files import write as files
from course_utils.launch.planner.compare import compare_estimators, comparison_table
from course_utils.launch.planner.layouts import layouts
from course_utils.launch.planner.measured import measured_shard, measured_step
from course_utils.launch.planner.plan import GIB, plan, strategies
from course_utils.launch.planner.report import verdict
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of_config
from course_utils.recipes.command_line import Parser, from_to

STATE_GOAL, WORKING_GOAL = 0.01, 0.10
STATES = ("weights", "gradients", "optimizer")
# Real models with fewer layers: the trackers' time grows with the square of their number.
QWEN3 = Qwen3Config(
    **{"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 4, "head_dim": 128},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True, "use_cache": False},
)
LLAMA = LlamaConfig(
    **{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "use_cache": False},
)
GPT2 = GPT2Config(n_layer=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
ONE, EIGHT = {"strategy": "ddp", "gpus_per_node": 1}, {"strategy": "fsdp2", "gpus_per_node": 8}
RUNS = {
    "Qwen3, bf16 autocast": (QWEN3, ONE),
    "Qwen3, bf16 weights": (QWEN3, ONE | {"precision": "bf16_weights"}),
    "Qwen3, checkpointing, 8192 tokens": (QWEN3, ONE | {"checkpointing": True, "sequence_length": 8192}),
    "Qwen3, LoRA": (QWEN3, ONE | {"lora_rank": 16}),
    "GPT-2, 4 padded sequences": (GPT2, ONE | {"micro_batch": 4, "sequence_length": 1024}),
    "Llama-3.1-8B's layers": (LLAMA, ONE),
    "Llama-3.1-8B's layers, FSDP2, 8 ranks": (LLAMA, EIGHT),
    "Llama-3.1-8B's layers, FSDP2, 64 ranks": (LLAMA, EIGHT | {"nodes": 8, "checkpointing": True}),
}


def errors(config, fields):
    """Relative errors of the model states (the largest), of the rest at the peak, and of the peak; the peak's bytes."""
    spec = Spec(model=shape_of_config(config), **fields)
    found, ours = (measured_shard if spec.is_fsdp else measured_step)(spec, config), plan(spec)
    state = max(abs(ours.moments["step"][name] / getattr(found, name) - 1) for name in STATES)
    kept = {name: size for name, size in ours.memory.items() if name not in ("margin", "buckets")}
    working = sum(size for name, size in kept.items() if name not in STATES)
    return state, working / found.working - 1, sum(kept.values()) / found.peak - 1, found.peak


def seconds(function, rounds):
    """Median over ``rounds`` calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=from_to(1), default=20, help="measured calls of each function (default: 20)")
    parser.add_argument("--check", action="store_true", help="exit 1 where an error is above its goal")
    settings = parser.parse_args()
    warnings.filterwarnings("ignore")

    print(f"{'planner against the truth':42}{'states':>9}{'the rest':>10}{'peak':>8}{'peak GiB':>10}")
    missed = []
    for name, (config, fields) in RUNS.items():
        state, working, peak, size = errors(config, fields)
        print(f"{name:42}{state:9.2%}{working:+10.1%}{peak:+8.1%}{size / GIB:10.2f}")
        if state > STATE_GOAL or abs(working) > WORKING_GOAL:
            missed.append(name)

    eight = Spec(model="meta-llama/Llama-3.1-8B", gpus_per_node=8, sequence_length=4096, strategy="zero3")
    print(f"\nLlama-3.1-8B, ZeRO-3 on 8 GPUs\n{comparison_table(compare_estimators(eight))}")
    hard = eight.but(strategy="ddp", micro_batch=8)
    many = Spec(model="meta-llama/Llama-3.1-70B", nodes=512, global_batch=4096, sequence_length=4096)
    jobs = {
        "plan": lambda: plan(eight),
        "plan that does not fit, with the change": lambda: verdict(plan(hard)),
        "all strategies": lambda: strategies(eight),
        f"{len(layouts(many))} layouts of {many.world_size:,} GPUs": lambda: layouts(many),
        "render all launch files": lambda: files.render(eight),
    }
    print()
    for name, job in jobs.items():
        job()
        print(f"{name:42}{seconds(job, settings.rounds) * 1e3:9.2f} ms")
    if settings.check and missed:
        sys.exit(f"above the goals of {STATE_GOAL:.0%} and {WORKING_GOAL:.0%}: {', '.join(missed)}")


if __name__ == "__main__":
    main()
