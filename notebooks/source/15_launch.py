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
# # 15 · Launch: from this notebook to a cluster
#
# Your training program works. Now it has to run on eight GPUs, or on sixteen in two machines, and every hour costs
# money. Two things go wrong on that way. The run does not fit, which you learn after an hour in the queue. Or it
# starts, trains and ends with exit code 0, and was never the run you asked for.
#
# This lesson is about knowing both beforehand. First you compute what a run needs. Then you write the files that
# start it, and ask each tool what it makes of its file. What can run here is run here.
#
# **You will be able to**
# - say what lies in a GPU's memory during a step, in bytes, and choose a strategy that fits;
# - estimate tokens per second and cost, and say which assumption the estimate hangs on;
# - write launch files for torchrun, accelerate, DeepSpeed, SLURM, SageMaker, Kubernetes, SkyPilot and Ray;
# - prove that a file resolves to what you asked, and recognise six settings that are silently ignored;
# - survive pre-emption, and compare the Trainer with PyTorch Lightning by measurement.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (accumulation, effective batch) and 03 (Trainer).
#
# The cell below describes *your* run. The last cell of this notebook writes its launch files into the folder
# `launch`.

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 1000  # optimizer steps of your run
seed = 0
model = "Qwen/Qwen3-0.6B"  # a hub name, or a folder with config.json
strategy = "fsdp2"  # ddp, fsdp1 (deprecated), fsdp2, zero1, zero2, zero3
num_nodes = 1  # machines
gpus_per_node = 8
gpu = "H100-80GB"  # the kind of GPU
precision = "bf16"  # fp32, bf16, fp16, bf16_weights
micro_batch = 1  # sequences per GPU and forward pass
global_batch = 64  # sequences per optimizer step, over all GPUs
sequence_length = 2048  # tokens
checkpointing = False  # recompute activations in the backward pass
price = None  # $ for one GPU and hour
arguments = ["--train_file=data/train.jsonl"]  # your program's own, in the first place its data
more = {}  # any other field of the spec, such as {"lora_rank": 16, "partition": "gpu"}
folder = "launch"  # where the last cell writes the launch files

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · One description of the run
#
# A run on a cluster is described in many places: flags of the program, a YAML file, a JSON file, a job script. Each
# can contradict the others, and mostly nothing complains. So we describe the run once, in one typed object, and
# derive everything else from it. This is yours:

# %%
from pathlib import Path

from course_utils.launch import Spec
from course_utils.launch.files.write import refuse_to_lose
from course_utils.models.configs import shape_of
from course_utils.models.shapes import parameter_count

given = {"model": model, "strategy": strategy, "nodes": num_nodes, "gpus_per_node": gpus_per_node, "gpu": gpu}
given |= {"precision": precision, "micro_batch": micro_batch, "global_batch": global_batch, "max_steps": max_steps}
given |= {"sequence_length": sequence_length, "checkpointing": checkpointing, "price": price}
given |= {"arguments": tuple(arguments)}
yours = Spec(**given | more)

root = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
refuse_to_lose(root / folder, overwrite=True)  # better now than in the last cell
print(f"{parameter_count(shape_of(yours.model)):,} parameters on {yours.world_size} GPUs")

# %% [markdown]
# A spec says what is wrong with it before any work starts, in one sentence with the field, the value and what is
# allowed. That holds for a single value and for two that contradict each other:

# %%
from course_utils.launch import SpecError

for changes in ({"strategy": "zero4"}, {"global_batch": 100}, {"strategy": "zero2", "offload": "all"}):
    try:
        Spec(nodes=2, gpus_per_node=8, **changes)
    except SpecError as error:
        print(error)

# %% [markdown]
# The lesson itself speaks of one example: Qwen3-8B, full fine-tuning on two machines with eight GPUs each. The price
# is an assumption. The most important number is the **effective batch**: sequences per optimizer step. It is
# micro-batch x accumulation x data-parallel GPUs, and it must be the same in every file.

# %%
example = Spec(model="Qwen/Qwen3-8B", nodes=2, global_batch=64, sequence_length=4096, price=3.0)
shape, gpus = shape_of(example.model), example.world_size
psi = parameter_count(shape)
print(f"{psi:,} parameters, {gpus} GPUs, accumulation {example.accumulation_steps}")
assert example.effective_batch == example.micro_batch * example.accumulation_steps * gpus == 64

# %% [markdown]
# Section 8 trains on lesson 01's sentences. They are loaded now, so that a hub that cannot be reached is named now:

# %%
from course_utils.data import load_classification

dataset = load_classification(source)
print(f"{len(dataset['train']):,} sentences")

# %% [markdown]
# Each process of such a run drives one GPU and is called a **rank**; their number is the **world size**. Two ranks
# run the same program on different sequences and exchange gradients, so that they make the same optimizer step.
#
# They exchange numbers in **collectives**, calls that all ranks make together. Three are enough here. **All-reduce**:
# every rank ends with the sum of what all ranks had. **Reduce-scatter**: each ends with its own slice of that sum.
# **All-gather**: each ends with everybody's slices. NCCL is the library that does it on GPUs, gloo the one for CPUs.
#
# ## 2 · Does it fit?
#
# ### State: what every parameter costs
#
# Training needs, for each parameter, its value, its gradient, and AdamW's two moments (lesson 01). In 32 bits that is
# $4 + 4 + 8 = 16$ bytes. Under `bf16` autocast it stays 16: only copies of the weights are 16-bit, and they come and
# go.
#
# In plain data parallelism (**DDP**) every GPU holds all of it. The sharding strategies divide it by the number of
# GPUs $N$, each one part more than its predecessor (Rajbhandari et al. 2020, "ZeRO", figure 1):
#
# | strategy | weights | gradients | optimizer | bytes per parameter |
# |---|---|---|---|---|
# | DDP | whole | whole | whole | $4 + 4 + 8$ |
# | ZeRO-1 | whole, bf16 | whole, bf16 | shard: fp32 weights + moments | $2 + 2 + 12/N$ |
# | ZeRO-2 | whole, bf16 | shard | shard | $2 + 14/N$ |
# | ZeRO-3 | shard | shard | shard | $16/N$ |
# | FSDP2 | shard, fp32 | shard, fp32 | shard | $16/N$ |
#
# (At the update DeepSpeed casts its part of the 16-bit gradients to fp32: $4/N$ more, for that moment.) By hand:

# %%
GIB = 2**30
per_parameter = {
    "ddp": 4 + 4 + 8,
    "zero1": 2 + 2 + 12 / gpus,
    "zero2": 2 + 14 / gpus,
    "zero3": 16 / gpus,
    "fsdp2": 16 / gpus,
}
by_hand = {name: psi * size / GIB for name, size in per_parameter.items()}
for name, size in by_hand.items():
    print(f"{name:6} {size:6.1f} GiB of state on each GPU")

# %% [markdown]
# A GPU of the kind we rent has about 80 GiB. DDP is out before a single activation is stored. The planner in
# `course_utils.launch` does the same sum. It must agree:

# %%
from course_utils.launch.planner import memory

STATE = (memory.weights, memory.gradients, memory.optimizer, memory.master_copies)
for name, size in by_hand.items():
    spec = example.but(strategy=name)
    planned = sum(part(spec, memory.parameters(spec, shape)) for part in STATE) / GIB
    assert abs(planned / size - 1) < 1e-3, name
print("the planner agrees for:", ", ".join(by_hand))

# %% [markdown]
# ### Gathered units: sharded weights must be whole to be used
#
# A layer cannot be computed from a sixteenth of its weights. So FSDP and ZeRO-3 gather one **unit** at a time,
# usually a transformer layer, compute, and free it again. While one layer computes, the next one is fetched. In the
# backward pass a whole gradient of one unit exists until it is reduced and sharded. Outside the layers, embedding and
# output layer are a unit each (one, where they share a matrix). With a vocabulary of 150,000 they are the largest.
#
# The planner gives bytes at four moments of a step: `loss`, when the loss is differentiated; `last layer` and `first
# layer`, when the backward pass enters and leaves the layers; `step`, the optimizer's update. At `loss` the output
# layer is what is gathered:

# %%
from course_utils.launch.planner.plan import plan
from course_utils.models.shapes import layer_parameters

of_vocabulary = shape.vocab_size * shape.hidden_size
units = {"a layer": layer_parameters(shape), "embedding": of_vocabulary, "output layer": of_vocabulary}
for name, count in units.items():
    print(f"{name}: {count / 1e6:,.0f} M parameters, {2 * count / GIB:.2f} GiB gathered in bf16")
at_loss = plan(example).moments["loss"]["gathered units"]
assert not shape.tie_word_embeddings and abs(at_loss / (2 * units["output layer"]) - 1) < 1e-3

# %% [markdown]
# Two more of this kind. With **accumulation**, FSDP adds up whole gradients over the micro-batches and reduces them
# once (`no_sync`): 2 bytes per parameter that no shard count divides. The alternative is to reduce in every
# micro-batch, as ZeRO-2 and ZeRO-3 do, and to pay in traffic. DDP has **buckets**: a second copy of all gradients, in
# the order in which they are sent.

# %%
for g in (16, 64):
    one = plan(example.but(global_batch=g))
    waiting = one.moments["loss"]["whole gradients"]
    print(f"accumulation {one.spec.accumulation_steps}: {waiting / GIB:4.1f} GiB of whole gradients")
    assert waiting == (2 * psi if one.spec.accumulation_steps > 1 else 0)

# %% [markdown]
# ### Activations: what the forward pass leaves for the backward pass
#
# Autograd keeps the inputs of almost every operation. The classic count for a GPT layer in 16 bits, with $s$ tokens,
# batch $b$, width $h$ and $a$ heads, is $s\,b\,h\,(34 + 5\,a\,s/h)$ bytes (Korthikanti et al. 2022, equation 1).
# Today's layers differ: attention kernels that recompute the scores remove the $5as/h$ term, there is no dropout, and
# a gated MLP keeps four wide tensors. So count again, per token, for our layer:

# %%
h, f = shape.hidden_size, shape.intermediate_size
q, kv, heads = shape.query_size, shape.key_value_size, shape.num_attention_heads
kept = {
    "two norms: input in fp32, normalised in bf16": 2 * h * (4 + 2),
    "inputs of the projections": 2 * h * 2,
    "queries, keys, values, attention's output": 2 * (2 * q + 2 * kv),
    "one number per head instead of the scores": 4 * heads,
    "norms of queries and keys": (q + kv) * (4 + 2),
    "MLP: gate, up, activated gate, product": 4 * f * 2,
}
per_token = sum(kept.values())
print(f"{per_token:,} bytes per token and layer")

# %% [markdown]
# The planner counts the same tensors, and we compare its count with the classic formula:

# %%
from course_utils.launch.planner import activations

assert activations.layer(example, shape, masked=False) == per_token
s = example.sequence_length
classic = h * (34 + 5 * heads * s / h)
print(f"planner: the same number. Classic formula: {classic:,.0f}, {classic / per_token:.1f} times as much")
print(f"all layers, {s} tokens: {per_token * s * shape.num_hidden_layers / GIB:.1f} GiB")

# %% [markdown]
# **Checkpointing** keeps only each layer's input, $2h$ bytes per token, and runs a layer's forward pass again when
# its backward pass needs the rest. One layer is then complete at a time. The price is a second forward pass: about a
# third more computing. (A plan's `speed` is explained in section 3.)

# %%
for recompute in (False, True):
    one = plan(example.but(checkpointing=recompute))
    forward = one.moments["loss"]["activations"] / GIB
    print(f"checkpointing {recompute}: {forward:5.1f} GiB of activations, a step of {one.speed.step:.2f} s")
assert abs(one.speed.compute / plan(example).speed.compute - 4 / 3) < 0.01

# %% [markdown]
# ### Logits: the peak that nobody plans for
#
# The scores over the vocabulary are `tokens x vocabulary`, the loss computes in fp32, and its backward pass holds
# three such tensors: 12 bytes per score. That happens once per forward pass, not per layer, and it is still large:

# %%
logits = 12 * s * shape.vocab_size
print(f"{logits / GIB:.1f} GiB for a single sequence of {s} tokens")
assert plan(example).moments["loss"]["logits"] == logits

# %% [markdown]
# ### Moments, not one sum
#
# Activations are largest when the loss is computed, and gradients when they are gone. Adding up the maxima would
# refuse runs that fit. So of the four moments the largest counts. The **margin** is an
# assumption: 0.8 GiB for the CUDA context and communication buffers, 5% for the allocator's fragmentation.

# %%
from course_utils.launch.planner.report import plan_table, verdict

print(plan_table(plan(example)))

# %% [markdown]
# Where a run does not fit, the planner searches for the cheapest change, in the order in which changes hurt: a
# smaller micro-batch, more sharding, checkpointing, offload to host memory, more machines, LoRA.

# %%
print(verdict(plan(example.but(strategy="ddp"))))
print(verdict(plan(example.but(nodes=1, gpu="A100-40GB"))))

# %% [markdown]
# ### Every strategy at once
#
# All strategies for the same run on the same machines, those that fit first, the fastest first:

# %%
from course_utils.launch import strategies
from course_utils.launch.planner.report import strategies_table

print(strategies_table(strategies(example)))

# %%
from course_utils.lessons.lesson_15 import figures

teach.show(
    figures.strategy_memory(strategies(example)),
    alt="Stacked memory of one GPU per strategy, with the GPU's limit as a line. DDP needs several times the limit, "
    "most of it state. With ZeRO-3 and FSDP2 the state is small, and activations and logits are most of what is left.",
)

# %% [markdown]
# And the four moments of one of these bars: activations go while gradients come.

# %%
teach.show(
    figures.step_memory(plan(example)),
    alt="Memory at four moments of a step under FSDP2. It is largest when the loss is differentiated, with all "
    "activations and the logits, shrinks through the backward pass, and is smallest at the optimizer step.",
)

# %% [markdown]
# ### Is the plan true?
#
# A sum is worth what its measurement says. There is no H100 here, and none is needed to count bytes. Under torch's
# `FakeTensorMode` tensors have shapes and types but no storage; `MemTracker` follows every allocation of a real
# model's real step and says what it is for. `FSDPMemTracker` does the same for one rank of a sharded model, with a
# process group in which nobody else exists. A Qwen3 of 3 layers, two strategies:

# %%
from transformers import Qwen3Config

from course_utils.launch.planner.measured import measured_shard, measured_step

sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 3, "vocab_size": 16000}
sizes |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "use_cache": False}
config = Qwen3Config(**sizes, tie_word_embeddings=True)
small = Spec(micro_batch=2, sequence_length=1024)
cases = {
    "DDP, one GPU": (small.but(strategy="ddp", gpus_per_node=1), measured_step),
    "FSDP2, rank 0 of 8": (small.but(strategy="fsdp2"), measured_shard),
    "the same, accumulation 2": (small.but(strategy="fsdp2", accumulation=2), measured_shard),
}


# %%
def compare(spec, measure):
    """Measured / planned bytes: of the state, and of everything else at the tightest moment."""
    found = measure(spec, config)
    one = plan(spec.but(model=found.shape))
    state = found.weights + found.gradients + found.optimizer
    planned = sum(part(one.spec, memory.parameters(one.spec, found.shape)) for part in STATE)
    working = ("whole gradients", "gathered units", "autocast copies", "activations", "logits")
    return state / planned, found.working / sum(one.memory[part] for part in working)


for name, (spec, measure) in cases.items():
    state, working = compare(spec, measure)
    print(f"{name:24} measured / planned: state {state:.3f}, everything else {working:.2f}")
    assert abs(state - 1) < 0.01 and abs(working - 1) < 0.05

# %% [markdown]
# The state is exact, and the rest is within the 5% that the margin leaves. The third case is the whole gradients of
# accumulation, counted in a real run of two micro-batches.
#
# ### Other estimators
#
# accelerate and DeepSpeed bring estimators of their own. Side by side for the same run under ZeRO-3:

# %%
from course_utils.launch.planner.compare import compare_estimators, comparison_table

estimates = compare_estimators(example.but(strategy="zero3"))
print(comparison_table(estimates))

# %% [markdown]
# Read the last column first. `accelerate estimate-memory` knows the model and nothing of the run: its answer is the
# same for DDP, which needs several times as much, and it moves with no sequence length. DeepSpeed's estimator takes
# 18 bytes per parameter, sharded, and one gathered layer. Ours says 20 at the update: $2 + 2 + 12$, and the gradients
# cast to fp32. Close, and both without a single activation, which is most of this run. Neither tool says whether the
# run fits.

# %%
whole, state_only, accelerate_says, deepspeed_says = (one.gpu for one in estimates)
print("planned / DeepSpeed's estimate:", round(whole / deepspeed_says, 1))
assert whole > 2 * deepspeed_says and accelerate_says > whole
assert deepspeed_says == 4 * of_vocabulary + 18 * psi // gpus and abs(state_only / (20 * psi / gpus) - 1) < 1e-3

# %% [markdown]
# ## 3 · How fast, and at what cost?
#
# ### Computing
#
# A matrix multiplication with $N$ weights costs $2N$ operations per token forward and $4N$ backward (once for the
# gradient of the input, once for that of the weights). Attention adds $12\,L\,h_q\,T$ for $L$ layers, query width
# $h_q$ and $T$ tokens, half of it where a token sees only what stands before it (Chowdhery et al. 2022, "PaLM",
# appendix B). The embedding is a look-up and costs nothing.

# %%
from course_utils.launch.planner import speed

matrices = psi - shape.vocab_size * h - shape.other - shape.num_hidden_layers * shape.layer_other
flops = 6 * matrices + 12 * shape.num_hidden_layers * q * s / 2
print(f"{flops / 1e9:.1f} GFLOP per token")
assert abs(flops / speed.flops_per_token(example, shape) - 1) < 1e-6

# %% [markdown]
# The time follows from the GPU's peak and from the **MFU** (model FLOPs utilisation), the share of the peak that a
# real run reaches: 0.3 to 0.5 for well-tuned training of dense models. It is *the* assumption of every such estimate.
# If you have measured yours, put it into the spec. MFU does not count what checkpointing computes a second time. So
# give the spec the MFU without recomputation (a third more than what a run with it shows); the planner adds the
# repeated work to the time.

# %%
from course_utils.gpus import GPUS

tokens = example.effective_batch * s
peak = GPUS[example.gpu].peak * 1e12  # operations per second, dense, 16 bit
seconds = tokens * flops / (gpus * peak * example.mfu)
print(f"{tokens:,} tokens per step: {seconds:.2f} s of computing on {gpus} GPUs at MFU {example.mfu}")
assert abs(seconds / plan(example).speed.compute - 1) < 1e-6
again = plan(example.but(checkpointing=True))
shown = tokens * flops / (gpus * peak * again.speed.compute)
print(f"with checkpointing {again.speed.compute:.2f} s, and a measured MFU would say {shown:.2f}")
assert abs(shown - 0.75 * example.mfu) < 0.005

# %% [markdown]
# MFU can be measured anywhere: tokens per second x FLOPs per token / peak. For the peak of this machine we take what
# a large matrix multiplication reaches. (On a busy laptop the result is worth little, as any timing is.)

# %%
import time

import torch

from course_utils.models import load_causal_lm
from course_utils.models.configs import shape_of_model


def fastest(work, repeats=20):
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


# %% tags=["nbval-ignore-output"]
tiny = load_causal_lm()
ids = torch.randint(5, 4000, (4, 128))
tiny_spec = Spec(strategy="ddp", gpus_per_node=1, sequence_length=128, micro_batch=4, precision="fp32")
per_step = 4 * 128 * speed.flops_per_token(tiny_spec, shape_of_model(tiny, tiny.config))
step_time = fastest(lambda: tiny(input_ids=ids, labels=ids).loss.backward())
square = torch.randn(1024, 1024)
cpu_peak = 2 * 1024**3 / fastest(lambda: square @ square)
mfu = per_step / step_time / cpu_peak
print(f"peak {cpu_peak / 1e9:.0f} GFLOP/s, tiny model {per_step / step_time / 1e9:.0f} GFLOP/s: MFU {mfu:.2f}")
assert 0 < mfu < 3  # 1 is the limit where nothing else runs

# %% [markdown]
# ### Communicating
#
# Per optimizer step, in multiples of the parameters $\Psi$ and with $g$ micro-batches:
#
# | strategy | sent | why |
# |---|---|---|
# | DDP | $2\,\Psi$ | one all-reduce of the gradients |
# | ZeRO-1 | $3\,\Psi$ | one all-reduce of the gradients, then gather the updated weights |
# | ZeRO-2 | $(2g + 1)\,\Psi$ | gradients are sharded, so they are reduced every time |
# | ZeRO-3 | $3\,g\,\Psi$ | gather weights for forward and backward, reduce |
# | FSDP2 | $(2g + 1)\,\Psi$ | gathers like ZeRO-3, but reduces once |
#
# The ZeRO paper would need $2\,\Psi$ and $(g + 1)\,\Psi$ in stages 1 and 2, with a reduce-scatter that gives each rank
# only its part. DeepSpeed all-reduces by default (`use_multi_rank_bucket_allreduce`), which sends twice as much; a
# test of this project counts its calls.
#
# A ring of $n$ GPUs needs $\frac{n-1}{n} S/B$ seconds for $S$ bytes at bandwidth $B$, plus a latency per message; an
# all-reduce needs twice that. While a layer computes, the next one can travel. So what counts is not the volume but
# what does *not* hide behind computing. Between machines that depends on the network. The same run on two networks,
# and one remedy: **HSDP** (`replicas=2`) shards inside each machine and only adds up gradients between them.

# %%


def on_network(bandwidth):
    """Plans in a fixed order, without offload."""
    base = example.but(network=bandwidth)
    plans = [plan(base.but(strategy=name)) for name in ("ddp", "zero1", "zero2", "zero3", "fsdp2")]
    return [*plans, plan(base.but(reshard_after_forward=False)), plan(base.but(replicas=2))]


teach.show(
    figures.step_times({"400 GB/s per machine": on_network(400.0), "12.5 GB/s per machine": on_network(12.5)}),
    alt="Time of a step per strategy on two networks. On the fast one only DDP visibly waits. On the slow one waiting "
    "is most of every bar except FSDP2 with two replicas, which does not wait at all.",
)

# %%
slow = {one.name: one for one in on_network(12.5)}
steps = {name: one.speed.step for name, one in slow.items() if one.fits}
print("fits and is fastest on the slow network:", min(steps, key=steps.get))
assert min(steps, key=steps.get) == "FSDP2 + 2 replicas" and steps["ZeRO-2"] > steps["FSDP2"]
waiting = {name for name, one in slow.items() if one.speed.exposed > one.speed.step / 2}
assert waiting == set(slow) - {"FSDP2 + 2 replicas"} and slow["FSDP2 + 2 replicas"].speed.exposed == 0

# %% [markdown]
# ### Offload, and what an hour buys
#
# Offload moves optimizer state, or everything, into host memory. It saves GPU memory and costs two waits: gradients
# and weights cross PCIe, and AdamW runs on the processor. Use it for what fits in no other way.
#
# The cost is GPUs x hours x price. On the same machines the fastest strategy is the cheapest. Twice the machines cost
# the same as long as nobody waits, because they need half the time. On a slower network somebody waits:

# %%
costs = []
for nodes in (2, 4, 8):
    fast, slow = (plan(example.but(nodes=nodes, network=network)).speed for network in (400.0, 50.0))
    print(
        f"{nodes} machines: {fast.hours:.2f} h, ${fast.cost:.0f} | slower network: {slow.hours:.2f} h, ${slow.cost:.0f}"
    )
    costs.append((fast.cost, slow.cost))
of_fast, of_slow = zip(*costs, strict=True)
assert max(of_fast) < 1.01 * min(of_fast) and list(of_slow) == sorted(of_slow) and of_slow[-1] > 1.5 * of_slow[0]

# %% [markdown]
# Read such numbers as a comparison, not as a promise: the planner knows nothing of data loading, stragglers or a
# congested network. Measure the first hundred steps.
#
# ## 4 · The launch files
#
# `render` turns a spec into texts, `write` puts them into a folder. Nothing is written unless everything could be
# rendered, and a folder that holds anything else is refused.

# %%
from course_utils.launch import render

files = render(example)
for name, text in files.items():
    print(f"{len(text.splitlines()):4} lines  launch/{name}")


# %%
def excerpt(name, first, last, texts=files):
    """Lines of a file, from the one that begins with `first` to the next that begins with `last`."""
    lines = texts[name].splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(i for i, line in enumerate(lines[start:], start) if line.strip().startswith(last))
    print("\n".join(lines[start : stop + 1]))


# %% [markdown]
# ### torchrun: the same line on every machine
#
# `torchrun` starts one process per GPU and tells each who it is: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`. The ranks of
# several machines must find each other. That is the **rendezvous**, and it takes three things: how many machines
# there are, which one this is, and an address at which all of them meet, which is always machine 0.

# %%
excerpt("torchrun.sh", "NODE_RANK=", "MASTER_PORT=")
excerpt("torchrun.sh", "command=(", "course_utils")

# %% [markdown]
# This is the **static** form: ranks are fixed. The other one, `--rdzv-backend c10d --rdzv-endpoint HOST:PORT`,
# numbers the machines as they arrive. With `--nnodes=MIN:MAX --max-restarts=N` it can start again with fewer; by
# default it never restarts. Do not mix the two forms: `--master-addr` is read by the static one only. On one machine
# neither is needed, `--standalone` picks a free port.
#
# Then come the program's arguments. Everything that the spec decides is here, also what equals a default today:

# %%
excerpt("torchrun.sh", "--per_device_train_batch_size", '"--fsdp_config')

# %% [markdown]
# ### accelerate: a YAML file and a line that starts it
#
# `accelerate launch` reads most settings from a file and passes them on in environment variables. Comments say what
# is not obvious. Note what is *not* in this file: section 9 shows why.

# %%
excerpt("accelerate.yaml", "distributed_type", "fsdp_offload_params")

# %%
excerpt("accelerate.sh", "accelerate launch", "--same_network")

# %% [markdown]
# The keys of `fsdp_config` depend on the version. The sharding keys of the other version are accepted without a word.
# (Not all are: `fsdp_backward_prefetch` under FSDP2 is warned about, and `LOCAL_STATE_DICT` raises.)
#
# | what | FSDP1 | FSDP2 |
# |---|---|---|
# | free gathered weights early: yes | `fsdp_sharding_strategy: FULL_SHARD` | `fsdp_reshard_after_forward: true` |
# | no, keep them (as ZeRO-2 does) | `fsdp_sharding_strategy: SHARD_GRAD_OP` | `fsdp_reshard_after_forward: false` |
# | checkpoints | `FULL_`, `LOCAL_`, `SHARDED_STATE_DICT` | `SHARDED_STATE_DICT` or `FULL_STATE_DICT` |
# | `fsdp_backward_prefetch`, `fsdp_use_orig_params`, `fsdp_sync_module_states` | read | gone |
#
# Start new runs with FSDP2: transformers 5 calls FSDP1 deprecated, with a warning whenever it is used, and announces
# its removal.
#
# `TrainingArguments` has names of its own for the same settings, without a prefix. Under torchrun it reads them from
# `fsdp.json`:

# %%
print(files["fsdp.json"])

# %% [markdown]
# ### DeepSpeed: JSON and a hostfile
#
# The three batch sizes must multiply out: `train_batch_size` = micro-batch x accumulation x ranks. Everything is a
# number here. `"auto"` works only where the Hugging Face integration fills it in, and then you cannot read in the
# file what the run does.

# %%
zero_files = render(example.but(strategy="zero3", offload="optimizer"))
print(zero_files["deepspeed.json"])

# %% [markdown]
# The `deepspeed` launcher starts all machines from one over ssh, or, as here, one machine at a time without it. The
# hostfile names machines and processes. If it is missing, DeepSpeed warns and runs on this machine alone.

# %%
print(zero_files["hostfile"])
excerpt("deepspeed.sh", "deepspeed", "course_utils", zero_files)

# %% [markdown]
# ### SLURM: a job that comes back
#
# A job script is a shell script with a header that SLURM reads. Three lines of the header matter for a run that is
# longer than its time limit: `--signal` sends a warning before the end, `--requeue` allows the job to be queued again
# under its number, and `--open-mode=append` keeps the log of the first stay.

# %%
excerpt("slurm.sbatch", "#SBATCH --job-name", "#SBATCH --open-mode")

# %% [markdown]
# Below the header stands one trap that hangs jobs on many clusters. The rank of a machine is `SLURM_PROCID` *inside*
# `srun`. In the batch script, which runs once on the first machine, it is 0, and that 0 would be handed to every
# machine: all of them wait for number 1. Hence the single quotes:

# %%
excerpt("slurm.sbatch", "read -r MASTER_ADDR", "export MASTER_ADDR")
excerpt("slurm.sbatch", "export SRUN_CPUS", "export SRUN_CPUS")
excerpt("slurm.sbatch", "srun --kill", "srun --kill")

# %% [markdown]
# ### SageMaker
#
# SageMaker copies the project into a container, starts an entry script on every machine and uploads what lies in the
# model folder at the end. It speaks in environment variables: `SM_HPS` holds the hyperparameters as JSON,
# `SM_CHANNEL_TRAINING` the folder of the data channel called `training`, `SM_MODEL_DIR` the folder that becomes
# `model.tar.gz`. SDK 3 replaced the estimators of SDK 2 by `ModelTrainer`; there is a file for each.

# %%
excerpt("sagemaker_v3.py", "compute=Compute(", "checkpoint_config")

# %%
excerpt("sagemaker_entry.py", "def in_channel", "return option")

# %% [markdown]
# SDK 3 stops a job after one hour unless told otherwise (SDK 2: one day), and what is kept is what lies in one folder:
# forget either and the run is lost. Roles, buckets and images are arguments of the script, not part of it.
#
# ### Kubernetes: a TrainJob
#
# Kubeflow Trainer starts one pod per machine from a `TrainJob`. It puts the rendezvous into `PET_*` variables, which
# torchrun reads by itself. We hand them to `torchrun.sh`, so that there is one way to start a machine:

# %%
excerpt("trainjob.yaml", "numNodes", "args:")

# %% [markdown]
# ### SkyPilot and Ray
#
# SkyPilot rents machines from whoever has them, copies the project and runs the same commands on each. Their disks are
# their own: a run on several machines can only be resumed if the output folder is a mounted bucket or a shared disk.
# The rest is again who am I and where do we meet:

# %%
excerpt("skypilot.yaml", "run: |", "export NODE_RANK")

# %% [markdown]
# Ray Train starts the ranks itself; there is no torchrun. Each worker runs a function, which runs the program in its
# own process, with the environment that a launcher would have given it:

# %%
excerpt("ray_train.py", "scaling_config=", "failure_config")

# %% [markdown]
# ## 5 · Asked, resolved, same?
#
# A file that parses is not a file that does what you meant. So each one is **resolved** by the tool it is for,
# defaults and environment variables included. torchrun's parser reads the command that the shell script really makes.
# accelerate reads its YAML, validates it and builds the plugin a rank would get. `TrainingArguments` and
# `DeepSpeedConfig` are built, shellcheck reads the scripts. The TrainJob goes through Kubeflow's own models, the
# SkyPilot file through SkyPilot's schema. SageMaker's and Ray's packages are not installed here; their scripts run
# against stand-ins that take the keywords of the released classes and refuse others. Then field by field:

# %%
from tempfile import TemporaryDirectory

from course_utils.launch import table, write
from course_utils.launch.check.folder import check

scratch = TemporaryDirectory()
place = Path(scratch.name)
write(example, place / "launch")
rows = check(place / "launch")
print(len(rows), "settings resolved,", sum(not row.same for row in rows), "not as asked")
assert rows and all(row.same for row in rows)

# %% [markdown]
# An excerpt. "World size" in the first line is not the number in a file: it is what torchrun computed from the
# script.

# %%
fields = ("world size", "strategy", "reshard after forward")
print(table([row for row in rows if row.field in fields]))

# %% [markdown]
# The effective batch is the same in every file:

# %%
batches = {row.file: row.resolved for row in rows if row.field == "effective batch"}
print(batches)
assert set(batches.values()) == {example.effective_batch} and len(batches) >= 2

# %% [markdown]
# And the other strategies? Each has an `accelerate.yaml` of its own, the ZeRO stages `deepspeed.json`, `deepspeed.sh`
# and a hostfile besides. Here are the lines in which each YAML differs from FSDP2's, and whether everything that the
# launchers read resolves to what was asked:

# %%
import logging
import warnings
from unittest import mock

from transformers import training_args

from course_utils.launch.check import launchers


def resolve(spec):
    """The check's rows of the written files, and what all tools say meanwhile, be they made quiet or not."""
    heard = []
    loud = mock.patch.object(logging.Logger, "isEnabledFor", lambda self, level: level >= logging.WARNING)
    listen = mock.patch.object(logging.Logger, "callHandlers", lambda self, said: heard.append(said.getMessage()))
    fsdp1 = mock.patch.object(training_args.logger, "warning", heard.append)  # that it is deprecated
    with warnings.catch_warnings(record=True) as caught, loud, listen, fsdp1:
        warnings.simplefilter("always")
        rows = launchers.rows(spec, place / "launch")
    return rows, heard + [str(warning.message) for warning in caught]


def settings_of(text):
    return [line.split("  #")[0] for line in text.splitlines()]


for strategy_name in ("ddp", "fsdp1", "zero1", "zero2", "zero3"):
    other = example.but(strategy=strategy_name)
    write(other, place / "launch", overwrite=True)
    found, said = resolve(other)
    print(f"{strategy_name}: {len({row.file for row in found})} files, all as asked: {all(row.same for row in found)}")
    known = settings_of(files["accelerate.yaml"])
    print(*(f"    {line}" for line in settings_of(render(other)["accelerate.yaml"]) if line not in known), sep="\n")
    assert {row.resolved for row in found if row.field == "strategy"} == {strategy_name}
    assert all(row.same for row in found)
    assert any("FSDP1" in text and "deprecated" in text for text in said) == (strategy_name == "fsdp1")

# %% [markdown]
# From a terminal the same check is `python -m course_utils.launch check launch`; its exit code is 1 if anything
# differs. Run it after every edit by hand.
#
# ## 6 · Run here what you will run there
#
# A check of settings is no run. Before paying for sixteen GPUs, start the *generated files* with two processes on
# this machine: the same scripts, the same strategy, a tiny model, `gloo` instead of NCCL. accelerate considers FSDP
# and DeepSpeed on GPUs only; a small `sitecustomize.py`, which the CPU variant of the scripts puts on `PYTHONPATH`,
# makes it do so here.
#
# The program is `course_utils/recipes/finetune.py`, the one that all files start. Its data is a file of JSON lines:
# here sentences of the training split.

# %%
import json

data_file = place / "sentences.jsonl"
with data_file.open("w", encoding="utf-8") as file:
    file.writelines(json.dumps({"text": sentence}) + "\n" for sentence in dataset["train"]["text"][:600])

# %%
settings = {"precision": "fp32", "sequence_length": 64, "micro_batch": 4, "accumulation": 2, "global_batch": None}
rehearsal = example.but(
    model="course/causal",
    **settings,
    max_steps=24,
    save_every=4,
    arguments=("--task=causal_lm", "--train_file=sentences.jsonl", "--logging_steps=1"),
)
print(rehearsal.on_cpu(2).effective_batch, "sequences per step on 2 processes")

# %% [markdown]
# ### ZeRO-3 through accelerate, two processes
#
# `run_here` writes the CPU variant into a folder, executes one script with bash and returns `run.json`, in which the
# program wrote what its ranks saw. An exit code of 0 would prove nothing.

# %%
from course_utils.launch.run_here import run_here

zero3 = run_here(rehearsal.but(strategy="zero3", save_every=24), "accelerate.sh", place)
for name in ("world_size", "backend", "distributed_type", "wrapper", "strategy", "effective_batch"):
    print(f"{name:18}{zero3[name]}")
assert zero3["world_size"] == 2 and zero3["strategy"] == "zero3" and zero3["effective_batch"] == 16

# %% [markdown]
# The shards are what the planner says, to the byte: weights and moments in fp32, half of each on every rank.

# %%
tiny_shape = shape_of_model(tiny, tiny.config)
two = rehearsal.on_cpu(2).but(model=tiny_shape, strategy="zero3")
count = memory.parameters(two, tiny_shape)
planned = (memory.weights(two, count) // 4, memory.optimizer(two, count) // 8)
print("planned for each rank:", planned, "numbers")
print("held by the ranks:   ", zero3["parameters_held"], zero3["optimizer_held"])
assert zero3["parameters_held"] == [planned[0]] * 2 and zero3["optimizer_held"] == [planned[1]] * 2

# %% [markdown]
# ## 7 · Pre-emption: stopped, and started again
#
# Clusters take machines back: the time limit is over, a more urgent job arrives, a spot instance is reclaimed. The
# warning is a signal, SIGTERM or SIGUSR1, some seconds ahead. A program that survives needs four things:
#
# 1. The signal must *reach* it. The launcher would die of it, so the script passes it on to the ranks.
# 2. It must not stop in the middle of a step. The handler only sets a flag; at the end of the step all ranks agree
#    (one that got no signal must stop too), save a checkpoint and end.
# 3. It must end with code 0, or the cluster takes it for a failure.
# 4. The same command must go on from the last *complete* checkpoint.
#
# Here is FSDP2 through torchrun. We stop it as a cluster would, as soon as its first checkpoint is there.

# %%
import os
import signal
import subprocess
import sys

stopped = rehearsal.but(strategy="fsdp2", output_dir="runs/stopped")
write(stopped.on_cpu(2), place / "launch", overwrite=True)
path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
with open(place / "stopped.log", "wb") as log:
    script = subprocess.Popen(
        ["bash", "launch/torchrun.sh"], cwd=place, env=os.environ | {"PATH": path}, stdout=log, stderr=log
    )

# %%
output = place / "runs" / "stopped"
deadline = time.monotonic() + 200
while not list(output.glob("checkpoint-*")) and script.poll() is None and time.monotonic() < deadline:
    time.sleep(0.1)
script.send_signal(signal.SIGTERM)
script.wait(timeout=60)
first_stay = json.loads((output / "run.json").read_text())
print("state:", first_stay["state"], "| before the last step:", 4 <= first_stay["steps"] < 24)
assert first_stay["state"] == "stopped" and 4 <= first_stay["steps"] < 24

# %% [markdown]
# The same files once more, as after a requeue:

# %%
second_stay = run_here(stopped, "torchrun.sh", place)
print("went on where it was:", second_stay["resumed_from"] == first_stay["steps"])
print(second_stay["wrapper"], "| steps:", second_stay["steps"], "| held:", second_stay["parameters_held"])
assert second_stay["resumed_from"] == first_stay["steps"] and second_stay["steps"] == 24
assert second_stay["parameters_held"] == zero3["parameters_held"] and second_stay["strategy"] == "fsdp2"

# %% [markdown]
# Two strategies, two launchers, one of them interrupted: the losses must be the same, because sharding changes where
# numbers live and not what they are. This is the strongest check of a launch that there is.

# %%
uninterrupted, interrupted = dict(zero3["losses"]), dict(second_stay["losses"])
worst = max(abs(loss - uninterrupted[step]) for step, loss in interrupted.items())
print(f"losses of all {len(interrupted)} steps equal ZeRO-3's within 1e-4:", worst < 1e-4)
assert worst < 1e-4 and len(interrupted) == 24

# %% [markdown]
# On SLURM the pieces of section 4 do the rest. The batch script gets `USR1`, passes it to every machine's
# `torchrun.sh`, waits for the ranks to save, and calls `scontrol requeue`, but only if the run is not finished and
# has saved something new: a program that fails or saves nothing would otherwise start for ever. `tests/launch` of
# this project submits the script to a real two-node SLURM cluster, requeues it, and asserts that it resumes.
#
# ## 8 · The same run with PyTorch Lightning
#
# Lightning solves the same problem as the Trainer with another split. The Trainer owns the loss, the optimizer and
# the loop, and you change settings. In Lightning you write a `LightningModule` with the step and the optimizer, and
# its Trainer owns the loop and the devices. Is it the same training? Same model, rows, order, optimizer, schedule,
# clipping.

# %%
from transformers import DataCollatorWithPadding

from course_utils.models import load_classifier, load_tokenizer

tokenizer = load_tokenizer(source)
encoded = tokenizer(list(dataset["train"]["text"][:960]), truncation=True, max_length=32)
labels = list(dataset["train"]["label"][:960])
names = ("input_ids", "attention_mask")
train_rows = [{**{n: encoded[n][i] for n in names}, "labels": labels[i]} for i in range(960)]
collate, num_labels = DataCollatorWithPadding(tokenizer), dataset["train"].features["label"].num_classes


# %% [markdown]
# Both start from the same weights. Both seed right before the first forward pass, so that dropout draws the same
# numbers (lesson 03). And both note the time after every step.

# %%
from transformers import TrainerCallback, set_seed

STEPS = 20
times = {"Trainer": [], "Lightning": []}


def fresh_model():
    set_seed(seed)
    return load_classifier(num_labels, source)


class Watch(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            set_seed(seed)

    def on_step_end(self, *args, **kwargs):
        times["Trainer"].append(time.perf_counter())


# %% [markdown]
# The Trainer:

# %%
from course_utils.training.settings import logged, quiet_trainer


def with_trainer(callbacks):
    trainer = quiet_trainer(
        fresh_model(),
        place / "trainer",
        train_rows,
        data_collator=collate,
        callbacks=callbacks,
        max_steps=STEPS,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup_steps=5,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        use_cpu=True,
    )
    trainer.train()
    return trainer


of_trainer = with_trainer([Watch()])
print("steps:", of_trainer.state.global_step)

# %% [markdown]
# Lightning. Its remarks on devices and its tips are switched off first.

# %%
import pytorch_lightning as pl
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from course_utils.training.optim import parameter_groups

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


# %%
class Classifier(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model, self.losses = model.train(), []  # a pretrained model arrives in evaluation mode

    def training_step(self, batch, batch_index):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        groups = parameter_groups(self.model, weight_decay=0.01)  # none for biases and norms (lesson 01)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        scheduler = get_linear_schedule_with_warmup(optimizer, 5, STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]  # the default interval is an epoch


# %%
class LightningWatch(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if batch_index == 0:
            set_seed(seed)

    def on_train_batch_end(self, *args, **kwargs):
        times["Lightning"].append(time.perf_counter())


def with_lightning(module, callbacks):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place,
    )
    trainer.fit(module, DataLoader(train_rows, batch_size=32, collate_fn=collate))
    return module


of_lightning = with_lightning(Classifier(fresh_model()), [LightningWatch()])
print("steps:", len(of_lightning.losses))


# %%
def differences(module):
    """Largest difference to the Trainer, of the losses and of the final weights."""
    losses = [value for _, value in logged(of_trainer, "loss")]
    weights = zip(of_trainer.model.parameters(), module.model.parameters(), strict=True)
    in_losses = max(abs(a - b) for a, b in zip(losses, module.losses, strict=True))
    return in_losses, max((a - b).abs().max().item() for a, b in weights)


in_losses, in_weights = differences(of_lightning)
print("losses equal within 1e-5:", in_losses < 1e-5, "| weights within 1e-4:", in_weights < 1e-4)
assert in_losses < 1e-5 and in_weights < 1e-4

# %% [markdown]
# Equal to rounding, but perhaps not bitwise. Where does the last bit go? Clipping adds up the squared norms of all
# gradients. The Trainer adds in the order of `model.parameters()`, Lightning in the order of the optimizer's groups,
# and sums of floats depend on their order. If that is all, one override makes the two runs equal to the last bit:


# %%
class SameOrder(Classifier):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)


in_losses, in_weights = differences(with_lightning(SameOrder(fresh_model()), [LightningWatch()]))
print("bitwise equal: losses", in_losses == 0, "| weights", in_weights == 0)
assert in_losses == in_weights == 0

# %% [markdown]
# That was all. Both are the loop of lesson 01. One line in `Classifier` is easy to forget, though: `model.train()`.
# `from_pretrained` returns a model in evaluation mode. The Trainer switches it before every step; Lightning keeps the
# mode that it finds. Without that line a pretrained model is fine-tuned with its dropout off, and nothing says so:

# %%
asleep = Classifier(fresh_model())
asleep.model.eval()  # as from_pretrained leaves it
with_lightning(asleep, [])
print("Lightning trained it with dropout:", asleep.model.training)
assert not asleep.model.training

# %% [markdown]
# So the choice is about code and features, not about training. The lines you write for this run, without what watches
# it:

# %%
import inspect


def lines(*parts):
    return sum(len(inspect.getsource(part).strip().splitlines()) for part in parts)


methods = (Classifier.__init__, Classifier.training_step, Classifier.configure_optimizers)
print("Trainer:", lines(with_trainer), "| Lightning:", lines(*methods, with_lightning) + 1)

# %% [markdown]
# And the time of a step, the median:

# %% tags=["nbval-ignore-output"]
import itertools
import statistics

per_step = {name: statistics.median(b - a for a, b in itertools.pairwise(ticks)) for name, ticks in times.items()}
ratio = per_step["Lightning"] / per_step["Trainer"]
print(f"Trainer {1e3 * per_step['Trainer']:.0f} ms, Lightning {1e3 * per_step['Lightning']:.0f} ms, ratio {ratio:.2f}")
assert 0.1 < ratio < 10  # the same arithmetic: a guard against nonsense, not a promise

# %% [markdown]
# The same settings in both, and what each gives beyond them:
#
# | | Trainer | Lightning |
# |---|---|---|
# | steps, clipping | `max_steps`, `max_grad_norm` | `max_steps`, `gradient_clip_val` (default: none) |
# | accumulation | `gradient_accumulation_steps` | `accumulate_grad_batches` |
# | precision | `bf16=True` | `precision="bf16-mixed"` |
# | machines | the launcher decides | `num_nodes`, `devices`; starts its own ranks, or torchrun's |
# | sharding | `fsdp=`, `deepspeed=`, or a YAML | `strategy="fsdp"`, `"deepspeed_stage_3"`, `ModelParallelStrategy` |
# | you write | data and settings | the step and the optimizer |
# | several optimizers | override `training_step` (lesson 07) | manual optimisation, built in |
# | checkpoint | a Hugging Face folder | one `.ckpt` file of the module |
# | pre-emption on SLURM | the script and the program of this lesson | built in: `SLURMEnvironment(auto_requeue=True)` |
# | dropout of a pretrained model | on: `model.train()` before every step | off, unless you call `.train()` |
# | loss of a window | mean over its targets (`num_items_in_batch`) | mean of the micro-batches' means |
#
# The last line is lesson 01's bug for ragged batches. Lightning divides each loss by the number of micro-batches:

# %%
from pytorch_lightning.loops.optimization.automatic import ClosureResult

part = ClosureResult.from_training_step_output(torch.tensor(2.0), normalize=4)  # accumulate_grad_batches=4
print("a loss of 2.0, accumulated over 4:", part.closure_loss.item())
assert part.closure_loss.item() == 0.5

# %% [markdown]
# With padding or packed text, normalise by hand there. Choose the Trainer for models of the hub, with their
# checkpoints and ready-made sharding; choose Lightning for research code with an unusual step. Both start from the
# same launch files.
#
# ## 9 · What goes wrong: settings that are silently ignored
#
# Each of the following files is accepted. Nothing warns, the run starts, the loss falls, and the setting is not in
# use. We plant one at a time into good files, and print what the tool *resolves* it to. The check of section 5 is
# what catches it. "Nothing warns" is checked, too: we listen to all warnings and log messages meanwhile.


# %%
def with_fault(spec, file, old, new, shown):
    """Replace `old` by `new` in a good file; print what differs then, as the file's own tool resolves it."""
    write(spec, place / "launch", overwrite=True)
    rows, usual = resolve(spec)
    assert all(row.same for row in rows)
    path = place / "launch" / file
    text = path.read_text()
    assert old in text, f"{old!r} does not stand in {file}"
    path.write_text(text.replace(old, new))
    rows, said = resolve(spec)
    different = [row for row in rows if not row.same and row.file == shown]
    print(table(different))
    assert not set(said) - set(usual), "somebody did warn"
    return {row.field for row in different}


base = Spec(model="Qwen/Qwen3-0.6B", nodes=2, gpus_per_node=8)

# %% [markdown]
# ### 1 · FSDP2's word under FSDP1
#
# You want to keep gathered weights between forward and backward (as ZeRO-2 does). FSDP1 knows the word
# `SHARD_GRAD_OP`, and accelerate even accepts it as the value of `fsdp_reshard_after_forward`. FSDP1 does not read
# that key:

# %%
found = with_fault(
    base.but(strategy="fsdp1", reshard_after_forward=False),
    "accelerate.yaml",
    "fsdp_sharding_strategy:",
    "fsdp_reshard_after_forward:",
    shown="accelerate.sh",
)
assert found == {"sharding strategy"}

# %% [markdown]
# ### 2 · FSDP1's word under FSDP2
#
# The reverse, and the more frequent one: a YAML from an older tutorial, with `fsdp_version: 2` added.

# %%
found = with_fault(
    base.but(reshard_after_forward=False),
    "accelerate.yaml",
    "fsdp_reshard_after_forward: false",
    "fsdp_sharding_strategy: SHARD_GRAD_OP",
    shown="accelerate.sh",
)
assert found == {"reshard after forward"}

# %% [markdown]
# Two other words of FSDP1 are not silent. This shows as well that our listening works:

# %%
write(base, place / "launch", overwrite=True)
path = place / "launch" / "accelerate.yaml"
good = path.read_text()
path.write_text(good.replace("  fsdp_version: 2", "  fsdp_backward_prefetch: BACKWARD_PRE\n  fsdp_version: 2"))
rows, said = resolve(base)
print([text for text in said if "backward_prefetch" in text][0])
path.write_text(good.replace("SHARDED_STATE_DICT", "LOCAL_STATE_DICT"))
(raised,) = [row.resolved for row in resolve(base)[0] if row.field == "can be resolved"]
print(raised)
assert "FSDP2 does not support LOCAL_STATE_DICT" in raised

# %% [markdown]
# ### 3 · The version left out
#
# `accelerate launch` takes FSDP1 for granted, TrainingArguments takes FSDP2. The same file without one line is
# another strategy, with other names for everything else in it:

# %%
found = with_fault(base, "accelerate.yaml", "  fsdp_version: 2", "  # fsdp_version: 2", shown="accelerate.sh")
assert "strategy" in found

# %% [markdown]
# ### 4 · accelerate's names under TrainingArguments
#
# Both call the dictionary `fsdp_config`. TrainingArguments strips a leading `fsdp_`, so most keys of an accelerate
# YAML work in both, which is the trap: `fsdp_offload_params` becomes `offload_params`, and the name here is
# `cpu_offload`. The model that needed the offload runs out of memory, with the setting in plain sight.

# %%
found = with_fault(base.but(offload="all"), "fsdp.json", '"cpu_offload"', '"fsdp_offload_params"', shown="torchrun.sh")
assert found == {"offload"}

# %% [markdown]
# ### 5 · Rendezvous settings in the YAML
#
# `rdzv_backend` and `same_network` are keys of accelerate's own configuration file, written there by `accelerate
# config`. At launch the command line's defaults win. Pass them as flags.

# %%
found = with_fault(
    base, "accelerate.yaml", "use_cpu: false", "rdzv_backend: c10d\nuse_cpu: false", shown="accelerate.yaml"
)
assert found == {"settings that are ignored"}

# %% [markdown]
# ### 6 · Processes that do not divide
#
# `num_processes` counts all machines. Here three machines with 6 GPUs are rented, and somebody wrote 16. accelerate
# rounds 16 / 3 down: 15 ranks train, three GPUs idle, and the effective batch is not the one that the learning rate
# was tuned for.

# %%
found = with_fault(
    base.but(nodes=3, gpus_per_node=6), "accelerate.yaml", "num_processes: 18", "num_processes: 16", "accelerate.sh"
)
assert {"world size", "effective batch"} <= found

# %% [markdown]
# ### Two that are noticed too late
#
# The launcher accepts these as well. Here the ranks raise, but on the cluster, after the queue. First, a list of
# layer classes. YAML has lists, so several classes look like one. accelerate splits a *string* at its commas: the
# list becomes its own text, and no class of the model is called that.

# %%
found = with_fault(
    base,
    "accelerate.yaml",
    'cls_to_wrap: "Qwen3DecoderLayer"',
    'cls_to_wrap: ["Qwen3DecoderLayer"]',
    shown="accelerate.sh",
)
assert found == {"wrapped classes"}

# %% [markdown]
# Second, parallelism without its prefix. Inside `parallelism_config` every key repeats that name; without it, each
# size is 1. FSDP2 then finds no dimension to shard across and says so. Without FSDP nobody says anything: tensor
# parallelism of size 1 is plain DDP.

# %%
found = with_fault(base.but(replicas=2), "accelerate.yaml", "parallelism_config_dp", "dp", shown="accelerate.sh")
assert "replicate x shard x tensor x context" in found

# %% [markdown]
# ### And three that only a run can show
#
# - torchrun on a machine without GPUs, without `--use_cpu`: every rank trains alone, all of them write into the same
#   folder, and the exit code is 0. `finetune.py` compares `WORLD_SIZE` with what it sees and stops
#   (`test_a_run_that_is_not_what_was_asked_is_refused` in `tests/launch/test_finetune.py`).
# - FSDP asked for where accelerate does not consider it: the run is DDP. The same comparison stops it
#   (`test_a_strategy_that_is_not_in_use_is_refused`, there too).
# - `save_model` under `SHARDED_STATE_DICT` writes no model. `finetune.py` gathers it first
#   (`test_finetune_runs_as_asked` in `tests/launch/test_run_here.py` loads what sharded runs saved).
#
# **Check:** before a long run, `python -m course_utils.launch check`; in its first minute, look at what the ranks
# report: world size, wrapper, shard size, effective batch.
#
# ## 10 · Exercises
#
# ### 15.1 Repair an accelerate YAML
#
# The run: Qwen3-0.6B on 2 machines with 8 GPUs each, FSDP2, gathered weights stay after the forward pass, each
# machine holds one sharded copy. This file starts without a complaint. Return the repaired configuration.

# %%
import yaml

from course_utils.lessons.lesson_15.exercises import ACCELERATE, DEEPSPEED, FSDP, HOSTS, SEVEN_B

print(yaml.safe_dump(ACCELERATE.written, sort_keys=False))


# %%
def repair_accelerate(config): ...


# %%
teach.check("15.1", repair_accelerate)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("15.1")`, and `teach.show_solution("15.1")` when you want to compare.
#
# </details>
#
# ### 15.2 Repair an `fsdp_config`
#
# Eight GPUs under torchrun, FSDP2, everything waits in host memory, activations are recomputed.

# %%
print(json.dumps(FSDP.written, indent=2))


# %%
def repair_fsdp(config): ...


# %%
teach.check("15.2", repair_fsdp)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("15.2")`, and `teach.show_solution("15.2")` when you want to compare.
#
# </details>
#
# ### 15.3 Repair a DeepSpeed JSON
#
# 2 machines with 8 GPUs each, micro-batch 4, accumulation 2, ZeRO-3, the optimizer's state in host memory.

# %%
print(json.dumps(DEEPSPEED.written, indent=2))


# %%
def repair_deepspeed(config): ...


# %%
teach.check("15.3", repair_deepspeed)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("15.3")`, and `teach.show_solution("15.3")` when you want to compare.
#
# </details>
#
# ### 15.4 Plan a 7B model on 8 x 80 GB
#
# All its weights are to be trained, on long sequences. The run is given below. Choose `strategy`, `micro_batch`, and,
# if you want, `offload`, `checkpointing` and `reshard_after_forward`, so that it fits and is as fast as the planner
# thinks possible.

# %%
print(SEVEN_B)


# %%
def plan_seven_b(): ...  # return {"strategy": ..., "micro_batch": ..., ...}


# %%
teach.check("15.4", plan_seven_b)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("15.4")`, and `teach.show_solution("15.4")` when you want to compare.
#
# </details>
#
# ### 15.5 The command for machine k
#
# Return the words of the torchrun command that machine `k` (from 0) must run, up to the program: `["torchrun", ...]`.
# All machines have the same number of GPUs. torchrun itself judges.

# %%
print(HOSTS)


# %%
def node_command(hosts, gpus, k, port): ...


# %%
teach.check("15.5", node_command)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("15.5")`, and `teach.show_solution("15.5")` when you want to compare.
#
# </details>

# %% [markdown]
# ## Recap
#
# - A parameter in training costs 16 bytes. Sharding divides them by the number of GPUs; a layer must be gathered to
#   be used.
# - Activations grow with tokens and layers, logits with tokens and vocabulary. Checkpointing trades activations, not
#   logits, for a third more computing. Memory is tightest at one moment of the step, and it is rarely the update.
# - Speed is tokens x FLOPs / (peak x MFU), plus the communication that does not hide. MFU is the assumption; measure
#   it.
# - torchrun needs to know how many machines there are, which one this is, and where all meet. Every scheduler only
#   provides these three.
# - A file that parses proves nothing, and an exit code of 0 proves nothing. Compare what the tool resolves with what
#   was asked, and what the ranks see with what was planned.
# - Warned, saved, ended with 0, started again by the same command: that is all pre-emption asks for.

# %% [markdown]
# ## Quiz
#
# **1.** Your 7B model fits on 8 GPUs with FSDP2 and accumulation 1. With accumulation 4 and the same micro-batch it
# runs out of memory. Why?
#
# <details><summary>Answer</summary>
#
# Under `no_sync` FSDP adds up *whole* gradients over the micro-batches and reduces them once: 2 bytes x 7 billion =
# 13 GiB on every GPU, whatever their number. Use a larger micro-batch with checkpointing, or ZeRO, which reduces
# every time and pays in traffic.
#
# </details>

# %% [markdown]
# **2.** A job on 4 machines hangs at the start, and after some minutes all of them report a time-out.
# `NODE_RANK=$SLURM_PROCID` stands in the batch script, above the line with `srun`. What happened?
#
# <details><summary>Answer</summary>
#
# The batch script runs once, on the first machine, where `SLURM_PROCID` is 0. All four machines were told that they
# are machine 0, so nobody ever was number 1. The variable must be evaluated inside `srun`.
#
# </details>

# %% [markdown]
# **3.** You double the machines from 2 to 4 and keep `global_batch`. The planner says that tokens per second rise by
# much less than two. Where can the time go?
#
# <details><summary>Answer</summary>
#
# Each GPU makes half as many forward and backward passes, so computing and gathering halve. What does not shrink is
# what happens once per step: reducing 2 bytes x all parameters, and the latency of a longer ring. At accumulation 1
# the next doubling no longer divides at all. Larger batches or HSDP help; or fewer machines.
#
# </details>

# %% [markdown]
# **4.** Why does `finetune.py` let *all* ranks agree on stopping, although each of them gets the signal?
#
# <details><summary>Answer</summary>
#
# They do not get it at the same instant. If rank 0 stops after step 41 and rank 1 wants to compute step 42, rank 1
# waits in its first collective for ever. One small all-reduce at the end of each step settles it.
#
# </details>

# %% [markdown]
# **5.** `accelerate launch --config_file fsdp.yaml train.py` trains a model that should not fit on one GPU. Nothing
# else is known. Which four numbers do you want to see before you believe that it is sharded?
#
# <details><summary>Answer</summary>
#
# From inside the program: the world size, the wrapper's class, the number of parameters that one rank holds against
# those of the model, and the effective batch.
#
# </details>

# %% [markdown]
# **Next:** this is the last lesson. Take the parameters at the top of this notebook, put your own model and machines
# in, and run it again. Or without opening it:
#
# ```bash
# papermill notebooks/15_launch.ipynb out.ipynb -p model Qwen/Qwen3-8B -p num_nodes 2 -p gpus_per_node 8
# ```
#
# The last cell writes the files for the spec in the parameters cell. The task follows from what was planned: a
# language model's head, loss and logits mean `--task=causal_lm`. The data is yours, in `arguments`; without any,
# `finetune.py` would train on the course's own. The files belong into the project's root, because they are started
# from there; seen from inside `notebooks/`, that is one folder up. Launch files of an earlier run are replaced. A
# folder that holds anything else is refused.
#
# The table has one line for each setting that three files or more state, and a line for every setting that is not as
# asked. `python -m course_utils.launch check launch` prints all of them.

# %%
import contextlib

from course_utils.launch.check.rows import Row


def summary(rows):
    """One row for each setting that several files resolve alike; all rows that differ."""
    groups = {}
    for row in rows:
        groups.setdefault((row.field, repr(row.asked), repr(row.resolved)), []).append(row)
    return [
        Row(f"{len(same)} files" if same[0].same else same[0].file, *same[0][1:])
        for same in groups.values()
        if len({row.file for row in same}) > 2 or not same[0].same
    ]


# %%
scratch.cleanup()
with contextlib.chdir(root):
    written = write(yours, folder, overwrite=True)
    resolved = check(folder)
print(f"{folder}/", "(one folder above this notebook)" if root != Path.cwd() else "(in the current folder)")
print(*(f"├── {path.name}" for path in written[:-1]), f"└── {written[-1].name}", sep="\n")
print(f"\n{verdict(plan(yours))}\n\n{table(summary(resolved))}")
print(f"\n{len(resolved)} settings resolved, {sum(not row.same for row in resolved)} not as asked")
teach.show(
    figures.strategy_memory(strategies(yours)),
    alt="Stacked memory of one GPU per strategy for the run of the parameters cell, with the GPU's limit as a line.",
)
assert all(row.same for row in resolved)
