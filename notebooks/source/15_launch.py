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
# Your training program works. Now it has to run on sixteen GPUs in two machines, and every hour costs money. Two
# things can go wrong. The run does not fit, which you learn after an hour in the queue. Or it trains, ends
# with exit code 0, and was never the run you asked for. Both can be known beforehand, on a laptop.
#
# **You will be able to**
#
# - say what lies in a GPU's memory during a step, and choose a strategy that fits;
# - estimate speed and cost, and say what a GPU waits for;
# - write launch files, and find settings that are silently ignored;
# - rehearse a launch here, survive pre-emption, and diagnose a run from what it left behind.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (accumulation, effective batch) and 03 (Trainer). What is
# needed of 11 to 13 is explained here.
#
# The cell below describes *your* run; sections 1 to 3 explain its words. The last cell writes the files that launch it.

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 1000  # optimizer steps of your run
seed = 0
model = "Qwen/Qwen3-0.6B"  # a hub name, or a folder with config.json
strategy = "fsdp2"  # ddp, fsdp1 (deprecated), fsdp2, zero1, zero2, zero3
num_nodes = 1  # machines
gpus_per_node = 8
gpu = "H100-80GB"  # the kind of GPU
precision = "bf16"  # fp32, bf16, fp16; bf16_weights: AdamW in 16 bit, too
micro_batch = 1  # sequences per GPU and forward pass
global_batch = 64  # sequences per optimizer step, over all GPUs
sequence_length = 2048  # tokens
checkpointing = False  # recompute activations in the backward pass
price = None  # $ for one GPU and hour
arguments = ["--train_file", "data/train.jsonl"]  # of your program: first its data
more = {}  # other fields of the spec: {"network": 50.0, "partition": "gpu"}
folder = "launch"  # where the last cell writes the launch files

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Where we are going
#
# A run on a cluster is described in many places: flags, YAML, JSON, a job script. They can contradict one another, and
# mostly nothing complains. So we describe the run once, in one object, the **spec**, and derive everything else:

# %%
from course_utils.lessons.lesson_15 import figures

teach.show(figures.flow())

# %% [markdown]
# The example: Qwen3-8B, all weights trained, on two machines, at an assumed price. `plan` computes what it needs under
# FSDP2, the default (section 2); `render` gives the texts of all files:

# %%
from course_utils.launch import Spec, render
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.report import verdict

example = Spec(
    model="Qwen/Qwen3-8B",
    nodes=2,
    gpus_per_node=8,
    global_batch=64,
    sequence_length=4096,
    price=3.0,
    arguments=("--train_file=data/train.jsonl",),
)
print(verdict(plan(example)))
files = render(example)
for name, text in files.items():
    print(f"{len(text.splitlines()):4} lines  {name}")

# %% [markdown]
# The program trains on a file of JSON lines, here sentences of this project:

# %%
import json

from course_utils.data.own_text import own_sentences

for sentence in own_sentences()[:2]:
    print(json.dumps({"text": sentence}))

# %% [markdown]
# The number to watch is the **effective batch**: sequences per optimizer step, micro-batch x accumulation x GPUs. It
# must be the same in every file. The spec computes what is missing (here the accumulation) and refuses impossible
# values. Your own spec follows:

# %%
from course_utils.launch import SpecError

print(example.micro_batch, "x", example.accumulation_steps, "x", example.world_size)
for changes in ({"strategy": "zero4"}, {"global_batch": 100}):
    try:
        example.but(**changes)
    except SpecError as error:
        print(error)

# %%
from pathlib import Path

from course_utils.launch.files.write import refuse_to_lose
from course_utils.models.configs import shape_of
from course_utils.models.shapes import parameter_count

given = {"model": model, "strategy": strategy, "nodes": num_nodes, "gpu": gpu}
given |= {"gpus_per_node": gpus_per_node, "precision": precision, "price": price}
given |= {"micro_batch": micro_batch, "global_batch": global_batch}
given |= {"sequence_length": sequence_length, "checkpointing": checkpointing}
given |= {"max_steps": max_steps, "arguments": tuple(arguments)}
yours = Spec(**given | more)
root = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
refuse_to_lose(root / folder, overwrite=True)  # better now than in the last cell
count = parameter_count(shape_of(yours.model))
print(f"{count:,} parameters on {yours.world_size} GPUs")

# %% [markdown]
# ### Ranks, and three ways to exchange numbers
#
# Each process of a run drives one GPU and is called a **rank**; their number is the **world size**. All run the same
# program, each on sequences of its own, and exchange numbers in **collectives**, calls that all make together:

# %%
teach.show(figures.collectives())

# %% [markdown]
# An **all-reduce** is a **reduce-scatter** followed by an **all-gather**, so it sends twice as much as either. NCCL is
# the library for this on GPUs, gloo on CPUs.
#
# ## 2 · Does it fit?
#
# ### State: what every parameter costs
#
# Training needs, for each parameter, its value, its gradient, and AdamW's two moments (lesson 01). In 32 bits that is
# $4 + 4 + 8 = 16$ bytes. Under `bf16` autocast (matrix products in 16 bits) it stays 16: the 16-bit copies of the
# weights come and go.
#
# In plain data parallelism (**DDP**) every GPU holds all of it. **Sharding** divides it among the $N$ GPUs. **ZeRO** is
# DeepSpeed's name for it, in three stages ([Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054)); **FSDP** is
# PyTorch's name for the third, FSDP2 its second version. One of four ranks keeps the filled part; the numbers are bytes
# per parameter:

# %%
teach.show(figures.sharding())

# %% [markdown]
# | strategy | bytes per parameter on each GPU |
# |---|---|
# | DDP | $4 + 4 + 8$ |
# | ZeRO-1 | $2 + 2 + 12/N$: 16-bit weights and gradients; a shard of fp32 weights and moments |
# | ZeRO-2 | $2 + 14/N$ |
# | ZeRO-3, FSDP | $16/N$ |
#
# By hand, and by this course's planner:

# %%
from course_utils.launch.planner import memory

GIB, shape, gpus = 2**30, shape_of(example.model), example.world_size
psi = parameter_count(shape)
per_parameter = {"ddp": 4 + 4 + 8, "zero1": 2 + 2 + 12 / gpus, "zero2": 2 + 14 / gpus}
per_parameter |= {"zero3": 16 / gpus, "fsdp2": 16 / gpus}
parts = (memory.weights, memory.gradients, memory.optimizer, memory.master_copies)
off = []
for name, size in per_parameter.items():
    spec = example.but(strategy=name)
    planned = sum(part(spec, memory.parameters(spec, shape)) for part in parts)
    off.append(abs(planned / (psi * size) - 1))
    print(f"{name:6} {psi * size / GIB:6.1f} GiB of state on each GPU")
teach.claim("the planner says the same within 0.1%", max(off) < 1e-3)

# %% [markdown]
# A GPU of our kind has about 80 GiB: DDP is out already. Besides sharding, two ways remain: all states, or the
# optimizer's only, wait in the machine's own memory (**offload**); or **LoRA** freezes the weights and trains small
# matrices beside them.
#
# ### What comes and goes
#
# - **Gathered units.** A layer cannot be computed from a sixteenth of its weights. So FSDP and ZeRO-3 all-gather a
#   **unit**, usually a layer, compute it and free it, while the next one is fetched.
# - **Whole gradients.** With accumulation each rank adds up whole gradients over its micro-batches; FSDP reduces them
#   (adds them up over the ranks) once a step (`no_sync`). accelerate 1.15 reduces in the type of the computation: bf16,
#   2 bytes per parameter on every GPU.
# - **Activations.** What the forward pass leaves for the backward pass grows with tokens and layers.
# - **Logits.** Scores over the vocabulary. The backward pass of the loss holds three such tensors in fp32, 12 bytes a
#   score.
#
# More data-parallel GPUs do not divide the last three. A smaller micro-batch divides activations and logits, but means
# more accumulation. **Context parallelism** (several GPUs share one sequence) divides both; **tensor parallelism**
# (they share each matrix) most of the activations. **Activation checkpointing** keeps only each layer's input and
# computes the layer a second time: a third more computing. `use_liger_kernel=True` computes the loss in pieces and
# never holds all logits.
#
# Activations are gone when gradients are complete. So the planner gives four moments of a step; the largest counts. Two
# things are assumed: a **margin** of 0.8 GiB for CUDA and NCCL and 5% for fragmentation, and a network of 400 GB/s per
# machine, usual for H100s. Section 3 explains the lines below the table.

# %%
from course_utils.launch.planner.report import plan_table

print(plan_table(plan(example)))
teach.show(figures.step_memory(plan(example)))

# %%
tokens = example.micro_batch * example.sequence_length
scores = 12 * tokens * shape.vocab_size
at_loss = plan(example).moments["loss"]
no_sync = {g: plan(example.but(global_batch=16 * g)).moments["loss"] for g in (1, 4)}
whole = {g: found["whole gradients"] for g, found in no_sync.items()}
teach.claim("logits: 12 bytes a score", at_loss["logits"] == scores)
teach.claim("whole gradients: only with accumulation", whole == {1: 0, 4: 2 * psi})

# %% [markdown]
# Now the strategies, those that fit first, the fastest on top:

# %%
from course_utils.launch import strategies

every = strategies(example)
teach.show(figures.strategy_memory(every))
names = [one.name for one in every if not one.fits]
teach.claim("only DDP does not fit", names == ["DDP"])

# %% [markdown]
# DDP also holds 16-bit copies of the weights, and **buckets**: a second copy of the gradients, for sending. "No
# reshard" (`reshard_after_forward=False`) keeps gathered weights until the backward pass: less is sent, less stays
# free. Where a run does not fit, the planner takes the first change that helps: a smaller micro-batch, more sharding,
# checkpointing, offload, more machines, LoRA.

# %%
print(verdict(plan(example.but(strategy="ddp"))))
print(verdict(plan(example.but(nodes=1, gpu="A100-40GB"))))

# %% [markdown]
# ### Is the plan true?
#
# No H100 is needed to count bytes. Under torch's `FakeTensorMode` tensors have shapes and types but no storage;
# `MemTracker` follows every allocation of a real step, also for one rank of a sharded model. Counted / planned bytes of
# a three-layer Qwen3 (without DeepSpeed and the margin):

# %%
from course_utils.lessons.lesson_15 import rehearsals

config = rehearsals.small_qwen3()
small = Spec(micro_batch=2, sequence_length=1024)
cases = {
    "DDP, one GPU": small.but(strategy="ddp", gpus_per_node=1),
    "FSDP2, rank 0 of 8": small,
    "the same, accumulation 2": small.but(accumulation=2),
}
ratios = {n: rehearsals.measured_over_planned(s, config) for n, s in cases.items()}
for name, (state, rest) in ratios.items():
    print(f"{name:26} state {state:.3f}, everything else {rest:.2f}")
states, rests = zip(*ratios.values(), strict=True)
teach.claim("state within 1%", max(abs(x - 1) for x in states) < 0.01)
teach.claim("the rest within 5%", max(abs(x - 1) for x in rests) < 0.05)

# %% [markdown]
# ### Deeper: gathered units in numbers
#
# Outside the layers, embedding and output layer are a unit each (one, where they share a matrix). With a vocabulary of
# 150,000 they are the largest. At the moment `loss` the output layer is what is gathered:

# %%
from course_utils.models.shapes import layer_parameters

of_vocabulary = shape.vocab_size * shape.hidden_size
units = {"a layer": layer_parameters(shape), "embedding": of_vocabulary}
units["output layer"] = of_vocabulary
for name, size in units.items():
    print(f"{name}: {size / 1e6:,.0f} M parameters, {2 * size / GIB:.2f} GiB in bf16")
ratio = at_loss["gathered units"] / (2 * units["output layer"])
teach.claim("at the loss the output layer is gathered", abs(ratio - 1) < 1e-3)

# %% [markdown]
# ### Deeper: fp32 reduction, and reducing in every micro-batch
#
# Sixteen bf16 gradients are added up with 8 bits of mantissa, and micro-batch after micro-batch too. fp32 reduction
# costs whole gradients of 4 bytes and more traffic. FSDP2 has a word for it, `reduce_dtype`; accelerate's YAML does
# not. In code: `FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16,
# reduce_dtype=torch.float32))`. The opposite saving is `sync_each_batch` (lesson 03): reduce after every micro-batch,
# keep shards only, and send more. `Reduction` tells the planner of both:

# %%
from course_utils.launch.planner.reduction import Reduction

ways = {"as accelerate does": Reduction(), "fp32": Reduction(fp32=True)}
ways["each micro-batch"] = Reduction(each_batch=True)
reduced = {name: plan(example, reduction=way) for name, way in ways.items()}
for name, one in reduced.items():
    held = one.moments["loss"]["whole gradients"] / GIB
    sent = one.speed.volume / GIB
    print(f"{name:20}{held:5.1f} GiB of whole gradients, {sent:6.1f} GiB sent a step")
waiting = [one.moments["loss"]["whole gradients"] for one in reduced.values()]
teach.claim("2, 4 and 0 bytes a parameter", waiting == [2 * psi, 4 * psi, 0])

# %% [markdown]
# At the moment `first layer` the plan is an upper bound: FSDP2 frees whole gradients while it makes shards of them. DDP
# differs: its gradients are fp32, and it reduces in fp32. And the ZeRO paper's stages 1 and 2 only reduce-scatter;
# DeepSpeed all-reduces by default.

# %% [markdown]
# ### Deeper: activations, tensor by tensor
#
# The classic count for a GPT layer in 16 bits, with $s$ tokens, batch $b$, width $h$ and $a$ heads, is
# $s\,b\,h\,(34 + 5\,a\,s/h)$ bytes ([Korthikanti et al. 2022](https://arxiv.org/abs/2205.05198), equation 1). Today's
# layers differ: attention kernels that recompute the scores remove the $5as/h$ term, there is no dropout, and a gated
# MLP keeps four wide tensors. So count again, per token, for our layer:

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

# %%
from course_utils.launch.planner import activations

s = example.sequence_length
classic = h * (34 + 5 * heads * s / h)
planned = activations.layer(example, shape, masked=False)
print(f"classic formula: {classic:,.0f}, {classic / per_token:.1f} times as much")
gib = per_token * s * shape.num_hidden_layers / GIB
print(f"all layers, {s} tokens: {gib:.1f} GiB")
teach.claim("the planner counts the same bytes", planned == per_token)

# %% [markdown]
# Checkpointing whole layers keeps $2h$ bytes per token and layer; one layer is complete at a time. (Selective
# checkpointing, which keeps the results of matrix multiplications and recomputes the cheap rest, lies between;
# accelerate has no setting for it: torch's `create_selective_checkpoint_contexts` is code.)

# %%
both = {flag: plan(example.but(checkpointing=flag)) for flag in (False, True)}
for flag, one in both.items():
    forward = one.moments["loss"]["activations"] / GIB
    print(f"checkpointing {flag}: {forward:4.1f} GiB, a step of {one.speed.step:.2f} s")
more_work = both[True].speed.compute / both[False].speed.compute
print(f"{more_work:.2f} x the computing")

# %% [markdown]
# ### Deeper: other estimators
#
# accelerate and DeepSpeed bring estimators of their own. Side by side for the same run under ZeRO-3:

# %%
from course_utils.launch.planner.compare import compare_estimators, comparison_table

estimates = compare_estimators(example.but(strategy="zero3"))
print(comparison_table(estimates))

# %% [markdown]
# Read the last column first. `accelerate estimate-memory` knows the model and nothing of the run: its answer is the
# same for DDP, which needs several times as much. (It is 8 bytes a parameter: AdamW's moments.) DeepSpeed's estimator
# takes 18 bytes per parameter, sharded, and what it calls a layer, the largest single matrix in fp32 (here the
# vocabulary's; its host memory is that matrix for eight ranks, and half as much again). Ours says 20 at the update: $2
# + 2 + 12$ as in section 2's table, and the gradients cast to fp32. Close, and both without a single activation, which
# is most of this run. Neither tool says whether the run fits.

# %%
whole, state_only, accelerate_says, deepspeed_says = (one.gpu for one in estimates)
print("planned / DeepSpeed's estimate:", round(whole / deepspeed_says, 1))
by_hand = 4 * of_vocabulary + 18 * psi // gpus
teach.claim("DeepSpeed's: 18 bytes and the largest matrix", deepspeed_says == by_hand)
teach.claim("the run needs over twice that", whole > 2 * deepspeed_says)
ours = state_only / (20 * psi / gpus)
teach.claim("our state at the update: 20 bytes", abs(ours - 1) < 1e-3)

# %% [markdown]
# ## 3 · How fast, and at what cost?
#
# ### Computing
#
# A matrix multiplication with $P$ weights costs $2P$ operations per token forward and $4P$ backward: once for the
# gradient of the input, once for that of the weights. Attention adds $12\,L\,h_q\,T$ for $L$ layers, query width $h_q$
# and $T$ tokens ([Chowdhery et al. 2022](https://arxiv.org/abs/2204.02311), "PaLM", appendix B); half of it where a
# token sees only what stands before it.
#
# The time follows from the GPU's peak and the **MFU** (model FLOPs utilisation): the share of the peak that a run
# reaches, recomputed work not counted. We assume 0.4. Measured by others on H100s, as published and in our count with
# half the attention:

# %%
from course_utils.launch.planner import mfu, speed

# without the embedding, which is looked up, and the norms ("other")
matrices = psi - shape.vocab_size * shape.hidden_size - shape.other
matrices -= shape.num_hidden_layers * shape.layer_other
scores = 12 * shape.num_hidden_layers * shape.query_size * example.sequence_length
flops = 6 * matrices + scores / 2
peak = 989e12  # operations per second of an H100: dense, 16 bit
seconds = 64 * example.sequence_length * flops / (gpus * peak * example.mfu)
print(f"{seconds:.2f} s of computing per step at MFU {example.mfu}\n")
print(mfu.measured_table(example.gpu))
planned = plan(example).speed.compute
teach.claim("the planner computes the same time", abs(seconds / planned - 1) < 1e-6)
least, most = mfu.published_range(example.gpu)
teach.claim("0.4 lies inside the published range", least < example.mfu < most)

# %% [markdown]
# For an 8B model 0.4 is optimistic: the Llama 8B rows, with recomputing, lie lower. Measure your first hundred steps
# and put your number into the spec. (Sources: `mfu.py`. "Tokens" is the length of a sequence.)
#
# ### Communicating
#
# The table says what one GPU sends in a step of four micro-batches, in bytes per parameter, and during which computing.
# Hybrid sharding (**HSDP**, `replicas=2`) shards inside each machine and only adds up gradients between them. GiB are
# what really leaves the GPU: $(n-1)/n$ of a collective of $n$ ranks, 8 for HSDP's shards and 16 for FSDP2's.

# %%
from course_utils.launch.planner.report import traffic_table


def on_network(bandwidth):
    """Plans in a fixed order, without offload; bandwidth in GB/s per machine."""
    base = example.but(network=bandwidth)
    names = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
    plans = [plan(base.but(strategy=name)) for name in names]
    return [*plans, plan(base.but(replicas=2))]


fast, slow = on_network(400.0), on_network(12.5)
print(traffic_table(fast))

# %% [markdown]
# DDP reduces in fp32, the others in bf16; ZeRO-1 and 2 then gather the updated weights. ZeRO-2 keeps no whole
# gradients, so it reduces in every micro-batch; ZeRO-3 also gathers weights for every pass. FSDP gathers like ZeRO-3
# but, under `no_sync`, reduces once.
#
# ### Overlap: what hides, and what sticks out
#
# While one layer computes, another one's numbers can travel. But **a gradient is complete only in the last backward
# pass**: what is reduced once per step hides behind that pass alone, however many micro-batches came before. Three
# plans on a network of 12.5 GB/s (100 Gbit/s) per machine; the third reduces in every micro-batch (`sync_each_batch`):

# %%
from course_utils.launch.planner.reduction import Reduction

hybrid = example.but(network=12.5, replicas=2)
each = plan(hybrid, reduction=Reduction(each_batch=True))
teach.show(figures.overlap([slow[1], plan(hybrid), each]))

# %% [markdown]
# By hand for the middle one, HSDP: first the reduce-scatter inside a machine, at 450 GB/s; then each GPU's eighth of
# the gradients is all-reduced between the two machines, over an eighth of the network:

# %%
inside = (2 + 2) * psi * 7 / 8 / 450e9  # the last gathering, and the reduce-scatter
between = 2 * (1 / 2) * (2 * psi / 8) / (12.5e9 / 8)  # an all-reduce of two ranks
last_backward = planned * (2 / 3) / example.accumulation_steps
sticks_out = inside + between - last_backward
print(f"{inside + between:.2f} s to send, behind {last_backward:.2f} s of computing")
exposed = plan(hybrid).speed.exposed
print(f"planned waiting: {exposed:.2f} s in a step of {plan(hybrid).speed.step:.2f} s")
teach.claim("by hand within 2% of the plan", abs(sticks_out / exposed - 1) < 0.02)

# %% [markdown]
# (The plan adds **latency**, the time of even the shortest message.) All plans on two networks:

# %%
panels = {"400 GB/s per machine": fast, "12.5 GB/s per machine": slow}
teach.show(figures.step_times(panels))
steps = {one.name: one.speed.step for one in slow if one.fits}
waits = {one.name: one.speed.exposed / one.speed.step for one in slow}
best = min(steps, key=steps.get)
print(f"fits and is fastest on the slow network: {best}, waits {waits[best]:.0%}")
teach.claim("it is HSDP, and even it waits", 0.2 < waits["FSDP2 + 2 replicas"] < 0.5)
others = [share for name, share in waits.items() if name != best]
teach.claim("all others wait for most of the step", min(others) > 0.5)

# %% [markdown]
# ### Exercise 15.1 · predict
#
# A step has 3 micro-batches of 0.4 s forward and 0.8 s backward each. Adding up all gradients over the network takes
# 1.0 s, and hides behind no forward pass. How many seconds does the GPU wait in a step: if gradients are reduced once;
# if in each micro-batch; if the same sequences go through in one micro-batch, three times as long; if once, and the
# updated weights are gathered in 0.5 s?

# %%
prediction = ...  # {"once": ..., "each batch": ..., "one micro-batch": ...,
#                    "once, then gather": ...}

# %%
teach.check("15.1", prediction)

# %% [markdown]
# Read such numbers as a comparison, not a promise: the planner knows nothing of data loading, slow ranks or a congested
# network.

# %% [markdown]
# ### Deeper: Exercise 15.2 · vary
#
# Plan a 7B model on two machines with a network half as fast as the slow one. The run is given. Choose among
# `strategy`, `replicas`, `micro_batch`, `offload` ("none", "optimizer", "all"), `checkpointing` and
# `reshard_after_forward`, so that it fits and is within 3% of the fastest plan there is.

# %%
from course_utils.lessons.lesson_15.exercises import SEVEN_B

print(SEVEN_B)  # a plan of it: plan(Spec(**SEVEN_B | {"micro_batch": 1}))


# %%
def plan_seven_b():
    return ...  # {"strategy": ..., "micro_batch": ..., ...}


# %%
teach.check("15.2", plan_seven_b)

# %% [markdown]
# ### Deeper: what an hour buys
#
# Twice the machines cost the same as long as nobody waits, because they need half the time. On a slower network
# somebody waits. More ranks wait more often, too: in a **ring** each of $n$ ranks passes on to the next, so that an
# all-gather takes the latency $n-1$ times. Offload costs two waits as well: gradients and weights cross the bus between
# GPU and host (PCIe), and AdamW runs on the processor.

# %%
costs = {400.0: [], 50.0: []}
for nodes in (2, 4, 8):
    for network, found in costs.items():
        found.append(plan(example.but(nodes=nodes, network=network)).speed.cost)
for network, found in costs.items():
    print(f"{network:g} GB/s:", *(f"${cost:.0f}" for cost in found))
rise = {network: max(found) / min(found) for network, found in costs.items()}
teach.claim("fast network: the same cost within 5%", rise[400.0] < 1.05)
teach.claim("slower network: 8 machines cost over 1.5x", rise[50.0] > 1.5)

# %% [markdown]
# ### Deeper: when machines fail
#
# A long run also saves, and starts again after failures. **Goodput** is the share of its time in which steps are
# computed that count. The size of a checkpoint is known; how fast it is written, how often one GPU fails and how long a
# restart takes are assumptions (`storage`, `gpu_mtbf`, `restart`). What others published, and a longer run on 512 GPUs:

# %%
from course_utils.launch.planner import goodput
from course_utils.launch.planner.budget import budget_table, reported_table

weeks = plan(example.but(nodes=64, global_batch=2048, max_steps=200_000))
print(reported_table(), budget_table(weeks), sep="\n\n")

# %% [markdown]
# Saved too often, a run writes; too seldom, it computes again what was lost. The best interval lies between, and is
# shorter where more GPUs can fail. The Trainer's saving blocks; asynchronous saving goes on training while a copy in
# host memory is written (the launch files do not offer it). `python -m course_utils.launch plan --strategies` compares
# strategies on days and cost.

# %%
from course_utils.lessons.lesson_15.goodput_figure import goodput_chart

teach.show(goodput_chart(weeks))

# %% [markdown]
# The curves are a formula. A simulation that draws the failures one by one must agree:

# %%
failures, saving = goodput.Failures(3600, 600), goodput.Saving("blocking", 49)
expected = goodput.goodput(500, failures, saving)
work = 2000 * 3600  # seconds: some thousand failures
simulated = work / goodput.simulate(work, 500, failures, saving, gpus=64, seed=seed)
print(f"a failure an hour, saved every 500 s: goodput {expected:.2f}")
teach.claim("simulated within 2%", abs(simulated / expected - 1) < 0.02)

# %% [markdown]
# ### Deeper: thousands of GPUs
#
# On thousands of GPUs two more ways to divide the work join HSDP. Tensor parallelism exchanges numbers inside every
# layer, and the GPU waits for them: it stays inside a machine. A **pipeline** divides the layers. Its **stages** are
# groups of machines with some of the layers each; micro-batches pass through them one after the other. Between two
# stages only a layer's output travels, and its gradient back.
#
# The price is the **bubble**, the time in which stages wait for one another. The first of $p$ stages lets $p$
# micro-batches in before the first of them comes back; so it holds its layers' activations for $p$ micro-batches. After
# that each stage does one forward and one backward pass in turn (**1F1B**). With $m$ micro-batches, equal stages are
# idle for $(p-1)/(m+p-1)$ of the step ([Narayanan et al. 2021](https://arxiv.org/abs/2104.04473), who give it as
# $(p-1)/m$ of the useful time).
#
# Pipelines are only planned here; no launch file starts one. Qwen3-8B on four stages of one machine each (`nodes`
# counts one stage's):

# %%
from course_utils.lessons.lesson_15.pipeline_figure import pipeline_chart

teach.show(pipeline_chart(plan(example.but(nodes=1), stages=4)))

# %% [markdown]
# The formula gives $3/11$, or 27%; the title says 22%. The last stage also has the output layer, so it is the slowest:
# it sets the pace and is idle least. The title counts *its* idle time.
#
# A **layout** is one way to divide the GPUs: how many replicas, how many GPUs share a matrix, how many stages; FSDP2
# shards over the rest. Below are the five fastest for Llama-3.1-70B on 4,096 GPUs, failures included (see the section
# before; `save GB` is a checkpoint). Without a pipeline every pass gathers the weights of all layers. In one, as torch
# runs it, a GPU gathers its stage's weights only, and once per step:

# %%
from course_utils.launch.planner.budget import days_table
from course_utils.launch.planner.layouts import layouts

sizes = {"nodes": 512, "global_batch": 4096, "max_steps": 50_000}
ways = layouts(example.but(model="meta-llama/Llama-3.1-70B", **sizes))
print(days_table(ways, most=5))
best_way = ways[0]
others, m = best_way.stages - 1, best_way.pipeline.micro_batches
bubble, by_hand = best_way.pipeline.bubble, others / (m + others)
teach.claim("the bubble by hand, within 1%", abs(bubble - by_hand) < 0.01)
alone = next(one for one in ways if one.stages == 1)
longer = alone.speed.step / best_way.speed.step
teach.claim("without a pipeline over 3x as long", longer > 3)

# %% [markdown]
# ### Deeper: MFU, measured here
#
# MFU can be measured anywhere: tokens per second x operations per token / peak. For the peak of this machine we take
# what a large matrix multiplication reaches. On a busy laptop the result is worth little, as any timing is.

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
tiny_spec = Spec(strategy="ddp", gpus_per_node=1, sequence_length=128, micro_batch=4)
tiny_shape = shape_of_model(tiny, tiny.config)
per_step = 4 * 128 * speed.flops_per_token(tiny_spec, tiny_shape)
step_time = fastest(lambda: tiny(input_ids=ids, labels=ids).loss.backward())
square = torch.randn(1024, 1024)
cpu_peak = 2 * 1024**3 / fastest(lambda: square @ square)
reached = per_step / step_time
peaks = f"peak {cpu_peak / 1e9:.0f} GFLOP/s, reached {reached / 1e9:.0f}"
print(f"{peaks}: MFU {reached / cpu_peak:.2f}")
teach.claim("a tiny model stays below the peak", reached < cpu_peak)

# %% [markdown]
# A run that recomputes activations shows a lower MFU than the spec's, because the repeated work is not counted. Give
# the spec the MFU without recomputation; the planner adds the repeated work to the time:

# %%
again = plan(example.but(checkpointing=True))
shown = 64 * example.sequence_length * flops / (gpus * peak * again.speed.compute)
print(f"{again.speed.compute:.2f} s, and a measured MFU would say {shown:.2f}")

# %% [markdown]
# ## 4 · The launch files
#
# ### torchrun: the same line on every machine
#
# A **launcher** starts one process per GPU and tells each who it is: `RANK`, `WORLD_SIZE`, `LOCAL_RANK` (its number on
# its machine). How the ranks of several machines find each other is the **rendezvous**. It takes three things: how many
# machines there are, which one this is, and the address where all meet, that of machine 0.

# %%
teach.show(figures.rendezvous())


# %%
def excerpt(name, first, last, texts=files):
    """Lines of a file, from one that begins with `first` to one with `last`."""
    lines = [line.strip() for line in texts[name].splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    rest = enumerate(lines[start:], start)
    stop = next(i for i, line in rest if line.startswith(last))
    print("\n".join(texts[name].splitlines()[start : stop + 1]))


excerpt("torchrun.sh", "NODE_RANK=", "MASTER_PORT=")
excerpt("torchrun.sh", "command=(", '"--master-port')
# $dollars: two dollar signs for one, which torchrun would replace
excerpt("torchrun.sh", "--per_device_train_batch_size", '"--fsdp_config')

# %% [markdown]
# This is the **static** form: ranks are fixed. The other one, `--rdzv-backend c10d --rdzv-endpoint HOST:PORT`, numbers
# the machines as they arrive (lesson 11). Do not mix them: only the static one reads `--master-addr`. On one machine
# `--standalone` picks a free port. The last lines are arguments of the program.
#
# ### Exercise 15.3 · write
#
# Every machine calls `node_command` with the same list and its own name. Return the words of its torchrun command, up
# to the program: static form for several machines, any free port for one.


# %%
def node_command(hosts, gpus, me, port):
    """hosts: names without a domain, machine 0 first; gpus: of one machine;

    me: this machine, perhaps with its domain: "gpu-b.cluster.local".
    Returns ["torchrun", ...].
    """
    return ...


# %%
teach.check("15.3", node_command)

# %% [markdown]
# ### accelerate: a YAML file and a line that starts it
#
# `accelerate launch` reads most settings from a file. Keys of `fsdp_config` begin with `fsdp_`, those of
# `parallelism_config` (the sizes of HSDP, tensor and context parallelism) with `parallelism_config_`:

# %%
excerpt("accelerate.yaml", "distributed_type", "fsdp_offload_params")

# %% [markdown]
# ### Deeper: three vocabularies for FSDP
#
# The keys of `fsdp_config` depend on the version of FSDP:
#
# | what | FSDP1 | FSDP2 |
# |---|---|---|
# | free gathered weights early: yes | `fsdp_sharding_strategy: FULL_SHARD` | `fsdp_reshard_after_forward: true` |
# | no, keep them (as ZeRO-2 does) | `fsdp_sharding_strategy: SHARD_GRAD_OP` | `fsdp_reshard_after_forward: false` |
# | checkpoints | `FULL_`, `LOCAL_`, `SHARDED_STATE_DICT` | `SHARDED_STATE_DICT` or `FULL_STATE_DICT` |
#
# Start new runs with FSDP2: transformers 5 calls FSDP1 deprecated. accelerate passes its settings on to the ranks in
# environment variables. `TrainingArguments` has names of its own for the same settings, without a prefix; under
# torchrun it reads them from `fsdp.json`:

# %%
print(files["fsdp.json"])

# %% [markdown]
# ### Deeper: DeepSpeed, SageMaker, Kubernetes, SkyPilot, Ray
#
# **DeepSpeed** (lesson 13) takes a JSON. Its three batch sizes must multiply out: `train_batch_size` = micro-batch x
# accumulation x ranks. Everything is a number here. `"auto"` works only where the Hugging Face integration fills it
# in, and then you cannot read in the file what the run does. The `deepspeed` launcher starts all machines from one
# over ssh, or, as here, one machine at a time without it. The hostfile names machines and processes; if it is
# missing, DeepSpeed warns and runs on this machine alone.

# %%
zero_files = render(example.but(strategy="zero3", offload="optimizer"))
print(zero_files["deepspeed.json"])
print(zero_files["hostfile"])
excerpt("deepspeed.sh", "deepspeed", "course_utils", zero_files)

# %% [markdown]
# **SageMaker** copies the project into a container, starts an entry script on every machine and uploads what lies in
# the model folder at the end. It speaks in environment variables: `SM_HPS` holds the hyperparameters as JSON,
# `SM_CHANNEL_TRAINING` the folder of the data channel called `training`, `SM_MODEL_DIR` the folder that becomes
# `model.tar.gz`. SDK 3 replaced the estimators of SDK 2 by `ModelTrainer`; there is a file for each.

# %%
excerpt("sagemaker_v3.py", "compute=Compute(", "checkpoint_config")

# %% [markdown]
# SDK 3 stops a job after one hour unless told otherwise (SDK 2: one day), and what is kept is what lies in one folder:
# forget either and the run is lost. Roles, buckets and images are arguments of the script, not part of it.
#
# **Kubernetes.** Kubeflow Trainer starts one pod per machine from a `TrainJob`. It puts the rendezvous into `PET_*`
# variables, which torchrun reads by itself. We hand them to `torchrun.sh`, so that there is one way to start a
# machine:

# %%
excerpt("trainjob.yaml", "numNodes", "args:")

# %% [markdown]
# **SkyPilot** rents machines from whoever has them, copies the project and runs the same commands on each. Their
# disks are their own: a run on several machines can only be resumed if the output folder is a mounted bucket or a
# shared disk. **Ray Train** starts the ranks itself; there is no torchrun. Each worker runs a function, which runs
# the program in its own process, with the environment that a launcher would have given it:

# %%
excerpt("skypilot.yaml", "run: |", "export NODE_RANK")
excerpt("ray_train.py", "scaling_config=", "failure_config")

# %% [markdown]
# ## 5 · Asked, resolved, same?
#
# A file that parses need not do what you meant. So each one is **resolved** by the tool it is for, defaults and
# environment variables included: torchrun's parser reads the command that the script really makes, accelerate builds
# the FSDP settings that a rank would get.

# %%
from tempfile import TemporaryDirectory

from course_utils.launch import table, write
from course_utils.launch.check.folder import check

scratch = TemporaryDirectory()
place = Path(scratch.name)
write(example, place / "launch")
rows = check(place / "launch")
different = [row for row in rows if not row.same]
fields = ("world size", "strategy", "effective batch")
print(table([row for row in rows if row.field in fields]))
batches = {row.resolved for row in rows if row.field == "effective batch"}
teach.claim("every setting resolves to what was asked", rows and not different)
teach.claim("64 wherever an effective batch is stated", batches == {64})

# %% [markdown]
# "World size" is not the number in a file: it is what torchrun computed from the script. (`trainjob.yaml` and
# `skypilot.yaml` state none: they start `torchrun.sh`.) After every edit by hand:
# `python -m course_utils.launch check launch`, whose exit code is 1 if anything differs.

# %% [markdown]
# ### Deeper: the other strategies' files
#
# (SageMaker and Ray are not installed here; their scripts run against stand-ins that refuse unknown keywords.)
#
# Each strategy has an `accelerate.yaml` of its own, the ZeRO stages `deepspeed.json`, `deepspeed.sh` and a hostfile
# besides. Here are the lines in which each YAML differs from FSDP2's. `resolved` (in `faults.py` of this lesson) also
# listens to everything that the tools say meanwhile:

# %%
from course_utils.lessons.lesson_15 import faults


def settings_of(text):
    return [line.split("  #")[0] for line in text.splitlines()]


known, wrong, deprecated = settings_of(files["accelerate.yaml"]), [], []
for name in ("ddp", "fsdp1", "zero1", "zero2", "zero3"):
    other = example.but(strategy=name)
    write(other, place / "launch", overwrite=True)
    found, heard = faults.resolved(other, place / "launch")
    wrong += [row for row in found if not row.same]
    deprecated += [name] if any("FSDP1" in text for text in heard) else []
    lines = settings_of(render(other)["accelerate.yaml"])
    print(f"{name}, {len({row.file for row in found})} files")
    print(*(f"    {line}" for line in lines if line not in known), sep="\n")
teach.claim("all resolve to what was asked", not wrong)
teach.claim("only FSDP1 is called deprecated", deprecated == ["fsdp1"])

# %% [markdown]
# ## 6 · What goes wrong: settings that are silently ignored
#
# Each edit below makes a file that its launcher accepts without a warning or a log message, and the setting is not in
# use. ("In use" is what the tool resolves.) With six of them the ranks train on; with two they stop, on the cluster,
# after the queue:

# %%
from course_utils.lessons.lesson_15 import faults

found, heard = faults.gallery()
print(faults.gallery_table(found))  # "the ranks": not started here, but on record
teach.claim("each is noticed by the check", not any(r.same for r in found.values()))
teach.claim("no tool said a word", heard == [])

# %% [markdown]
# ### Exercise 15.4 · debug
#
# The run: Qwen3-0.6B on 2 machines with 8 GPUs each, FSDP2, gathered weights stay after the forward pass, each machine
# holds one sharded copy. The launcher accepts this file. Return the repaired configuration.

# %%
import yaml

from course_utils.lessons.lesson_15.broken_configs import ACCELERATE

print(yaml.safe_dump(ACCELERATE.written, sort_keys=False))


# %%
def repair_accelerate(config):
    """config: the YAML as a dict. Returns it repaired."""
    return ...


# %%
teach.check("15.4", repair_accelerate)

# %% [markdown]
# ### Deeper: one by one, and two more files to repair
#
# Such settings are collected in `course_utils/launch/spec/silent.yaml`: what, since which version, how it shows, the
# cure, the source. `python -m course_utils.launch explain FILE` finds them in any file, without a spec and without
# executing it. The eight of section 6 (a file without a version is not wrong by itself; that FSDP1 comes of it is.
# TrainingArguments warns of FSDP1, `accelerate launch` does not: hence no word in section 6):

# %%
print(faults.cures())

# %% [markdown]
# Two projects call the same setting by different names: `fsdp_offload_params` for accelerate, `cpu_offload` for
# TrainingArguments. The model that needed the offload runs out of memory with the setting in plain sight.
#
# Three more faults show only in a run: torchrun without GPUs and without `--use_cpu` (every rank trains alone, exit
# code 0), FSDP where accelerate does not consider it (the run is DDP), `save_model` under `SHARDED_STATE_DICT` (no
# model). The course's `finetune.py` stops in the first two cases and gathers the model in the third.
#
# Where the version is left out, `accelerate launch` takes FSDP1 for granted, TrainingArguments FSDP2. TrainingArguments
# strips a leading `fsdp_`, so most of accelerate's names work in both. A `tp_size` without its prefix, in a run that
# shards nothing, does not even stop the ranks: the run is plain DDP.
#
# `show` prints every row that differs. And not all foreign words are silent: `fsdp_backward_prefetch` under FSDP2 is
# warned about, `LOCAL_STATE_DICT` raises. This shows as well that our listening works:

# %%
wrapped = faults.show("a list of layer classes")
fields = {row.field for row in wrapped}
teach.claim("only the classes differ", fields == {"wrapped classes"})
base = Spec(**faults.MACHINES)
line = "  fsdp_version: 2"
word = "backward_prefetch"
loud = {word: (line, f"  fsdp_{word}: BACKWARD_PRE\n{line}")}
loud["LOCAL_STATE_DICT"] = ("SHARDED_STATE_DICT", "LOCAL_STATE_DICT")
said = {}
for name, (good, bad) in loud.items():
    with faults.edited(base, "accelerate.yaml", good, bad) as edited:
        rows, heard = faults.resolved(base, edited)
    said[name] = heard + [str(r.resolved) for r in rows if r.field == "can be resolved"]
    print(name, "->", next(text for text in said[name] if name in text))
teach.claim("a warning and an error", all(said.values()))

# %% [markdown]
# ### Deeper: Exercise 15.5 · debug
#
# Eight GPUs under torchrun, FSDP2, everything waits in host memory, activations are recomputed. Repair the
# `fsdp_config`.

# %%
from course_utils.lessons.lesson_15.broken_configs import DEEPSPEED, FSDP

print(json.dumps(FSDP.written, indent=2))


# %%
def repair_fsdp(config):
    """config: fsdp.json as a dict. Returns it repaired."""
    return ...


# %%
teach.check("15.5", repair_fsdp)

# %% [markdown]
# ### Deeper: Exercise 15.6 · debug
#
# 2 machines with 8 GPUs each, micro-batch 4, accumulation 2, ZeRO-3, the optimizer's state in host memory, gradients
# clipped at the Trainer's 1.0. The Trainer starts it and fills in `"auto"` where it has an argument. Repair what stands
# in the DeepSpeed JSON; no other key is needed.

# %%
print(json.dumps(DEEPSPEED.written, indent=2))


# %%
def repair_deepspeed(config):
    """config: deepspeed.json as a dict. Returns it repaired."""
    return ...


# %%
teach.check("15.6", repair_deepspeed)

# %% [markdown]
# ### Deeper: your own files
#
# `explain` reads what people really have: accelerate's YAML, DeepSpeed's JSON, a job script, a Python file with
# `TrainingArguments(...)`. Files of one run are read together, so that contradictions show. A stranger's two:

# %%
from course_utils.launch.explain.explain import explain

zero = {"stage": 3, "sub_group_size": "auto"}
config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": zero}
job = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --gres=gpu:8
srun torchrun --nnodes=2 --nproc-per-node=8 --node-rank=$SLURM_PROCID \\
  --master-addr=$HEAD train.py --deepspeed=ds.json \\
  --per_device_train_batch_size=8 --evaluation_strategy=steps
"""
(place / "ds.json").write_text(json.dumps(config), encoding="utf-8")
(place / "job.sbatch").write_text(job, encoding="utf-8")
said = explain([place / "ds.json", place / "job.sbatch"]).findings
for one in said:
    print(f"{one.kind}: {one.sentence.replace(f'{place}/', '')}")
kinds = {"refused", "dangerous", "removed", "contradictory"}
teach.claim("four kinds of trouble", {one.kind for one in said} == kinds)

# %% [markdown]
# ### Deeper: Exercise 15.7 · debug
#
# Take a launch file of your own (or one that you found, or one you repaired above). Write down three settings or more
# that you believe it has, under common names such as `micro_batch`, `accumulation`, `precision`, `nodes`,
# `world_size`, `strategy`, or its own. `explain` compares. Mend the file, or your belief, until it finds nothing.


# %%
def my_file():
    """Returns (path, {setting: value, ...}); for several files a list of paths."""
    return ...


# %%
teach.check("15.7", my_file)

# %% [markdown]
# ## 7 · Run here what you will run there
#
# Before paying for sixteen GPUs, start the *generated files* with two processes on this machine: the same scripts and
# strategy, a tiny model, `gloo` instead of NCCL. (accelerate considers FSDP and DeepSpeed on GPUs only; a small patch,
# `sitecustomize.py`, changes that here.) All files start the same program, `course_utils/recipes/finetune.py`.

# %%
from course_utils.data import load_classification

dataset = load_classification(source)
rows = [json.dumps({"text": text}) + "\n" for text in dataset["train"]["text"][:600]]
(place / "sentences.jsonl").write_text("".join(rows), encoding="utf-8")
rehearsal = example.but(
    model="course/causal",
    precision="fp32",
    sequence_length=64,
    micro_batch=4,
    accumulation=2,
    global_batch=None,
    max_steps=24,
    save_every=4,
    arguments=("--task=causal_lm", "--train_file=sentences.jsonl", "--logging_steps=1"),
)
print(rehearsal.on_cpu(2).effective_batch, "sequences per step on 2 processes")

# %% [markdown]
# `run_here` executes one script with bash and returns `run.json`, where the program wrote what its ranks saw (the
# wrapper is the class around the model). ZeRO-3 through accelerate:

# %%
from course_utils.launch.run_here import run_here

zero3 = run_here(rehearsal.but(strategy="zero3", save_every=24), "accelerate.sh", place)
facts = ("world_size", "backend", "wrapper", "strategy", "effective_batch")
for name in (*facts, "parameters", "parameters_held"):
    print(f"{name:18}{zero3[name]}")
seen = (zero3["world_size"], zero3["strategy"], zero3["effective_batch"])
teach.claim("two ranks that met, ZeRO-3, 16 sequences", seen == (2, "zero3", 16))
weights, moments = rehearsals.planned_shard(rehearsal.but(strategy="zero3"))
held = (zero3["parameters_held"], zero3["optimizer_held"])
teach.claim("the shards are the plan's", held == ([weights] * 2, [moments] * 2))

# %% [markdown]
# ### Pre-emption: stopped, and started again
#
# A run loses its machines: to a more urgent job (**pre-emption**), or when its time limit is over. The warning is a
# signal some seconds ahead. To **requeue** is to put the job into the queue again, under its number. Each time on its
# machines is a **stay**:

# %%
teach.show(figures.requeue())

# %% [markdown]
# The signal must *reach* the ranks: the launcher would die of it, so the script passes it on. There it only sets a
# flag; at the end of the step all ranks agree, save a checkpoint and end with code 0, or the cluster takes it for a
# failure. The same command must go on from the last *complete* checkpoint. Here `stop_after_a_checkpoint` sends SIGTERM
# to FSDP2's `torchrun.sh`, as a cluster would; then the same script starts once more (the checkpoint carries the first
# stay's losses):

# %%
stopped = rehearsal.but(strategy="fsdp2", output_dir="runs/stopped")
first_stay = rehearsals.stop_after_a_checkpoint(stopped, place)
before_the_end = 4 <= first_stay["steps"] < 24
print("first stay:", first_stay["state"], "| before the last step:", before_the_end)
second_stay = run_here(stopped, "torchrun.sh", place)
print("second stay:", second_stay["wrapper"], "| steps:", second_stay["steps"])
went_on = second_stay["resumed_from"] == first_stay["steps"]
went_on = went_on and second_stay["steps"] == 24
teach.claim("stopped early, with a checkpoint", before_the_end)
teach.claim("it went on where it was, to step 24", went_on)
whole_run, in_two = dict(zero3["losses"]), dict(second_stay["losses"])
worst = max(abs(loss - whole_run[step]) for step, loss in in_two.items())
teach.claim("24 losses equal ZeRO-3's within 1e-4", worst < 1e-4 and len(in_two) == 24)

# %% [markdown]
# Two strategies, two launchers, one run interrupted: the same losses. In fp32 sharding changes where numbers live and
# the order of sums, no more. This checks program, files and resuming on one machine, and nothing of NCCL, a network or
# more ranks: look again in the first minute on the cluster (`preflight.py` does).
#
# ### Exercise 15.8 · debug
#
# A run on 16 GPUs ended with code 0. Below are what was asked, its `run.json` and its log, then lines that other runs
# left behind (`#`: our remarks). Write `diagnose`, which names what went wrong with *any* run, by a short name in
# `CAUSES`; if several apply, the first.

# %%
from course_utils.lessons.lesson_15 import exercises_run
from course_utils.lessons.lesson_15.exercises_run import ASKED, BAD_RUN, CAUSES

print(ASKED, json.dumps(BAD_RUN[0]), BAD_RUN[1], sep="\n")
print(*exercises_run.LEFT_BEHIND, sep="\n")
print(*(f"{name:7} {meaning}" for name, meaning in CAUSES.items()), sep="\n")


# %%
def diagnose(asked, run, log):
    """asked, run: dicts with all keys above; log: text, of both stays if two.

    Returns a key of CAUSES.
    """
    return ...


# %%
teach.check("15.8", diagnose)

# %% [markdown]
# ### Deeper: SLURM, a job that comes back
#
# A job script is a shell script with a header that SLURM reads. `--signal` sends a warning before the *time limit*,
# `--requeue` allows the job to be queued again, and `--open-mode=append` keeps the log of the first stay. Below the
# header stands one trap that hangs jobs on many clusters. The rank of a machine is `SLURM_PROCID` *inside* `srun`. In
# the batch script, which runs once on the first machine, it is 0, and that 0 would be handed to every machine: nobody
# would be number 1. Hence the single quotes:

# %%
excerpt("slurm.sbatch", "#SBATCH --job-name", "#SBATCH --open-mode")
excerpt("slurm.sbatch", "read -r MASTER_ADDR", "export MASTER_ADDR")
excerpt("slurm.sbatch", "export SRUN_CPUS", "export SRUN_CPUS")
excerpt("slurm.sbatch", "srun --kill", "srun --kill")

# %% [markdown]
# On every machine `torchrun.sh` first starts `preflight.py`: is every rank there, alike, and as fast as planned? The
# batch script gets `USR1`, passes it to every machine's `torchrun.sh`, waits for the ranks to save, and calls
# `scontrol requeue`, but only if the run is not finished and has saved something new: a program that fails or saves
# nothing would otherwise start for ever. A more urgent job is no time limit: SLURM then sends `TERM` to all machines
# and queues the job again itself; `torchrun.sh` passes that on, too. `tests/launch` of this project submits the script
# to SLURM's own daemons, two nodes of them on one machine, requeues it, and asserts that it resumes.

# %% [markdown]
# ## Deeper: the same run with PyTorch Lightning
#
# Lightning solves the same problem as the Trainer with another split. The Trainer owns the loss, the optimizer and
# the loop, and you change settings. In Lightning you write a `LightningModule` with the step and the optimizer, and
# its Trainer owns the loop and the devices. Is it the same training? Same model, rows, order, optimizer, schedule,
# clipping.

# %%
from transformers import DataCollatorWithPadding

from course_utils.models import load_classifier, load_tokenizer

tokenizer = load_tokenizer(source)
texts = list(dataset["train"]["text"][:960])
encoded = tokenizer(texts, truncation=True, max_length=32)
labels = list(dataset["train"]["label"][:960])
names = ("input_ids", "attention_mask")
train_rows = []
for i in range(960):
    train_rows.append({n: encoded[n][i] for n in names} | {"labels": labels[i]})
collate = DataCollatorWithPadding(tokenizer)
num_labels = dataset["train"].features["label"].num_classes


# %% [markdown]
# Both start from the same weights. Both seed right before the first forward pass, so that dropout draws the same
# numbers (lesson 03). And both note the time after every step.

# %%
from transformers import TrainerCallback, set_seed

STEPS = 20
times = {"Trainer": [], "Lightning": [], "same order": []}


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
import logging
import warnings

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
        # a pretrained model arrives in evaluation mode
        self.model, self.losses = model.train(), []

    def training_step(self, batch, batch_index):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        # none for biases and norms (lesson 01)
        groups = parameter_groups(self.model, weight_decay=0.01)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        scheduler = get_linear_schedule_with_warmup(optimizer, 5, STEPS)
        # the default interval is an epoch
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


# %%
class LightningWatch(pl.Callback):
    def __init__(self, name="Lightning"):
        self.ticks = times[name]

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if batch_index == 0:
            set_seed(seed)

    def on_train_batch_end(self, *args, **kwargs):
        self.ticks.append(time.perf_counter())


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


# %% tags=["nbval-ignore-output"]
def differences(module):
    """Largest difference to the Trainer, of the losses and of the final weights."""
    losses = [value for _, value in logged(of_trainer, "loss")]
    both = (of_trainer.model.parameters(), module.model.parameters())
    weights = zip(*both, strict=True)
    pairs = zip(losses, module.losses, strict=True)
    in_losses = max(abs(a - b) for a, b in pairs)
    return in_losses, max((a - b).abs().max().item() for a, b in weights)


in_losses, in_weights = differences(of_lightning)
print(f"largest difference: losses {in_losses:.0e}, weights {in_weights:.0e}")
teach.claim("losses equal within 1e-5", in_losses < 1e-5)
teach.claim("final weights within 1e-4", in_weights < 1e-4)

# %% [markdown]
# Equal to rounding, but perhaps not bit for bit. Where does the last bit go? Clipping adds up the squared norms of all
# gradients. The Trainer adds in the order of `model.parameters()`, Lightning in the order of the optimizer's groups,
# and sums of floats depend on their order. If that is all, one override makes the two runs equal to the last bit:


# %%
class SameOrder(Classifier):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, **_):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)


same_order = with_lightning(SameOrder(fresh_model()), [LightningWatch("same order")])
in_losses, in_weights = differences(same_order)
teach.claim("losses and weights: equal bit for bit", in_losses == in_weights == 0)

# %% [markdown]
# That was all. Both are the loop of lesson 01. One line in `Classifier` is easy to forget, though: `model.train()`.
# `from_pretrained` returns a model in evaluation mode. The Trainer switches it before every step; Lightning keeps the
# mode that it finds. Without that line a pretrained model is fine-tuned with its dropout off, and nothing says so:

# %%
asleep = Classifier(fresh_model())
asleep.model.eval()  # as from_pretrained leaves it
with_lightning(asleep, [])
teach.claim("Lightning trained it without dropout", not asleep.model.training)

# %% [markdown]
# So the choice is about code and features, not about training. The time of a step, the median of one run: on a machine
# that also does other work a difference decides nothing, and the claim catches gross faults only.

# %% tags=["nbval-ignore-output"]
import itertools
import statistics

per_step = {}
for name in ("Trainer", "Lightning"):
    gaps = [b - a for a, b in itertools.pairwise(times[name])]
    per_step[name] = statistics.median(gaps)
ratio = per_step["Lightning"] / per_step["Trainer"]
print({name: f"{1e3 * seconds:.0f} ms" for name, seconds in per_step.items()})
teach.claim("neither takes three times as long", 1 / 3 < ratio < 3)

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

loss = torch.tensor(2.0)  # normalize=4 stands for accumulate_grad_batches=4
part = ClosureResult.from_training_step_output(loss, normalize=4)
teach.claim("a loss of 2.0 counts 0.5", part.closure_loss.item() == 0.5)

# %% [markdown]
# With padding or packed text, normalise by hand there. Choose the Trainer for models of the hub, with their
# checkpoints and ready-made sharding; choose Lightning for research code with an unusual step. Both start from the
# same launch files.

# %% [markdown]
# ## 8 · Your run
#
# ### Exercise 15.9 · write
#
# Somebody ordered the run below, in precision `bf16`, all weights trained. Decide the rest of the spec (`strategy`,
# `replicas`, `micro_batch`, `offload`, `checkpointing`, `reshard_after_forward`), so that it fits and trains at 90% of
# the fastest plan's speed or more; `write` its files into `folder`; return the spec.

# %%
from course_utils.lessons.lesson_15.exercises_run import ORDER

print(ORDER)  # time_limit: minutes of one stay; a longer run is queued again


# %%
def launch(folder):
    """folder: a path that does not exist yet. Returns the Spec."""
    return ...


# %%
teach.check("15.9", launch)

# %% [markdown]
# ## Recap
#
# - A parameter in training costs 16 bytes. Sharding divides them; a layer must be gathered to be used.
# - Activations grow with tokens and layers, logits with tokens and vocabulary. Memory is tightest at one moment.
# - Time is computing (measure your MFU), plus the communication that does not hide. What is reduced once per step hides
#   behind the last backward pass only.
# - torchrun must know how many machines there are, which one this is, and where all meet.
# - An exit code of 0 proves nothing. Compare what tools resolve with what was asked, and what ranks see with the plan.
# - Pre-emption: warned, saved, ended with 0, started again by the same command.
#
# ## Quiz
#
# **1.** Your 7B model fits on 8 GPUs with FSDP2 and accumulation 1. With accumulation 4 and the same micro-batch it
# runs out of memory. Why?
#
# <details><summary>Answer</summary>
#
# Under `no_sync` FSDP adds up *whole* gradients: 2 bytes x 7 billion = 13 GiB on every GPU. A larger micro-batch with
# checkpointing avoids them; so do `sync_each_batch` and ZeRO-2 or 3, and pay in traffic.
#
# </details>
#
# **2.** You double the machines from 2 to 4 and keep `global_batch`. The planner says that tokens per second rise by
# much less than two. Where can the time go?
#
# <details><summary>Answer</summary>
#
# Computing and gathering halve. What happens once per step does not shrink: reducing 2 bytes x all parameters, behind a
# last backward pass as long as before. More machines add latency. Larger batches or HSDP help.
#
# </details>
#
# **3.** `accelerate launch --config_file fsdp.yaml train.py` trains a model that should not fit on one GPU. Which four
# facts do you want to see before you believe that it is sharded?
#
# <details><summary>Answer</summary>
#
# From inside the program: the world size, the wrapper's class, the number of parameters that one rank holds against
# those of the model, and the effective batch.
#
# </details>

# %% [markdown]
# ## Deeper: two more questions
#
# **4.** A job on 4 machines hangs at the start, and after some minutes all of them report a time-out.
# `NODE_RANK=$SLURM_PROCID` stands in the batch script, above the line with `srun`. What happened?
#
# <details><summary>Answer</summary>
#
# The batch script runs once, on the first machine, where `SLURM_PROCID` is 0. All four machines were told that they
# are machine 0, so nobody ever was number 1. The variable must be evaluated inside `srun`.
#
# </details>
#
# **5.** Why does `finetune.py` let *all* ranks agree on stopping, although each of them gets the signal?
#
# <details><summary>Answer</summary>
#
# They do not get it at the same instant. If rank 0 stops after step 41 and rank 1 wants to compute step 42, rank 1
# waits in its first collective for ever. One small all-reduce at the end of each step settles it.
#
# </details>

# %% [markdown]
# ## Next
#
# Put your own model and machines into the parameters cell, and run the notebook again; or:
#
# ```bash
# papermill notebooks/15_launch.ipynb out.ipynb -p model Qwen/Qwen3-8B -p num_nodes 2 -p gpus_per_node 8
# ```
#
# The last cell writes that spec's files into `launch` in the project's root; start them from the root. Launch files of
# an earlier run are replaced; a folder that holds anything else is refused. The table has a line for each setting that
# three files or more state, and for each that is not as asked. (Sizes of 1, 1, 1, 1 say that no `parallelism_config` is
# written: FSDP shards over all ranks.)

# %%
from course_utils.lessons.lesson_15.rehearsals import check_in, summary

scratch.cleanup()
written, resolved = check_in(root, yours, folder)
where = "one folder above this notebook" if root != Path.cwd() else "here"
print(f"{folder}/ ({where})")
print(*(f"├── {path.name}" for path in written), sep="\n")
# {} and []: nothing asked for, nothing found
print(f"\n{verdict(plan(yours))}\n\n{table(summary(resolved))}\n")
teach.show(figures.strategy_memory(strategies(yours)))
teach.claim("all settings are as asked", all(row.same for row in resolved))
