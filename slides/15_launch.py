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

# %% slideshow={"slide_type": "skip"} tags=["parameters"]
source = "local"
max_steps = 1000  # of the run that is planned
seed = 0

# %% slideshow={"slide_type": "skip"}
from pathlib import Path
from tempfile import TemporaryDirectory

from course_utils import teach
from course_utils.launch import Spec, SpecError, render, strategies, table, write
from course_utils.launch.check.folder import check
from course_utils.launch.planner import memory, mfu
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.reduction import Reduction
from course_utils.launch.planner.report import traffic_table
from course_utils.launch.planner.speed import flops_per_token
from course_utils.lessons.lesson_15 import faults, figures
from course_utils.models.configs import shape_of
from course_utils.models.shapes import parameter_count

teach.start(source=source, max_steps=max_steps, seed=seed)
example = Spec(model="Qwen/Qwen3-8B", nodes=2, global_batch=64, sequence_length=4096, price=3.0, max_steps=max_steps)
shape, gpus = shape_of(example.model), example.world_size
psi = parameter_count(shape)
files = render(example)
scratch = TemporaryDirectory()
place = Path(scratch.name) / "launch"


# %% [markdown] slideshow={"slide_type": "slide"}
# # 15 · Launch
#
# From one notebook to many GPUs: know beforehand that it fits, and that it is the run you asked for

# %% [markdown] slideshow={"slide_type": "notes"}
# Two failures. It does not fit: an hour in the queue, then CUDA out of memory; loud, and late. Or it ran something
# else: a setting that nobody read, and exit code 0. Who has had the first? Everybody. The second? Nobody knows, that
# is the point. The training program works; now it goes to eight or sixteen GPUs, and every hour costs money. Today is
# about what can be known before the money is spent, on a laptop without any GPU. About 75 minutes with exercises.
# Needs lessons 01 and 03.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One spec, from which everything follows
#
# ```python
# example = Spec(
#     model="Qwen/Qwen3-8B", strategy="fsdp2", nodes=2, gpus_per_node=8,
#     global_batch=64, sequence_length=4096, price=3.0,
# )
# ```
#
# Impossible values are refused in one sentence, before any work:

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
for changes in ({"strategy": "zero4"}, {"global_batch": 100}, {"strategy": "zero2", "offload": "all"}):
    try:
        example.but(**changes)
    except SpecError as error:
        print(str(error).replace("; ", ";\n   ", 1))
assert example.effective_batch == example.micro_batch * example.accumulation_steps * gpus == 64

# %% [markdown] slideshow={"slide_type": "notes"}
# A run is described in a dozen places: flags, YAML, JSON, job script. Each can contradict the others. So there is one
# typed object, and everything else is derived from it. The number to watch is the effective batch: micro-batch 1 x
# accumulation 4 x 16 GPUs = 64 sequences per step. It must be the same in every file. The price is an assumption.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is compared with what
#
# The dashed lines are what most people leave out.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.flow())

# %% [markdown] slideshow={"slide_type": "notes"}
# The map of the lesson. Left to the top: the plan, section 2 and 3. Left to the bottom: the files, section 4. The two
# dashed lines are what most people leave out: what the tool makes of the file against what was asked, section 5, and
# what the ranks see against the plan, section 7.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Three ways to exchange numbers

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.collectives())

# %% [markdown] slideshow={"slide_type": "-"}
# > An all-reduce is the other two, one after the other: it sends twice as much.

# %% [markdown] slideshow={"slide_type": "notes"}
# Collectives are calls that all ranks make together. Read one panel aloud: rank 0 has 1 and 2, rank 1 has 3 and 4;
# after the all-reduce both have 4 and 6. Lesson 11 builds them by hand. Everything that follows counts these three.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What each rank keeps
#
# Filled is what one of four ranks keeps; the numbers are bytes per parameter; the dashed box is gathered first.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.sharding())

# %% [markdown] slideshow={"slide_type": "notes"}
# Filled is what one of four ranks keeps; bars are as long as their bytes per parameter. ZeRO works on bf16 weights and
# gradients, and keeps fp32 weights with the moments: 12. Each stage divides one state more. Stage 3 and FSDP also
# divide the weights, and therefore gather a layer before they can compute it: the dashed box. Lesson 12 does it by
# hand.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 16 bytes a parameter
#
# Weight, gradient, AdamW's two moments. Qwen3-8B on $N = 16$ GPUs:
#
# | | bytes per parameter | each GPU holds |
# |---|---|--:|
# | DDP | $4 + 4 + 8$ | 122.1 GiB |
# | ZeRO-1 | $2 + 2 + 12/N$ | 36.2 GiB |
# | ZeRO-2 | $2 + 14/N$ | 21.9 GiB |
# | ZeRO-3, FSDP2 | $16/N$ | 7.6 GiB |
#
# > bf16 autocast does not change the 16: its copies come and go.

# %% slideshow={"slide_type": "skip"}
STATE = (memory.weights, memory.gradients, memory.optimizer, memory.master_copies)


def state(strategy):
    spec = example.but(strategy=strategy)
    return sum(part(spec, memory.parameters(spec, shape)) for part in STATE) / memory.GIB


stated = {"ddp": 122.1, "zero1": 36.2, "zero2": 21.9, "zero3": 7.6, "fsdp2": 7.6}  # the table above
assert {name: round(state(name), 1) for name in stated} == stated

# %% [markdown] slideshow={"slide_type": "notes"}
# Do the first line on the board: 8.19 billion parameters x 16 bytes = 131 GB = 122 GiB. An 80 GB GPU has 79.6 GiB, so
# DDP is out before one activation is stored. Each ZeRO stage divides one part more by N (Rajbhandari et al. 2020,
# figure 1). DeepSpeed keeps bf16 weights beside an fp32 copy: 2 + 2 + 12.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## And what comes and goes
#
# | | bytes on every GPU |
# |---|---|
# | **gathered units** | 2 per parameter of a layer, two layers at a time |
# | **whole gradients** | 2 per parameter (bf16), while FSDP accumulates |
# | **activations** | tokens $\times$ layers $\times$ about $50\,h$ |
# | **logits** | tokens $\times$ vocabulary $\times\, 12$ |
#
# > More data-parallel GPUs divide none of the last three. Their maxima do not meet.

# %% slideshow={"slide_type": "skip"}
tightest = plan(example).memory
tokens = example.micro_batch * example.sequence_length
assert round(tightest["activations"] / (tokens * shape.num_hidden_layers * shape.hidden_size), -1) == 50
assert tightest["logits"] == 12 * tokens * shape.vocab_size
assert [plan(example.but(nodes=n)).moments["loss"]["whole gradients"] for n in (2, 4, 8)] == [2 * psi, 2 * psi, 0]

# %% [markdown] slideshow={"slide_type": "notes"}
# A sixteenth of a weight matrix computes nothing: FSDP gathers a layer, computes, frees it, and fetches the next one
# meanwhile. With accumulation FSDP2 adds up whole gradients and reduces once, in the type that accelerate sets, bf16:
# 2 bytes x 8.19 billion = 15 GiB, however many GPUs share the state; with fp32 reduction twice that. Only at
# accumulation 1 are they gone: here with 8 machines. Quiz question 1. Context and tensor parallelism do divide
# activations. Checkpointing keeps 2h per token and layer instead, for about a third more computing. Logits: 4096
# tokens x 151,936 words x 12 bytes = 7 GiB for one sequence.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Every strategy, and the GPU's limit
#
# Sharding divides the state; activations and logits stay on every GPU.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
plans = [one for one in strategies(example) if one.spec.offload == "none"]
assert [one.name for one in plans if not one.fits] == ["DDP"]
zero3 = next(one for one in plans if one.name == "ZeRO-3")
assert 0.7 < (zero3.memory["activations"] + zero3.memory["logits"]) / zero3.total < 0.8  # said in the notes
teach.show(figures.strategy_memory(plans))

# %% [markdown] slideshow={"slide_type": "notes"}
# Qwen3-8B on 2 x 8 H100, at the tightest moment of a step. Those that fit first, the fastest on top; offload is left
# out here. Look at DDP: blue, sky and green alone are beyond the line. Then at ZeRO-3: three quarters of it are
# activations and logits, which more GPUs do not divide. The thin line is what stays free. FSDP2 has whole gradients
# on top, for accumulation. Is it true? The lesson measures a small Qwen3 with torch's MemTracker under
# FakeTensorMode: state exact, the rest within 5%. DeepSpeed's own estimator has no activations: less than half of
# what the run needs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How fast, and at what cost
#
# $$
# \text{seconds} = \frac{\text{tokens} \times (6\,P + 6\,L\,h\,T)}
# {\text{GPUs} \times \text{peak} \times \text{MFU}} + \text{waiting}
# $$
#
# **MFU**, the share of the peak that a run reaches, is *the* assumption.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
fast = plan(example).speed
least, most = mfu.published_range(example.gpu)
print(f"{flops_per_token(example, shape) / 1e9:.0f} GFLOP per token, MFU {example.mfu} assumed")
print(f"published for H100: {least:.2f} to {most:.2f}, counted as here")
print(f"{fast.step:.1f} s a step, {fast.tokens_per_second:,.0f} tokens per second")
print(f"{max_steps} steps: {fast.hours:.2f} h x {gpus} GPUs x ${example.price:g} = ${fast.cost:.0f}")

# %% [markdown] slideshow={"slide_type": "notes"}
# 6 per weight: 2 forward, 2 + 2 backward. P are the weights of matrix multiplications, the second term is causal
# attention over T tokens in L layers (PaLM, appendix B). Waiting: for the network, for host memory. MFU is tokens per
# second x FLOPs per token / peak: measure yours in the first hundred steps and put it into the spec. The range is from
# llm-foundry's and torchtitan's published runs, with half of the attention counted, as here. MFU does not
# count what checkpointing computes again: with it a run shows a quarter less. Everything here is a comparison, not a
# promise: no data loading, no stragglers. The price per GPU and hour is an assumption of ours.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Bytes per parameter, and when they can travel

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


def on_network(bandwidth):
    base = example.but(network=bandwidth)
    plans = [plan(base.but(strategy=name)) for name in ("ddp", "zero1", "zero2", "zero3", "fsdp2")]
    return [*plans, plan(base.but(replicas=2))]


fast_network, slow = on_network(400.0), on_network(12.5)
print(traffic_table(fast_network))
sent = {one.name: one.speed.volume for one in fast_network}
assert sent["DDP"] > sent["ZeRO-1"], "two parts in fp32 are more than three in bf16"

# %% [markdown] slideshow={"slide_type": "-"}
# > fp32 gradients are why DDP's two parts are more bytes than ZeRO-1's three.

# %% [markdown] slideshow={"slide_type": "notes"}
# A step of four micro-batches. The columns are what is computed meanwhile. DDP: one all-reduce of fp32 gradients, 2 x
# 4. ZeRO-1: an all-reduce of bf16 gradients, 2 x 2, and the updated weights, 2, when nothing is computed. ZeRO-2
# reduces in every micro-batch, ZeRO-3 gathers for every pass as well. FSDP2 reduces once, under no_sync. HSDP, two
# replicas: the same inside a machine, and an all-reduce of an eighth between them. In the ZeRO paper stages 1 and 2
# send less; DeepSpeed all-reduces by default.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is reduced once hides behind one backward pass
#
# However many micro-batches came before: only the last backward can hide the sum.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
hybrid = example.but(network=12.5, replicas=2)
each = plan(hybrid, reduction=Reduction(each_batch=True))
exposed = plan(hybrid).speed.exposed
assert 0.9 < exposed < 1.2 and each.speed.exposed > 3.5 * exposed, "about one second, and four times that"
teach.show(figures.overlap([slow[1], plan(hybrid), each]))

# %% [markdown] slideshow={"slide_type": "notes"}
# 12.5 GB/s between two machines. A gradient is final only in the last backward pass. So a sum that is made once per
# step hides behind that one pass, a sixth of the computing here, however many micro-batches came before: HSDP waits
# about a second. Reducing in each micro-batch (sync_each_batch) sends four times as much and waits four times. Fewer,
# longer micro-batches would hide more. Exercise 15.1 is this picture with other numbers.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Communication counts where it does not hide
#
# On the fast network nearly everything hides; on the slow one waiting decides.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
assert min((one for one in slow if one.fits), key=lambda one: one.speed.step).name == "FSDP2 + 2 replicas"
teach.show(figures.step_times({"400 GB/s per machine": fast_network, "12.5 GB/s per machine": slow}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Same run, two networks. On the left nearly everything hides behind computing. On the right, 100 Gb/s, it does not:
# waiting is most of every bar but HSDP's, where it is a third. HSDP, replicas=2, shards inside each machine and only
# adds up gradients between them: the fastest that fits. DDP's bar is for comparison only.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One spec, many files
#
# | start it with | file | which machine am I? |
# |---|---|---|
# | a shell | `torchrun.sh`, `accelerate.sh` | `NODE_RANK=1 bash ...` |
# | SLURM | `slurm.sbatch` | `$SLURM_PROCID` |
# | Kubernetes | `trainjob.yaml` | `$PET_NODE_RANK` |
# | SkyPilot | `skypilot.yaml` | `$SKYPILOT_NODE_RANK` |
# | SageMaker | `sagemaker_v3.py` and two more | SageMaker says it |
# | Ray | `ray_train.py` | Ray starts the ranks |
#
# > How many machines, which one is this, where do all meet?

# %% slideshow={"slide_type": "skip"}
for name, word in {
    "slurm.sbatch": "$SLURM_PROCID",
    "trainjob.yaml": "$PET_NODE_RANK",
    "skypilot.yaml": "$SKYPILOT_NODE_RANK",
}.items():
    assert word in files[name] and "torchrun.sh" in files[name]
assert {"sagemaker_v3.py", "sagemaker_v2.py", "sagemaker_entry.py", "ray_train.py"} <= set(files)

# %% [markdown] slideshow={"slide_type": "notes"}
# render gives texts, write puts them into a folder, all or nothing. With ZeRO there are deepspeed.json, deepspeed.sh
# and a hostfile, too. SLURM, Kubernetes and SkyPilot set three variables and call the same torchrun.sh, so there is
# one place that can be wrong. Warn about SageMaker: SDK 3 stops a job after one hour unless told otherwise (SDK 2:
# one day), and it keeps only what lies in its own folders. No secrets in files: tokens come from the environment.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Rendezvous: how many, which one, where
#
# Three numbers bring the ranks together, and every scheduler provides them.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.rendezvous())

# %% [markdown] slideshow={"slide_type": "notes"}
# The ranks of several machines must find each other. Three things: how many machines, which one is this, where do all
# meet. Every scheduler on the slide before only provides these three. torchrun starts a process per GPU and tells
# each RANK, WORLD_SIZE, LOCAL_RANK; only node-rank differs between machines. This is the static form; with
# --rdzv-backend c10d master-addr is ignored. On one machine neither is needed: --standalone picks a free port.
# Exercise 15.3 is the function that gives each machine its command.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A job that comes back
#
# Warning, save, exit, requeue: the same command goes on from the newest checkpoint.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.requeue())

# %% [markdown] slideshow={"slide_type": "notes"}
# The warning comes before the limit. The ranks finish their step, save, end with code 0. Requeue puts the job into
# the queue again under its number; the same command reads the newest complete checkpoint. On SLURM the batch script
# gets USR1 two minutes before the end, and requeues only if something new was saved. torchrun itself would die of the
# signal, so torchrun.sh passes it to the ranks; one all-reduce per step settles who stops when. Outside srun,
# SLURM_PROCID is 0 everywhere: a hang. In the lesson a real FSDP2 run is stopped and started again, and its losses
# equal those of an undisturbed one; the tests submit the script to SLURM's own daemons, two nodes on one machine.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Do not parse: resolve
#
# Each file is read by the tool it is for, defaults included:

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
write(example, place)
rows = check(place)
batches = [row for row in rows if row.field == "effective batch"]
print(table(batches))
print(f"\n{len(rows)} settings resolved, {sum(not row.same for row in rows)} not as asked")
assert len(batches) >= 6 and all(row.same for row in rows)

# %% [markdown] slideshow={"slide_type": "notes"}
# A file that parses proves nothing. The shell scripts are executed with the launcher replaced by one that writes down
# its arguments; torchrun's own parser reads those; accelerate builds the plugin a rank would get; DeepSpeedConfig,
# TrainingArguments, shellcheck, Kubeflow's models and SkyPilot's schema do the rest. SageMaker and Ray are not
# installed and run against stand-ins. Same thing in a terminal: python -m course_utils.launch check launch, exit code
# 1 if anything differs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Accepted by the launcher, and not in use
#
# | in the file | asked | in use |
# |---|---|---|
# | FSDP1, `fsdp_reshard_after_forward` | keep weights | `FULL_SHARD` |
# | FSDP2, `fsdp_sharding_strategy` | keep weights | freed early |
# | no `fsdp_version` | FSDP2 | FSDP1 |
# | `fsdp_offload_params` in `fsdp.json` | offload | none |
# | `rdzv_backend` in the YAML | c10d | the default: static |
# | `num_processes: 16`, 3 x 6 GPUs | 18 ranks | 15 |
# | layer classes as a YAML list | 1 class | 1 odd name |
# | `dp_replicate_size`, no prefix | 2 replicas | 1 |

# %% slideshow={"slide_type": "skip"}
found, heard = faults.gallery()
assert heard == [] and not any(row.same for row in found.values())
in_use = [row.resolved for row in found.values()]
assert in_use[:6] == ["FULL_SHARD", True, "fsdp1", False, ["rdzv_backend"], 15], in_use  # the table above
assert in_use[6:] == [["['Qwen3DecoderLayer']"], [1, 1, 1, 1]], in_use
scratch.cleanup()

# %% [markdown] slideshow={"slide_type": "notes"}
# One edit each to a good file, planted and resolved when this deck was built. The launcher accepts all eight, and
# nothing warns. With the last two the ranks stop, after the queue (accelerate splits a string of class names at commas;
# a list becomes its own text); with the other six they train on. With 16 processes on three machines accelerate rounds
# down to 5 each: three GPUs idle, and the learning rate was tuned for another batch. Exercises 15.4 to 15.6 are three
# broken files of this kind. Anybody's own files: python -m course_utils.launch explain FILE, exercise 15.7.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Run here what you will run there
#
# ```python
# spec = example.but(model="course/causal", strategy="zero3", ...)
# seen = run_here(spec, "accelerate.sh")        # bash, 2 CPU processes
#
# assert seen["world_size"] == 2                # not 2 x 1
# assert seen["strategy"] == "zero3"            # what trains, not the YAML
# assert seen["parameters_held"] == [half] * 2  # the plan's, to the number
# assert seen["effective_batch"] == 16
# ```
#
# - the same generated scripts; `gloo` instead of NCCL
# - ZeRO-3, and FSDP2 stopped and resumed: **equal losses**

# %% [markdown] slideshow={"slide_type": "notes"}
# Run section 7 live; it takes a few seconds. The program writes down what its ranks see, because exit code 0 proves
# nothing. Each rank holds half of the weights and half of the moments, exactly what the planner says. Equal losses,
# within 1e-4, across two strategies, two launchers and an interruption: in fp32 sharding changes where numbers live and
# the order of sums, no more. It says nothing of bf16, of NCCL or a network. On the real cluster look at the same four
# in the first minute: world size, wrapper, shard, batch.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The last cell writes your run
#
# ```bash
# papermill notebooks/15_launch.ipynb out.ipynb \
#     -p model Qwen/Qwen3-8B -p num_nodes 2 -p gpus_per_node 8
# ```
#
# 1. the **plan**: fits or not, and the cheapest change that makes it fit
# 2. the folder `launch/`, complete or not at all
# 3. **asked, resolved, same** for every setting
#
# > After every edit by hand: `python -m course_utils.launch check launch`

# %% [markdown] slideshow={"slide_type": "notes"}
# Put your own model, machines and data into the parameters cell, run all, or use this command. Files of an earlier
# run are replaced; a folder that holds anything else is refused. Without a notebook: python -m course_utils.launch
# plan, write, check. Exit code 1 means that it does not fit, or that a file differs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - **15.1** Predict what a step waits for
# - **15.2** Plan a 7B model over a slow network
# - **15.3** One function, every machine's torchrun command
# - **15.4** Repair an accelerate YAML (15.5 to 15.7: two more, and a file of your own)
# - **15.8** What went wrong? From run.json and a log
# - **15.9** Plan a run, and write its files
#
# > Quiz: which four facts do you want to see before you believe that it is sharded?

# %% [markdown] slideshow={"slide_type": "notes"}
# 30 minutes for 15.1, 15.3, 15.4, 15.8 and 15.9; the others go further. The tools themselves judge: accelerate,
# TrainingArguments, DeepSpeedConfig, torchrun. In 15.2 let them look at what the best default plan waits for. Answer to
# the quiz: world size, the wrapper's class, parameters held by one rank against those of the model, the effective
# batch, all from inside the program. This is the last lesson.
