# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · DeepSpeed: ZeRO behind one JSON
#
# Lesson 12 cut optimizer state, gradients and weights into slices: by hand, then with FSDP. DeepSpeed is the library
# that ZeRO was written for. A JSON file tells it what to cut and where to keep it. This lesson measures what its lines
# do. Some do not do what they seem to.
#
# **You will be able to**
#
# - train through DeepSpeed's engine, the Trainer and Accelerate, and show that the run equals one process's;
# - predict what each rank holds in ZeRO-1, 2 and 3, with and without offloading, and choose a stage for a budget;
# - say who replaces the `"auto"` values of a JSON, and by what;
# - find the lines of a JSON that change a run without an error;
# - turn a DeepSpeed checkpoint into a Hugging Face folder;
# - choose between FSDP and DeepSpeed by numbers.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 08 (Accelerate), 11 (collectives, DDP) and 12 (ZeRO by hand,
# FSDP).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 20  # optimizer steps of the runs that are compared
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Where we are going
#
# DeepSpeed puts one object around model and optimizer: the **engine**. The loop calls it three times.

# %%
from course_utils.lessons.lesson_13 import figures, runs

teach.show(figures.flow())

# %% [markdown]
# The run is that of lessons 11 and 12 (`course_utils/parallel/reference.py`): a decoder of P = 119,232 parameters
# without dropout, AdamW, batches of 8 rows of unequal length. It trains on lesson 01's sentences. These are of their
# kind, from this project's docstrings:

# %%
import torch

from course_utils.data.own_text import own_sentences
from course_utils.parallel import reference

torch.set_num_threads(1)
for sentence in own_sentences()[:3]:
    print("-", sentence)
first = runs.example(source)
print({name: tuple(value.shape) for name, value in first["batch"].items()})
print("targets on rank 0 and rank 1:", *first["targets"])

# %% [markdown]
# `runs.LessonRanks()` gives lesson 08's two ranks, here on gloo; with a GPU each they use NCCL. DeepSpeed needs Linux:
# elsewhere the cells show recorded results.
#
# The result first, in DeepSpeed's four stages; stage 0 is plain data parallel. "Master copies" are a second copy of the
# weights, kept for the update. (Section 4 says why ZeRO-2 is a little beyond the marks.)

# %%
from course_utils.parallel.deepspeed_runs import train_engine

ranks = runs.LessonRanks()
run = {"source": source, "seed": seed, "steps": 4, "accumulation": 2}
stages = {stage: ranks(train_engine, stage=stage, **run) for stage in (0, 1, 2, 3)}
P = sum(p.numel() for p in reference.new_model(seed).parameters())
held = {runs.NAMES[stage]: both[0]["bytes"] for stage, both in stages.items()}
predicted = {runs.NAMES[stage]: runs.predicted(P, 2, stage) for stage in stages}
teach.show(figures.bytes_per_rank(held, predicted))

# %%
print(f"P = {P:,} parameters")
for name in ("world_size", "backend", "wrapper", "optimizer", "shards"):
    print(f"{name:11}", stages[3][0][name])
both = stages[3]
met = all(rank["world_size"] == 2 for rank in both)
engines = all(rank["wrapper"] == "DeepSpeedEngine" for rank in both)
teach.claim("two ranks met, and the engine ran on both", met and engines)

# %% [markdown]
# `shards`: of the embedding's 512 x 64 numbers a rank keeps half, in one row; its optimizer works on half of all P. A
# launcher's exit code 0 proves nothing; these values come from the ranks.
#
# ## 2 · The JSON, line by line
#
# This lesson's JSON, as a function of the number of ranks (section 5 explains the threshold):


# %%
def make_config(stage, size, accumulation=1):
    """size: ranks."""
    zero = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8 // size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }


print(make_config(2, size=2))

# %% [markdown]
# A larger one, for GPUs, explained:

# %%
teach.show(figures.annotated(runs.LARGER))

# %% [markdown]
# The first three lines must fit together:
#
# $$\text{train\_batch\_size} = \text{micro batch} \times \text{accumulation} \times \text{ranks}$$
#
# Given two, DeepSpeed computes the third; three that contradict each other raise. (`begin` makes the process a rank of
# DeepSpeed's.)


# %%
def complaint(config):
    from course_utils.parallel.deepspeed_runs import begin

    begin()
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        read = DeepSpeedConfig(config)
    except Exception as error:
        return str(error)
    return f"fine: {read.train_batch_size} rows a step"


three = make_config(2, 2) | {"gradient_accumulation_steps": 2}
print("three that contradict:", ranks(complaint, config=three)[0])
two = {name: value for name, value in three.items() if name != "train_batch_size"}
print("two of them:", derived := ranks(complaint, config=two)[0])
teach.claim("4 rows x 2 micro-batches x 2 ranks are 16", "16 rows" in derived)

# %% [markdown]
# ## 3 · The engine: three calls in the loop
#
# `deepspeed.initialize` returns the engine first. What changes in the loop:
#
# - `engine.backward(loss)` instead of `loss.backward()`. It divides by the micro-batches of a step and averages over
#   the ranks. Our loss is divided by the targets of *all* rows already: hence `* size * accumulation`.
# - `engine.step()` clips, updates, and sets gradients to zero. Call it after *every* micro-batch: the engine counts
#   them, and acts only at a step's last.
# - No `optimizer.step()`, no `zero_grad()`, no `no_sync()`.


# %%
import torch.distributed as dist

from course_utils.data.batches import to_device


def train_zero(stage, source, max_steps, seed, accumulation=2, scaled=True):
    from course_utils.parallel.deepspeed_runs import begin, facts

    begin()
    import deepspeed

    rank, size = dist.get_rank(), dist.get_world_size()
    model = reference.new_model(seed)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=reference.new_optimizer(model),
        config=make_config(stage, size, accumulation),
    )
    losses, norms = [], []
    for batch in reference.global_batches(max_steps, 8, seed, source):
        mine = to_device(reference.share(batch, rank, size), engine.device)
        total = torch.zeros((), device=engine.device)
        for number in range(accumulation):
            piece = reference.share(mine, number, accumulation)
            loss = reference.summed_loss(engine, piece) / reference.count_targets(batch)
            engine.backward(loss * size * accumulation if scaled else loss)
            engine.step()
            total += loss.detach()
        dist.all_reduce(total)
        losses.append(total.item())
        norms.append(float(engine.get_global_grad_norm()))
    found = facts(engine, model, losses, accumulation, seed, source)
    return found | {"norms": norms}


# %% [markdown]
# `facts` collects what ran, and how far losses and final weights are from one process's (`train_alone`). We also
# compare the norm of the first step's gradient, and repeat a run without the factor: which check notices?

# %%
due = runs.first_norm(seed, source)
loop = {"source": source, "max_steps": max_steps, "seed": seed}
zero = {f"ZeRO-{n}": ranks(train_zero, stage=n, **loop)[0] for n in (1, 2, 3)}
unscaled = ranks(train_zero, stage=2, scaled=False, **loop)[0]
for name, run in (zero | {"ZeRO-2, no factor": unscaled}).items():
    print(f"{name:17} losses {run['losses_from_alone']:.0e} away", end=", ")
    print(f"weights {run['from_alone']:.0e}", end=", ")
    print(f"gradient norm {run['norms'][0] / due:.2f} of one process's")
off = max(run["losses_from_alone"] for run in zero.values())
weights = max(run["from_alone"] for run in zero.values())
norms = max(abs(run["norms"][0] / due - 1) for run in zero.values())
teach.claim("losses of stages 1, 2, 3 equal one process within 1e-5", off < 1e-5)
teach.claim("final weights do within 5e-5", weights < 5e-5)
teach.claim("and the gradient norm within 1e-4 of it", norms < 1e-4)
blind = unscaled["losses_from_alone"] < 1e-3
quarter = abs(unscaled["norms"][0] / due - 1 / 4) < 1e-4
teach.claim("no factor: losses within 1e-3, norm a quarter", blind and quarter)

# %% [markdown]
# The stages change where numbers lie, not which numbers. What differs is the order of float32 sums. AdamW divides a
# gradient by its own size: a wrong factor shows only against its small constant eps, a little, in losses and weights.
# The norm shows it at once, and clipping would go by it.
#
# ## 4 · What each rank holds
#
# Section 1's bars as a formula: fp32, AdamW, P parameters, N ranks, between two micro-batches.
#
# | bytes | stage 0 | 1 | 2 | 3 |
# |---|---|---|---|---|
# | weights | 4 P | 4 P | 4 P | 4 P/N |
# | gradients | 4 P | 4 P | 4 P/N | 4 P/N |
# | master copies | - | 4 P/N | 4 P/N | 4 P/N |
# | AdamW's two moments | 8 P | 8 P/N | 8 P/N | 8 P/N |
#
# A **master copy** is the fp32 copy of a rank's slice of the weights, on which the optimizer works. It makes sense in
# 16 bit, where weights are too coarse for small updates. In fp32 it repeats the slice. Lesson 15's **planner** computes
# a run before a GPU is rented. It must agree with the ranks (measured / planned):

# %%
plans = {stage: runs.planned(stage) for stage in stages}
for stage, plan in plans.items():
    seen = stages[stage][0]["bytes"]
    print(f"stage {stage}", *(f"{k} {seen[k]:,} / {plan[k]:,};" for k in plan))
exact = ("parameters", "master copies", "optimizer")
pairs = [(rank["bytes"], plans[n]) for n in plans for rank in stages[n]]
equal = all(seen[kind] == plan[kind] for seen, plan in pairs for kind in exact)
rest = [(rank["bytes"], plans[n]) for n in (0, 1, 3) for rank in stages[n]]
grads = all(seen["gradients"] == plan["gradients"] for seen, plan in rest)
on_cpu = stages[3][0]["backend"] == "gloo"
largest = 4 * 512 * 64  # bytes of the largest tensor, the embedding
gap = max(abs(r["bytes"]["gradients"] - plans[2]["gradients"]) for r in stages[2])
teach.claim("weights, copies and moments are the planner's", equal)
teach.claim("gradients of stages 0, 1 and 3, too", grads, when=on_cpu)
teach.claim("stage 2's gradients: within one tensor of it", 0 < gap < largest)

# %% [markdown]
# Stage 2 cuts the row of all gradients in the middle, inside a tensor. Between micro-batches each rank keeps that
# tensor whole.
#
# ### Exercise 13.1 · predict
#
# A model of 30 million parameters in fp32, AdamW, **ZeRO-1 on 8 ranks**. How many MB (millions of bytes) does a rank
# hold of each kind between two micro-batches?

# %%
prediction = ...  # {"parameters": 0, "gradients": 0, "copies": 0, "optimizer": 0}

# %%
teach.check("13.1", prediction)

# %% [markdown]
# ### Offloading
#
# Idle states can wait elsewhere. `"offload_optimizer": {"device": "cpu"}` keeps the master copies, the moments and the
# reduced gradients in the machine's memory, and the CPU makes the update (ZeRO-Offload). `"offload_param"`, stage 3
# only, keeps the slices of the weights there too. An offloaded optimizer must be DeepSpeed's own AdamW for the CPU,
# compiled at first use, or DeepSpeed raises; `"zero_force_ds_cpu_optimizer": false` admits torch's. CPU ranks have one
# memory only: here gradients just move to the master copies.

# %%
quick = {"source": source, "seed": seed, "steps": 3}
second = ranks(train_engine, stage=2, offload="optimizer", **quick)
third = ranks(train_engine, stage=3, offload="all", **quick)
lie = [one[0]["bytes"]["gradients"] for one in (stages[2], second)]
print(f"stage 2, bytes of gradients: {lie[0]:,}, offloaded {lie[1]:,}")
far = max(rank["from_alone"] for rank in [*second, *third])
teach.claim("offloaded runs equal one process within 5e-5", far < 5e-5)

# %% [markdown]
# The planner shows what it is for: Qwen3-32B on one machine of eight H100, 79.6 GiB each, with 2 TiB of its own; bf16,
# activations recomputed, 2,048 tokens a GPU and step.

# %%
large = runs.offload_plans("Qwen/Qwen3-32B")
memory = {name: (p.total / 2**30, p.host_total / 2**30) for name, p in large.items()}
plain = large["ZeRO-3"]
teach.show(figures.offload(memory, limit=plain.limit / 2**30, host=2048))
states = sum(plain.memory[kind] for kind in figures.PLANNED)
each = 8 * states / plain.parameters  # 8 GPUs
print(f"ZeRO-3: {each:.0f} bytes a parameter: {states / 2**30:.1f} GiB a GPU", end="; ")
print(f"buckets, margin: {(plain.total - states) / 2**30:.1f} GiB")
slow = plain.speed.step, large["ZeRO-3, optimizer offloaded"].speed.step
print(f"planned step: {slow[0]:.1f} s in GPU memory, {slow[1]:.1f} s offloaded")
fits = [name for name, plan in large.items() if plan.fits]
teach.claim("ZeRO-3 fits only with offloading", fits == list(large)[1:])
teach.claim("2,048 tokens: offloading costs over 5x", slow[1] > 5 * slow[0])

# %% [markdown]
# The 20 bytes at the update: 2 for a weight, 2 for its gradient and 4 for that in fp32, 4 for the master copy, 8 for
# the moments. The CPU updates once a step, so with accumulation it costs less.
#
# A third place is a disk, `"device": "nvme"` (**ZeRO-Infinity**).

# %% [markdown]
# ### Deeper: what a disk costs
#
# With `"device": "nvme"` and a folder on a fast disk each step reads master copies and moments there, and writes them
# back: 12 bytes a parameter. The disk's speed is an assumption:

# %%
moved = 2 * 12 * large["ZeRO-3"].parameters  # bytes a step, by all ranks of the machine
for speed in (3e9, 10e9):  # bytes/s: one NVMe disk, several together
    seconds = moved / speed
    print(f"{moved / 1e9:,.0f} GB a step: {seconds:.0f} s at {speed / 1e9:.0f} GB/s")

# %% [markdown]
# That is bearable when a step accumulates many micro-batches, and hopeless when it holds one. NVMe offloading needs the
# library libaio and a GPU: it cannot be rehearsed here.

# %% [markdown]
# ## 5 · A threshold that is a trap
#
# Tensors with up to `stage3_param_persistence_threshold` elements stay whole on all ranks: gathering small ones costs
# more than it saves. The default is 100,000. (Exercise 13.2 also has `stage3_prefetch_bucket_size`: elements
# gathered ahead.) For our model:

# %%
default = {n: ranks(train_engine, stage=n, **quick)[0] for n in (0, 1, 2, 3)}
line = "stage3_param_persistence_threshold"
unset = ranks(train_engine, stage=3, without=[line], **quick)[0]
modes = {"DDP": default[0], "threshold 0": default[3], "default": unset}
for name, run in modes.items():
    size, total = run["bytes"]["parameters"], sum(run["bytes"].values())
    print(f"{name:11} weights {size / P:4.1f} bytes a parameter, all {total / P:4.1f}")
cut, whole = (run["bytes"]["parameters"] for run in (default[3], unset))
teach.claim("threshold 0: half of the weights", cut == 4 * P // 2)
teach.claim("default: all weights and the slice besides", whole == 4 * P + cut)

# %% [markdown]
# By default no tensor of this model is freed, and the slices come on top: the run calls itself ZeRO-3, but holds more
# weights than DDP. On a large model the default is fine: only norms, biases and LoRA's matrices (16 x 4,096)
# are that small.

# %% [markdown]
# ### Deeper: buckets
#
# `reduce_bucket_size` says how many gradients are collected before they are exchanged, in elements. Large buckets mean
# few calls, and a buffer of that size on every rank: the default of 500 million elements takes a GB in 16 bit.
# Calls that reduce gradients, in one step:

# %%
both = {500_000_000: (default[2]["exchanged"], default[3]["exchanged"])}
for size in (20_000, 4_096):
    run = quick | {"zero": {"reduce_bucket_size": size}, "steps": 2}
    sent = [ranks(train_engine, stage=n, **run)[0]["exchanged"] for n in (2, 3)]
    both[size] = sent
counts = {size: runs.reductions(*pair) for size, pair in both.items()}
teach.show(figures.buckets(counts))
least, most = counts[500_000_000], counts[4_096]
teach.claim("one bucket for all: one call", set(least.values()) == {1})
teach.claim("4,096 elements: over ten calls", min(most.values()) > 10)

# %% [markdown]
# A tensor that is larger than the bucket goes alone. ZeRO-2 has one call more at 4,096, since its cut goes through such
# a tensor, which is sent in two pieces.

# %% [markdown]
# ## 6 · "auto": who fills it in
#
# In a JSON for Hugging Face a value may be the word `"auto"`. DeepSpeed does not know it: the Trainer replaces it from
# `TrainingArguments`, Accelerate from what `prepare` is given.
#
# ```python
# args = TrainingArguments(..., deepspeed="zero3.json")   # or a dict
# trainer = Trainer(model, args, ...)
#
# plugin = DeepSpeedPlugin(hf_ds_config="zero3.json")
# accelerator = Accelerator(deepspeed_plugin=plugin)
# model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
# ```
#
# `train_trainer` and `train_accelerate` repeat the reference run with these lines and return the resolved JSON.
# `fill_in` returns the Trainer's for a width of 96 instead of 64, without training.

# %%
from course_utils.parallel.deepspeed_hf import (
    auto_config,
    train_accelerate,
    train_trainer,
)

config = auto_config(3) | {"gradient_clipping": "auto"}
print(config)
trainer = ranks(train_trainer, stage=3, **quick)[0]
accelerate = ranks(train_accelerate, stage=3, config=config, **quick)[0]
wider = ranks(runs.fill_in, hidden_size=96)[0]
tools = {"Trainer": trainer["resolved"], "Trainer, width 96": wider}
tools["Accelerate"] = accelerate["resolved"]
teach.show(figures.filled(config, tools))
found = trainer["distributed_type"], accelerate["distributed_type"]
teach.claim("both ran DeepSpeed", found == ("DEEPSPEED", "DEEPSPEED"))
near = trainer["from_alone"] < 5e-5
teach.claim("the Trainer's weights equal one process's within 5e-5", near)

# %% [markdown]
# The Trainer was called with `per_device_train_batch_size=4` and `max_grad_norm=0`. Accelerate took the batch size from
# the loader; without a loader in `prepare` it raises. Clipping is a call in an Accelerate loop,
# `accelerator.clip_grad_norm_`, so `prepare` has no number for it and fills in 1.0. With DeepSpeed that call only
# returns the norm (by its source, not measured here); the engine clips, by the JSON. Write the number there.
#
# A number in the JSON must agree with `TrainingArguments`, or the Trainer raises.
#
# ### Exercise 13.2 · write
#
# Replace `"auto"` as the Trainer does. `known` has `micro`, `accumulation`, `ranks`, `max_grad_norm`, `bf16` and
# `hidden_size`. Find the formulas of the three sizes at the table's end from its two widths, 64 and 96 (one is rounded
# down). `config` is nested as printed above. What is not `"auto"` stays. Return a new config; leave the given one
# alone.


# %%
def fill_auto(config, known):
    """config: nested dict. Returns it with every "auto" replaced."""
    return ...


# %%
teach.check("13.2", fill_auto)

# %% [markdown]
# ## 7 · ZeRO-3: the JSON must come before the model
#
# A model that does not fit on one rank must never be whole there. `from_pretrained` builds it in slices if it finds a
# `HfDeepSpeedConfig`, a small object that `TrainingArguments` makes of the JSON. So the order of two lines decides:

# %%
teach.show(figures.gathering())

# %%
from tempfile import TemporaryDirectory

from course_utils.parallel.deepspeed_hf import load_for_zero3

scratch = TemporaryDirectory()
saved = f"{scratch.name}/start"
reference.new_model(seed).save_pretrained(saved)
good = ranks(load_for_zero3, folder=saved, model_first=False)
bad = ranks(load_for_zero3, folder=saved, model_first=True)
print("JSON first: ", good[0])
print("model first:", bad[0])
teach.claim("JSON first: P / 2 in slices, nothing whole", good[0]["slices"] == P // 2)
teach.claim("model first: all P on each rank", all(r["whole"] == P for r in bad))

# %% [markdown]
# No error: the engine cuts the model later, if the rank has survived until then. Without the Trainer, make the object
# yourself before `from_pretrained`, `ds = HfDeepSpeedConfig(config)`, and keep it: transformers holds only a weak
# reference.
#
# ## 8 · What goes wrong
#
# None of the mistakes measured here raises an error.
#
# **A line that is missing.** `gradient_clipping` left out meant "no clipping" until
# [June 2026](https://github.com/deepspeedai/DeepSpeed/pull/8068). In DeepSpeed 0.19.8, used here, it does not:

# %%
unsaid = ranks(train_engine, stage=2, without=["gradient_clipping"], **quick)[0]
plain = reference.train_alone(3, seed=seed, source=source)
clipped = reference.train_alone(3, seed=seed, source=source, max_grad_norm=1.0)
to_plain = runs.farthest(unsaid["losses"], plain["losses"])
to_clipped = runs.farthest(unsaid["losses"], clipped["losses"])
print(f"losses from one process: {to_plain:.0e} unclipped, {to_clipped:.0e} clipped")
by_default = to_clipped < 1e-5 and 3 * to_clipped < to_plain
teach.claim("left out, gradients are clipped at 1.0", by_default)
auto = runs.farthest(accelerate["losses"], clipped["losses"])
teach.claim("by Accelerate's auto they are, too", auto < 1e-5)

# %% [markdown]
# **Micro-batches that nobody counts.** The JSON says 2 micro-batches of 2 rows on each rank. One loop calls
# `engine.step` once for both, as in torch; another gives half of the rows. Four batches; rows of both ranks:


# %%
def counted(steps, rows, every):
    from course_utils.parallel.deepspeed_runs import begin, new_engine

    begin()
    rank, size = dist.get_rank(), dist.get_world_size()
    engine = new_engine(make_config(2, size, accumulation=2))
    seen = torch.zeros((), device=engine.device)
    for batch in reference.global_batches(steps):
        mine = to_device(reference.share(batch, rank, size), engine.device)
        for number in range(2):
            piece = reference.share(mine, number, 2)
            piece = {name: value[:rows] for name, value in piece.items()}
            seen += len(piece["input_ids"])
            loss = reference.summed_loss(engine, piece) / 100  # any: we count
            engine.backward(loss)
            if every or number == 1:
                engine.step()
    dist.all_reduce(seen)
    taken, says = engine.global_steps, engine.train_batch_size()
    return {"updates": taken, "rows": int(seen), "engine says": says}


loops = {"right": (2, True), "one call for both": (2, False)}
loops["half of the rows"] = (1, True)
for name, (rows, every) in loops.items():
    loops[name] = ranks(counted, steps=4, rows=rows, every=every)[0]
    print(f"{name:17}", loops[name])
once, half = loops["one call for both"], loops["half of the rows"]
teach.claim("one call for both: half of the updates", once["updates"] == 2)
unaware = half["updates"] == 4 and half["engine says"] == 8
teach.claim("half of the rows: all updates, and it still says 8", unaware)

# %% [markdown]
# **A scheduler twice.** `engine.step()` steps the scheduler that `deepspeed.initialize` got. If your loop does too, the
# rate falls twice as fast (measured under Deeper). With two *different* schedulers, one in the JSON and one in your
# code, Accelerate raises; by hand yours wins, silently.
#
# **The optimizer block.** With `"optimizer": {"type": "AdamW", ...}` DeepSpeed makes the optimizer, in one group, and
# decays norm weights and biases too; the Trainer's own does not.
#
# | symptom | check |
# |---|---|
# | batch is not what you think | `engine.train_batch_size()` against rows counted in the loop |
# | gradients off by a factor | `engine.get_global_grad_norm()` against one process |
# | clipping nobody asked for | write `gradient_clipping`, 0.0 for none |
# | rate falls twice as fast | `engine.get_lr()` at half of the run |
# | DDP instead of DeepSpeed | `accelerator.distributed_type`, the wrapper's class |
# | ZeRO-3 that divides nothing | bytes of weights on a rank |
# | norms decayed | number of parameter groups |
#
# ### Exercise 13.3 · debug
#
# Your loop makes its own scheduler and one of DeepSpeed's optimizers, wants no clipping, and in stage 3 every tensor
# divided. `train_batch_size`, micro-batch and stage are right. Repair such JSONs, for any number of ranks; this is the
# first. Return a new one.
#
# ```python
# {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4,
#  "gradient_accumulation_steps": 4,
#  "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
#  "zero_optimization": {"stage": 3, "overlap_comm": False}}      # on 4 ranks
# ```


# %%
def repair(config, ranks):
    """A JSON with the same batch and stage, without the faults."""
    return ...


# %%
teach.check("13.3", repair)

# %% [markdown]
# ### Deeper: the scheduler, the optimizer block and a flag, measured
#
# A scheduler that the engine has, stepped by the engine alone and by the loop as well:


# %%
def engine_rates(twice, steps):
    from course_utils.parallel.deepspeed_runs import begin
    from course_utils.training.schedules import make_scheduler

    begin()
    import deepspeed

    model = reference.new_model()
    optimizer = reference.new_optimizer(model)
    scheduler = make_scheduler(optimizer, "linear", 0, steps)
    config = make_config(1, dist.get_world_size())
    parts = {"model": model, "optimizer": optimizer, "lr_scheduler": scheduler}
    engine, _, _, scheduler = deepspeed.initialize(config=config, **parts)
    rates = []
    for batch in reference.global_batches(steps):
        rates.append(engine.get_lr()[0])
        mine = reference.share(batch, dist.get_rank(), dist.get_world_size())
        mine = to_device(mine, engine.device)
        engine.backward(reference.summed_loss(engine, mine) / 100)  # only rates count
        engine.step()
        if twice:
            scheduler.step()
    return rates


steps = 12
curves = {
    "planned": [reference.LEARNING_RATE * (1 - i / steps) for i in range(steps)],
    "engine.step() alone": ranks(engine_rates, twice=False, steps=steps)[0],
    "and scheduler.step() in the loop": ranks(engine_rates, twice=True, steps=steps)[0],
}
teach.show(figures.rates(curves))
planned, once, twice = curves.values()
teach.claim("the engine alone follows the plan", runs.farthest(once, planned) < 1e-9)
teach.claim("stepped twice, the rate is 0 halfway", twice[steps // 2] < 1e-9)

# %% [markdown]
# The optimizer block: the mean weight of the last norm starts at 1 and must not be decayed.

# %%
own = ranks(train_trainer, stage=2, optimizer="trainer", **quick)[0]
block = ranks(train_trainer, stage=2, optimizer="block", **quick)[0]
print(f"groups: {own['groups']} and {block['groups']}")
shrunk = own["norm"] - block["norm"]
due = quick["steps"] * reference.LEARNING_RATE * reference.WEIGHT_DECAY
print(f"norm weights: smaller by {shrunk:.1e} with the block; decay alone: {due:.1e}")
teach.claim("the block decays norm weights", abs(shrunk / due - 1) < 0.1)

# %% [markdown]
# `ACCELERATE_USE_CPU=true`, which lesson 08 needed for CPU ranks, rules DeepSpeed out:

# %%
ignored = ranks(train_accelerate, stage=2, cpu_flag=True, **quick)[0]
print(ignored)
kind = ignored["distributed_type"]
teach.claim("DeepSpeed was asked for, DDP ran", kind == "MULTI_CPU", when=on_cpu)

# %% [markdown]
# ## 9 · From a checkpoint to a Hugging Face folder
#
# `engine.save_checkpoint(folder)`, which every rank must call, writes files that only DeepSpeed reads:

# %%
from course_utils.parallel.deepspeed_saved import save_and_convert, to_folder

wrote = {}
for stage in (2, 3):
    place = {"folder": f"{scratch.name}/{stage}", "seed": seed}
    wrote[stage] = ranks(save_and_convert, stage=stage, **place)
for stage, pair in wrote.items():
    print(f"ZeRO-{stage}")
    for name, size in pair[0]["files"].items():
        if name.endswith(".pt"):
            print(f"  {size:9,}  {name.rpartition('/')[2]}")
optim = [size for name, size in wrote[3][0]["files"].items() if "optim" in name]
beyond = [size - 12 * P // 2 for size in optim]
named = min(beyond) >= 0 and max(beyond) < 10_000
teach.claim("12 bytes a number of the slice, under 10 kB of names", named)

# %% [markdown]
# `optim_states` are the slices: master copies and moments. In stage 3 the `model_states` hold no weights at all.
# `zero_to_fp32.py`, which DeepSpeed puts beside them, assembles the fp32 weights, with `--safe_serialization` as
# safetensors. But it writes no `config.json`, and that flag refuses tied weights like ours. `to_folder` passes the
# weights through the model's own `save_pretrained`:

# %%
teach.show_source(to_folder)

# %%
for stage, pair in wrote.items():
    print(f"ZeRO-{stage} ->", ", ".join(pair[0]["model"]), end="; ")
    print(f"script refuses tied weights: {pair[0]['refuses_tied']}")
exact = [pair[0]["logits_apart"] for pair in wrote.values()]
weights = [pair[0]["weights_apart"] for pair in wrote.values()]
teach.claim("from_pretrained has the engine's weights, bit for bit", max(weights) == 0)
teach.claim("and gives the engine's logits within 1e-5", max(exact) < 1e-5)

print("loss on sentences it was not trained on, before and after 10 steps:")
folder = f"{scratch.name}/3/model"
shown = {"folder": folder, "source": source, "seed": seed}
for text, before, after in ranks(runs.loss_of_own, **shown)[0]:
    print(f"  {before:.1f} -> {after:.1f}  {text}")

# %% [markdown]
# The folder is an ordinary model now. For large models, LoRA adapters and damaged files there is
# `course_utils/parallel/convert`. Under the Trainer, `stage3_gather_16bit_weights_on_model_save` lets `save_model`
# write such a folder itself, if one rank's memory can hold the model.
#
# ## 10 · FSDP or DeepSpeed?
#
# Both cut the same states. What do they send? One step of one micro-batch, torch's collectives counted (`exchanged`),
# in model sizes: an all-gather or reduce-scatter of P numbers counts 1, an all-reduce 2.

# %%
live = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
seen = {
    "DDP (stage 0)": default[0],
    "ZeRO-1": default[1],
    "ZeRO-2": default[2],
    "ZeRO-3, weights kept": default[3],
    "ZeRO-3, freed": ranks(train_engine, stage=3, zero=live, **quick)[0],
    "FSDP2, weights kept": ranks(runs.fsdp_step, reshard=False)[0],
    "FSDP2, freed": ranks(runs.fsdp_step, reshard=True)[0],
}
moved = {name: runs.in_models(one["exchanged"], P) for name, one in seen.items()}
teach.show(figures.volumes(moved))

# %%
total = {name: sum(parts.values()) for name, parts in moved.items()}
three = abs(total["ZeRO-1"] - 3) < 0.01 and abs(total["ZeRO-2"] - 3) < 0.01
teach.claim("ZeRO-1 and 2 move 3 P", three)
kept = total["FSDP2, weights kept"], total["ZeRO-3, weights kept"]
teach.claim("weights kept: 2 P in both", max(abs(value - 2) for value in kept) < 0.05)
more = total["ZeRO-3, freed"] - total["FSDP2, freed"]
tied = 2 * 512 * 64 / P
teach.claim("freed: ZeRO-3 moves two embeddings more", abs(more - tied) < 0.01)
for stage, both in stages.items():  # section 1's runs
    parts = runs.in_models(both[0]["exchanged"], P)
    print(f"two micro-batches, {runs.NAMES[stage]}: {sum(parts.values()):.2f}")

# %% [markdown]
# - In the [ZeRO paper](https://arxiv.org/abs/1910.02054) stages 1 and 2 reduce each gradient to its owner and move 2 P.
#   DeepSpeed's default, `use_multi_rank_bucket_allreduce`, all-reduces buckets and keeps a slice of the result: 3 P.
# - Of two micro-batches ZeRO-2 and 3 reduce each, ZeRO-1 their sum; ZeRO-3 gathers for each.
# - ZeRO-3 keeps up to `stage3_max_live_parameters` (a billion) gathered, and what is needed again within
#   `stage3_max_reuse_distance` elements: a small model is gathered once a micro-batch. With both at 0 ("freed") it
#   gathers the tied embedding for input and output, in both passes.
#
# | | FSDP2 | DeepSpeed |
# |---|---|---|
# | part of | torch | a library of its own, Linux |
# | cut | each tensor, by rows (DTensor) | flat slices, or a row per tensor (stage 3) |
# | stages | `reshard_after_forward`: 2 or 3 | 1, 2, 3 |
# | master copies | none: fp32 weights are cast to 16 bit | fp32, beside 16-bit weights |
# | offload | weights and optimizer together | optimizer, parameters, NVMe, each |
# | optimizer | yours | yours, or its own in C++ |
# | on disk | shards that other numbers of ranks can load | a pickle a rank |

# %% [markdown]
# ### When to take which
#
# You may read: "up to 1B parameters DDP, up to 10B ZeRO-2, above that ZeRO-3 with offload". The planner, for section
# 4's machine and settings:

# %%
plans = runs.plans_by_size()
teach.show(figures.by_size(plans))

# %%
small, eight = plans["Qwen3-0.6B"], plans["Qwen3-8B"]
large = plans["Llama-3.1-70B"]
quickest = runs.quickest(eight)
print("8B, fastest that fit:", ", ".join(quickest))
fits = [way for way, plan in large.items() if plan.fits]
print("70B, all that fit:", ", ".join(fits).replace("\n", " "))
teach.claim("0.6B: everything fits", all(plan.fits for plan in small.values()))
teach.claim("8B: DDP does not fit", not eight["DDP"].fits)
wins = any("ZeRO-2" in runs.quickest(plan) for plan in plans.values())
teach.claim("ZeRO-2 is the fastest for none of the six", not wins)
offloads = all("offloaded" in way for way in fits)
teach.claim("70B: nothing without offloading", fits and offloads)

# %% [markdown]
# The rule asks for the wrong quantity: what decides is bytes per GPU. Planned speeds assume that gathering hides behind
# computing, so ZeRO-3 and FSDP2 beat ZeRO-2. Better:
#
# - it fits with DDP and room to spare: DDP;
# - it does not: FSDP2, or ZeRO-3 where your code is made for DeepSpeed;
# - it fits nowhere: more GPUs, else ZeRO-3 with optimizer offload, then parameters too, then NVMe.
#
# Speeds here are planned (lesson 15 lists the assumptions), volumes counted, not timed.
#
# ### Exercise 13.4 · vary
#
# The lowest stage (0 to 3) whose states fit into `budget` bytes per rank, in fp32 with AdamW, by section 4's table.
# `None` if none does.


# %%
def choose_stage(parameters, ranks, budget):
    return ...


# %%
teach.check("13.4", choose_stage)

# %% [markdown]
# ### Exercise 13.5 · write
#
# The objective of this lesson: the JSON for a given run, with all three batch numbers and a number for clipping,
# without `"auto"`. Leave out what means nothing for the run: lines that begin with `stage3_` below stage 3, blocks for
# what is not offloaded. `run` has
#
# - `ranks`, `rows` (a step, over all ranks), `micro` (rows a rank takes at once), `stage`;
# - `offload`: `"none"`, `"optimizer"`, or in stage 3 `"all"`: parameters too; to the device `"cpu"`;
# - `bf16`: True, or False (the block may be missing); `max_norm`: a number, or None for no clipping;
# - `torch_optimizer`: True if the engine is given torch's AdamW, False for DeepSpeed's own, which needs no permission,
#   offloaded or not; either is made in the loop, without a block `optimizer`;
# - `smallest`: stage 3 keeps tensors with up to so many elements whole;
# - `save_whole`: in stage 3, the Trainer's `save_model` is to write weights.


# %%
def write_config(run):
    return ...


# %%
teach.check("13.5", write_config)

# %% [markdown]
# ## Deeper: the one table
#
# Everything that lessons 11 to 13 have built or used, against one process, on the same rows with unequal numbers of
# targets on the ranks. `course_utils/parallel/equality.py` names for each row why it is away at all; all have the same
# bound. The last row is a counterexample, the Trainer when ranks do not add up their targets: its dotted mark is what
# it must be beyond.

# %%
from course_utils.parallel import equality

compared = equality.table(ranks, steps=4, seed=seed, source=source)
rows = [(row["name"], row["weights"], row["bound"]) for row in compared]
teach.show(figures.distances(rows, "Final weights after 4 steps, against one process"))
same, other = compared[:-1], compared[-1]
near = all(row["holds"] for row in same)
teach.claim("every way equals one process within its bound", near)
teach.claim("targets not shared: over 1e-3 away", other["weights"] > 1e-3)

# %%
reasons = {}
for row in same:
    reasons.setdefault(row["reason"], []).append(row["name"])
for reason, named in reasons.items():
    print(f"{reason}:\n   {'; '.join(named)}")
teach.claim("all ran on two ranks", all(row["world_size"] == 2 for row in compared))

# %% [markdown]
# One process that takes the ranks' shares as micro-batches adds up in the ranks' order. Where a way of training was
# compared with *that* process, is it exact to the last bit?

# %%
groups = {"bit for bit": [], "in the last digits only": []}
for row in same:
    far = row["from_micro_batches"]
    kind = "bit for bit" if far == 0 else "in the last digits only"
    groups[kind].append(row["name"])
for kind, named in groups.items():
    print(f"{kind}:\n   {'; '.join(named)}")
exact = groups["bit for bit"]
teach.claim("DDP and DeepSpeed's ZeRO-1 are", {"DDP", "DeepSpeed ZeRO-1"} <= set(exact))

# %% [markdown]
# With one micro-batch on each of two ranks there is one sum of two, which has one order. Two micro-batches on each
# rank add up first on a rank, then over the ranks; the single process takes all four in turn. DeepSpeed's stage 3 adds
# in an order of its own.

# %% [markdown]
# ## Deeper: what lies on disk
#
# The same model and AdamW, all files of a checkpoint:

# %%
files = ranks(runs.fsdp_files, folder=f"{scratch.name}/dcp")[0]
print("FSDP2:", ", ".join(f"{name} {size:,}" for name, size in files.items()))
disk = {f"ZeRO-{n}": sum(both[0]["files"].values()) for n, both in wrote.items()}
disk["FSDP2"] = sum(files.values())
twice = 12 * 512 * 64  # the tied embedding, under both of its names
due = {"ZeRO-2": 16 * P, "ZeRO-3": 12 * P, "FSDP2": 12 * P + twice}
for name, size in disk.items():
    print(f"{name:7} {size / P:5.1f} bytes a parameter, due {due[name] / P:.1f}")
rest = [disk[name] - due[name] for name in due]
near = min(rest) >= 0 and max(rest) < P
teach.claim("the formula's bytes, and less than one more a parameter", near)

# %% [markdown]
# The least is 12 bytes a parameter: weights or master copies, and two moments. ZeRO-1 and 2 write the weights *and* the
# master copies: 16. `get_state_dict`, from which FSDP2's checkpoint is made, has the tied embedding and its moments
# under two names. The rest are names, shapes, and DeepSpeed's script.

# %% [markdown]
# ## Deeper: one command
#
# In a terminal nobody calls functions on waiting ranks. The same program starts under three launchers:
#
# ```bash
# deepspeed --num_gpus 8 train.py --deepspeed zero3.json
# torchrun --standalone --nproc-per-node 8 train.py --deepspeed zero3.json
# accelerate launch --config_file deepspeed.yaml train.py
# ```
#
# On several machines `deepspeed --hostfile hosts` starts the others over ssh; a missing hostfile is a warning, and then
# it runs here only. Without a GPU `--num_accelerators 2`, the same flag as `--num_gpus`, starts CPU ranks. The launcher
# passes `--local_rank` to your program unless `--no_local_rank` is given. Lesson 15 writes these files and executes
# them.
#
# | you may see | today |
# |---|---|
# | `"cpu_offload": true` | `"offload_optimizer": {"device": "cpu"}` |
# | `"stage3_gather_fp16_weights_on_model_save"` | `"stage3_gather_16bit_weights_on_model_save"` |
# | `deepspeed.initialize(args=args, ...)` | `config=...`, a dict or a path |

# %%
ranks.close()
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# - `deepspeed.initialize` returns an engine; the loop calls `engine(batch)`, `engine.backward`, `engine.step`, each for
#   every micro-batch.
# - train_batch_size = micro-batch x accumulation x ranks. Write clipping down.
# - Compare the gradient norm: AdamW hides a wrong factor.
# - Stage 1 cuts the optimizer, 2 gradients, 3 weights; DeepSpeed adds a master copy.
# - `"auto"` is Hugging Face's word. Read the resolved JSON.
# - ZeRO-3: JSON before model, threshold below your tensors.
# - Checkpoint -> `zero_to_fp32` -> folder with config.json.
# - Choose by bytes per GPU, then by what hides behind computing.
#
# ## Quiz

# %% [markdown]
# **1.** Your ZeRO-3 run of a tiny model on *four* ranks holds more bytes of weights than DDP. Why, and how many? And in
# all?
#
# <details><summary>Answer</summary>
#
# All tensors are below the persistence threshold, so each rank keeps them whole and has its slice besides: 5 P bytes
# instead of 4 P. The other states are still divided: P of gradients, P of master copies, 2 P of moments. That is 9 P in
# all, against 16 P of DDP.
#
# </details>

# %% [markdown]
# **2.** With accumulation 4 in the JSON you call `engine.step()` after every fourth micro-batch, as with torch. What do
# 64 micro-batches give?
#
# <details><summary>Answer</summary>
#
# Four updates, not 16. The engine takes each call of `step` for a micro-batch and updates at every fourth call, after
# 16.
#
# </details>

# %% [markdown]
# **3.** Why does the order of `TrainingArguments` and `from_pretrained` matter in stage 3 and not in stage 2?
#
# <details><summary>Answer</summary>
#
# In stage 2 every rank has all weights anyway. In stage 3 they may be too many for one rank, and only a JSON that is
# known by then lets the model be built in slices.
#
# </details>

# %% [markdown]
# **Next:** [lesson 14](14_vision_language.ipynb) trains a model of images and text.
