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
# # 12 · Sharding: ZeRO and FSDP
#
# Data parallel training keeps all parameters, gradients and optimizer state on every GPU. A model that does not fit on
# one GPU does not fit on a thousand. Sharding divides these states among the ranks: the same run, less memory, more
# traffic. This lesson builds it by hand, then uses PyTorch's `fully_shard`, Accelerate and the Trainer.
#
# **You will be able to**
#
# - say how many bytes each GPU holds under DDP, ZeRO and FSDP, and measure it;
# - divide a model's states among ranks by hand, and show that training stays the same;
# - use `fully_shard`: what to wrap, when to reshard, which precision;
# - save a sharded model and turn it into a folder that `from_pretrained` reads;
# - find a setting that is silently ignored by looking at what it resolved to.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 03 (Trainer), 08 (ranks, `prepare`) and 11 (collectives, DDP).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 60  # optimizer steps of the run whose model is saved
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Where we are going
#
# What training keeps for each parameter, in float32 with AdamW: 4 bytes for the parameter, 4 for its gradient, 8 for
# AdamW's two moments. These 16 bytes are the **model states**. Activations come on top; sharding the states does not
# change them.
#
# Lesson 11's DDP holds all 16 bytes on every rank, though the copies are equal. **ZeRO** (Zero Redundancy Optimizer)
# gives each of N ranks a part instead, its **shard**, in three stages.

# %%
from course_utils.lessons.lesson_12 import figures, task

teach.show(figures.stages())

# %% [markdown]
# Each stage divides one state more. **FSDP** (Fully Sharded Data Parallel) is PyTorch's name for stage 3. Each rank
# still works on rows of its own.
#
# We repeat the run that lessons 11 to 13 share: a decoder with two layers, batches of 8 rows, a few AdamW steps. It
# trains on sentences like these of this project's own:

# %%
from course_utils.data.own_text import own_sentences
from course_utils.parallel import reference

for sentence in own_sentences()[:2]:
    print("-", sentence)
batch = reference.global_batches(1, source=source)[0]
print({name: tuple(values.shape) for name, values in batch.items()})
parameters = task.reference_parameters()
print(f"{parameters:,} parameters")

# %% [markdown]
# | per parameter, fp32 + AdamW | bytes on each of N ranks |
# |---|---|
# | DDP | 4 + 4 + 8 = 16 |
# | ZeRO-1 | 4 + 4 + 8/N |
# | ZeRO-2 | 4 + (4 + 8)/N |
# | ZeRO-3, FSDP | 16/N, and what is *gathered*, whole for a while: a layer being computed, the outer unit (section 2) |
#
# `shared_ranks(2)` are lesson 08's two waiting processes. On each, `train_sharded` trains that run in the way `kind`.
# It returns what really ran and what the rank held: states before the last optimizer step, and what was gathered when
# its forward pass ended. `held` counts the memory behind the tensors, each piece once. `expected` is the table as a
# function. "No resharding" is a setting of section 4.

# %%
import course_utils.parallel.held as measure
from course_utils.parallel import shared_ranks
from course_utils.parallel.fsdp_runs import train_sharded

teach.show_source(measure.held)
ranks = shared_ranks(2)
run = {"steps": 6, "seed": seed, "source": source}
kinds = {"DDP": "ddp", "ZeRO-1": "zero1", "ZeRO-2": "zero2", "ZeRO-3": "zero3"}
kinds["fully_shard"] = "fully_shard"
ways = {name: {"kind": kind} for name, kind in kinds.items()}
ways["no resharding"] = {"kind": "fully_shard", "reshard_after_forward": False}
runs = {name: ranks(train_sharded, **way, **run) for name, way in ways.items()}

# %%
outer, held, formula = task.outer_parameters(), {}, {}
for name, way in ways.items():
    first = runs[name][0]
    held[name] = first["held"] | {"gathered": first["gathered"]}
    gathered = measure.expected_gathered(parameters, outer, **way)
    states = measure.expected(parameters, 2, way["kind"])
    formula[name] = states | {"gathered": gathered}
teach.show(figures.held_bytes(held, formula, parameters))
teach.claim("measured = formula, state by state, to the byte", held == formula)

# %% [markdown]
# DDP and `fully_shard` are PyTorch's; section 2 builds the three between by hand. With more ranks only the divided
# parts shrink: ZeRO-1 and ZeRO-2 have a floor, and ZeRO-3 has what is gathered.
#
# DDP here uses `gradient_as_bucket_view=True`; by default its buckets hold a second copy of the gradients.

# %% [markdown]
# ### Deeper: the planner's sum
#
# Lesson 15's **planner** computes such sums for any model from a `Spec`, a description of the run. `task.planned` asks
# it about this one. It plans DeepSpeed's ZeRO (lesson 13), which differs from ours: stage 3 keeps what it has gathered,
# up to a limit, and the optimizer updates *master copies*, slices beside the parameters. Bytes per parameter held,
# planned, and of planned master copies:

# %%
teach.show_source(task.planned)
apart = []
for name, way in ways.items():
    planned, masters = task.planned(**way)
    apart += [(name, s) for s in planned if planned[s] != held[name][s]]
    sums = sum(held[name].values()), sum(planned.values()), masters
    print(f"{name:13}", *(f"{size / parameters:5.1f}" for size in sums))
teach.claim("they differ in one", apart == [("ZeRO-3", "gathered")])

# %% [markdown]
# ### Exercise 12.1 · predict
#
# A model of 2 billion parameters is trained on 4 GPUs with everything in bfloat16: parameters, gradients and both
# moments, 2 bytes a number. How many GB (10^9 bytes) of model states does each GPU hold, without gathered layers?

# %%
prediction = ...  # {"ddp": GB, "zero1": GB, "zero2": GB, "zero3": GB}

# %%
teach.check("12.1", prediction)

# %% [markdown]
# ## 2 · By hand, a stage at a time
#
# ### A unit: one flat buffer
#
# Shards should be equally long, whatever the shapes. So the parameters of a **unit**, a layer for instance, are laid
# end to end in one buffer, padded to a multiple of N and cut into N slices. The model's parameters become views into
# the buffer.

# %%
teach.show(figures.cut([(6, 4), (5,), (3, 4)]))

# %%
from course_utils.parallel import zero

teach.show_source(zero.Unit)

# %% [markdown]
# Two of lesson 11's collectives do the work. **Reduce-scatter** leaves each rank with its slice of the summed
# gradients. **All-gather** puts the slices together on every rank.
#
# ### Stage 1: a slice of the optimizer
#
# AdamW treats every number for itself, so each rank's optimizer can work on its own slice only. A step is then:
# reduce-scatter the gradients, update the slice, all-gather the parameters.

# %%
teach.show_source(zero.Zero1)

# %% [markdown]
# ### Stage 2: the gradients too
#
# A rank needs its slice of the gradients only. Stage 2 reduces a unit as soon as `backward` has finished with it, and
# drops the rest. PyTorch calls a hook when a parameter's gradient is complete; the unit's last one starts the exchange.

# %%
teach.show_source(zero.Zero2)

# %% [markdown]
# ### Stage 3: the parameters too
#
# A layer needs its whole parameters only while it is computed. So keep slices, **gather** a layer before its forward
# pass, **free** it afterwards, gather it again for the backward pass.

# %%
teach.show_source(zero.Zero3)
teach.show_source(zero.fetch)
teach.show_source(zero.free)

# %% [markdown]
# One step over time. On a GPU the network runs ahead and gathers the next layer while this one is computed. The
# **outer unit** is what belongs to no layer: here the embedding, whose matrix is the output layer's too, and the last
# norm. It stays gathered from its first use to its last.

# %%
teach.show(figures.one_step())

# %% [markdown]
# ### Is it the same run?
#
# All of them against one process that trains on the whole batch. The ranks' halves hold different numbers of targets,
# so each loss is divided by the targets of the whole batch (lesson 08):

# %%
for name, both in runs.items():
    first = both[0]
    print(f"{name:12} {first['wrapper']:24} {next(iter(first['shards'].items()))}")
weights = [rank["from_alone"] for both in runs.values() for rank in both]
losses = [rank["losses_from_alone"] for both in runs.values() for rank in both]
teach.claim("losses are those of one process within 1e-5", max(losses) < 1e-5)
teach.claim("final weights agree within 1e-4", max(weights) < 1e-4)
lengths = [rank["gradient_from_alone"] for both in runs.values() for rank in both]
teach.claim("the first gradients are equally long within 0.01%", max(lengths) < 1e-4)
sizes = {rank["world_size"] for both in runs.values() for rank in both}
teach.claim("every run had two ranks that met", sizes == {2})

# %% [markdown]
# Why not bit for bit? Two ranks sum in another order than one process. That shows in the last digits, and AdamW
# enlarges it where a gradient is nearly zero. The bound on the weights is a tenth of one step at learning rate 1e-3.
#
# Why the gradients' lengths? AdamW divides by their size, so a lost factor (a mean in place of a sum) hardly moves the
# weights. SGD and clipping would notice.
#
# ### Exercise 12.2 · write
#
# Shard one layer by hand. `weight` has any shape. `gradients[r]` is rank r's gradient of it; the step needs their
# **sum**. Return the list of slices after one step of plain SGD, one flat tensor per rank, all equally long, padded
# with zeros. `weight` itself may be changed.


# %%
def sharded_step(weight, gradients, lr):
    """The ranks' slices of `weight` after weight -= lr * sum of gradients."""
    return ...


# %%
teach.check("12.2", sharded_step)

# %% [markdown]
# ## 3 · What it costs: traffic
#
# This course's `Exchanged` notes every collective that torch calls, with the number of elements. An all-gather or a
# reduce-scatter of n elements moves n. An all-reduce is one after the other, so 2n.

# %%
steps = {name: ranks(task.exchanged_in_a_step, **way)[0] for name, way in ways.items()}
teach.show(figures.volumes(steps))
moved = {name: step["volume"] / parameters for name, step in steps.items()}
twice = ("DDP", "ZeRO-1", "ZeRO-2", "no resharding")
teach.claim("these move 2 numbers per parameter", all(moved[n] == 2 for n in twice))
teach.claim("ZeRO-3 moves between 2.5 and 3", 2.5 < moved["ZeRO-3"] <= 3)
teach.claim("ours = fully_shard", moved["ZeRO-3"] == moved["fully_shard"])

# %% [markdown]
# What stages 1 and 2 save costs no traffic. The ZeRO paper ([Rajbhandari et al.
# 2020](https://arxiv.org/abs/1910.02054)) counts 3 numbers per parameter for stage 3; here it is less, because the
# outer unit is gathered once, not twice.
#
# With accumulation the stages differ more. DDP can wait with its exchange until the last micro-batch. ZeRO-2 keeps no
# whole gradients, so it reduces after every one, and ZeRO-3 gathers for every one as well. Two micro-batches:

# %%
two = {name: {"kind": kind, "micro_batches": 2} for name, kind in kinds.items()}
steps = {name: ranks(task.exchanged_in_a_step, **way)[0] for name, way in two.items()}
again = {name: step["volume"] / parameters for name, step in steps.items()}
print({name: round(factor, 2) for name, factor in again.items()})
teach.claim("DDP and ZeRO-1 wait", again["DDP"] == again["ZeRO-1"] == 2)
teach.claim("ZeRO-2 reduces a second time", again["ZeRO-2"] == 3)
doubled = again["ZeRO-3"] == again["fully_shard"] == 2 * moved["ZeRO-3"]
teach.claim("stage 3 moves twice as much", doubled)

# %% [markdown]
# ## 4 · The real one: `fully_shard`
#
# `fully_shard(module)` makes a module's parameters into shards and adds the hooks, in place. Call it on each layer,
# then on the whole model, which takes what is left. Our `join` lets the ranks meet and returns this rank's device; our
# `my_rows` is this rank's part of a batch.

# %%
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from course_utils.parallel.sharded import join, my_rows, shard


def look_at_shards(seed):
    device = join()
    model = reference.new_model(seed).to(device)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    weight = model.model.layers[0].mlp.down_proj.weight
    odd = fully_shard(nn.Linear(4, 5).to(device)).weight
    return {
        "model": type(model).__name__,
        "weight": type(weight).__name__,
        "placements": str(weight.placements),
        "shape": list(weight.shape),
        "local": list(weight.to_local().shape),
        "odd": list(odd.to_local().shape),
    }


looks = ranks(look_at_shards, seed=seed)
for name, value in looks[0].items():
    print(f"{name:11} {value}")

# %% [markdown]
# A **DTensor** (distributed tensor) is one tensor that lies on several ranks. It knows its whole `shape`, the **mesh**
# (its ranks as a grid), and a **placement** for each dimension of the mesh: `Shard(0)` is cut along dimension 0,
# `Replicate()` is whole on every rank. `to_local()` is this rank's part. `fully_shard`, also called **FSDP2**, cuts
# each parameter by rows, not a flat buffer: every parameter keeps its name and shape, and parts may differ in length.

# %%
shapes = {"down_proj (64, 160)": [rank["local"] for rank in looks]}
shapes["odd (5, 4)"] = [rank["odd"] for rank in looks]
teach.show(figures.dtensor(shapes))
together = [sum(rank[name][0] for rank in looks) for name in ("local", "odd")]
teach.claim("the ranks' rows make up the whole", together == [64, 5])

# %% [markdown]
# ### What to wrap
#
# What you wrap is gathered at once. Three choices on a decoder with six layers, the gathered memory measured after each
# operation of a step:

# %%
teach.show_source(shard)
choices = {
    "per layer": {},
    "per layer, no resharding": {"reshard_after_forward": False},
    "one unit": {"per_layer": False},
}
look = task.gathered_over_a_step
watched = {n: ranks(look, layers=task.LAYERS, **o)[0] for n, o in choices.items()}
teach.show(figures.gathered(watched))
peak = {n: max(r["forward"] + r["backward"]) / r["whole"] for n, r in watched.items()}
teach.claim("per layer: at most a third is gathered", peak["per layer"] < 1 / 3)
others = peak["one unit"], peak["per layer, no resharding"]
teach.claim("the others gather all at some time", others == (1, 1))

# %% [markdown]
# - **Per layer** is the usual choice: the peak is the outer unit and one layer. On a GPU, where the next layer is
#   gathered ahead, count two.
# - **`reshard_after_forward=False`** keeps what was gathered until the backward pass: all parameters, as in ZeRO-2.
#   That saves an all-gather (section 3's "no resharding").
# - **One unit** is the mistake: the whole model is there whenever it computes. It happens with `fully_shard(model)`
#   alone, and with Accelerate's wrapping policy `NO_WRAP`.
#
# In the backward pass a unit's whole gradients come on top, until they are reduced.
#
# ### Exercise 12.3 · vary
#
# Larger units mean fewer exchanges and more gathered memory. A model has `num_layers` layers of `layer` parameters each
# and `outside` parameters beside them. All is float32 with AdamW on `gpus` GPUs. A unit is k layers, and k divides
# `num_layers`. At the peak a GPU holds its shards of the states, the outer unit and **two** units: one is computed, the
# next one gathered. With k = `num_layers` there is only one. Leave out whole gradients and activations, and do not
# round shards. Return the largest k that fits into `budget` bytes, 0 if none does.


# %%
def layers_per_unit(num_layers, layer, outside, gpus, budget):
    return ...


# %%
teach.check("12.3", layers_per_unit)

# %% [markdown]
# ### Precision and offload
#
# `MixedPrecisionPolicy` says in which type a unit is gathered and computed (`param_dtype`) and in which gradients are
# summed (`reduce_dtype`). The shards and the optimizer stay float32. `CPUOffloadPolicy` keeps the shards in the host's
# memory and brings them to the GPU unit by unit; with `True` it pins that memory (fixes it in place, for fast copies).
# `Peak` is ours: a function's largest value after any operation of a block.

# %%
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy


def with_policy(policy, seed, source):
    options = {
        "float32": {},
        "bfloat16": {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)},
        "offload": {"offload_policy": CPUOffloadPolicy(torch.cuda.is_available())},
    }
    device, computed = join(), []
    model = shard(reference.new_model(seed).to(device), **options[policy])
    module = model.model.layers[0].mlp.up_proj
    weight = module.weight  # the shard
    module.register_forward_pre_hook(lambda m, x: computed.append(m.weight.dtype))
    mine = my_rows(reference.global_batches(1, source=source)[0], device)
    with measure.Peak(lambda: measure.gathered_bytes(model)) as peak:
        reference.summed_loss(model, mine).backward()
    dtypes = {"shard": weight.dtype, "computed": computed[0]}
    dtypes["gradient"] = weight.grad.dtype
    found = {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}
    return found | {"gathered": peak.highest, "shard on": weight.device.type}


policies = ("float32", "bfloat16", "offload")
used = {p: ranks(with_policy, policy=p, seed=seed, source=source)[0] for p in policies}
for policy, facts in used.items():
    print(f"{policy:9}", *(f" {name}: {value}" for name, value in facts.items()))
half = used["bfloat16"]["gathered"] / used["float32"]["gathered"]
teach.claim("bfloat16 halves what is gathered", half == 0.5)
kept = used["bfloat16"]["shard"], used["bfloat16"]["gradient"]
teach.claim("shards and gradients stay float32", kept == ("float32", "float32"))
has_gpus = torch.cuda.is_available()  # without them every shard lies on the CPU
offloaded = used["offload"]["shard on"] == "cpu"
teach.claim("offloaded shards lie on the CPU", offloaded, when=has_gpus)

# %% [markdown]
# ## 5 · Saving: shards or everything
#
# `state_dict` of a sharded model holds DTensors. Two ways to save it:
#
# | | sharded | full |
# |---|---|---|
# | each rank writes | its shard, at once | rank 0 everything, the others nothing |
# | memory | its shard | on rank 0 the whole model |
# | to read | `torch.distributed.checkpoint` (DCP), any number of ranks | anybody |
#
# `get_model_state_dict` gives either. **Every rank must call it**: gathering is a collective, and with
# `if rank == 0:` around it rank 0 waits until the backend's timeout. With `full_state_dict=True` alone every rank gets
# everything; only `cpu_offload=True` beside it leaves the others an empty dict. The reference run trains `max_steps`
# steps and saves in both ways:

# %%
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.state_dict as states


def train_and_save(steps, seed, source, folder):
    device = join()
    model = shard(reference.new_model(seed).to(device))
    optimizer = reference.new_optimizer(model)  # after sharding: section 7
    for batch in reference.global_batches(steps, seed=seed, source=source):
        loss = reference.summed_loss(model, my_rows(batch, device))
        loss = loss / reference.count_targets(batch)
        (2 * loss).backward()  # FSDP averages over the 2 ranks; we want the sum
        optimizer.step()
        optimizer.zero_grad()
    shards = states.get_model_state_dict(model)
    dcp.save(shards, checkpoint_id=f"{folder}/sharded")
    options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = states.get_model_state_dict(model, options=options)
    if whole:
        torch.save(whole, f"{folder}/full.pt")
    return len(whole)


# %%
from pathlib import Path
from tempfile import TemporaryDirectory

scratch = TemporaryDirectory()
train = {"steps": max_steps, "seed": seed, "source": source, "folder": scratch.name}
saved = ranks(train_and_save, **train)
print("tensors in the full state dict:", saved)
print(sorted(path.name for path in Path(scratch.name, "sharded").iterdir()))

# %% [markdown]
# There are 25 names for 24 parameters: the output layer's matrix is the embedding's (they are *tied*). `.metadata`,
# written last, says which piece of which tensor lies in which file.
#
# ### Goes wrong: loading into nothing
#
# `dcp.load(state_dict, checkpoint_id=...)` reads into the tensors that the state dict holds already. An empty one asks
# for nothing:

# %%
sharded = f"{scratch.name}/sharded"
empty = {}
with task.quietly():  # no warning that there are no ranks
    dcp.load(empty, checkpoint_id=sharded)
teach.claim("nothing was loaded, and nothing raised", empty == {})
target = reference.new_model(seed=seed + 1)
state = target.state_dict()
with task.quietly():
    dcp.load(state, checkpoint_id=sharded)  # in place
full = torch.load(f"{scratch.name}/full.pt")
same = all(torch.equal(state[name], full[name]) for name in full)
teach.claim("into a model's state dict: all tensors, bit for bit", same)

# %% [markdown]
# ### A Hugging Face folder
#
# `from_pretrained` reads safetensors and a `config.json`, no DCP. `convert_checkpoint` makes the one from the other, in
# one process without a GPU, and compares every name and shape with the configuration. In a terminal:
# `python -m course_utils.recipes.convert --help`.

# %%
from transformers import AutoModelForCausalLM

from course_utils.parallel.convert import convert_checkpoint

folder = Path(scratch.name, "model")
name = type(target).__name__
made = convert_checkpoint(sharded, target.config, folder, architecture=name)
print(made.source, "->", made.model, f"{made.parameters:,}", *made.files)
loaded = AutoModelForCausalLM.from_pretrained(folder)
with torch.no_grad():
    scores = [m.eval()(batch["input_ids"]).logits for m in (loaded, target)]
teach.claim("the same logits, bit for bit", torch.equal(*scores))

# %% [markdown]
# ## 6 · The same through Accelerate and the Trainer
#
# For `accelerate launch` a YAML file asks for FSDP. The launcher turns it into environment variables, and
# `Accelerator()` reads those:

# %%
print(task.YAML)
environment = task.environment_of(task.YAML)
for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_TRANSFORMER_CLS_TO_WRAP"):
    print(f"{name}={environment[name]}")

# %% [markdown]
# (`cpu_ram_efficient_loading`: only rank 0 reads a checkpoint; we read none.) In the Trainer the same is
# `TrainingArguments(fsdp=True, fsdp_config={...})`, with the same keys less the `fsdp_`, except for offload (section
# 7). Sections 6 and 7 hold for transformers 5.23 and accelerate 1.15.
#
# **On this machine.** Asked for FSDP on CPU ranks, Accelerate trains with DDP and says nothing. So `train_sharded`
# makes CPU ranks look like GPUs to it (`sharded.rehearsal`): one label is changed, the rest is Accelerate's own code.
# First without, then with, and **FSDP1**, the older FSDP, without Accelerate (type None):

# %%
asked = {
    "Trainer, as it is": {"kind": "fsdp2_trainer", "rehearse": False},
    "Trainer": {"kind": "fsdp2_trainer"},
    "Accelerate, YAML": {"kind": "fsdp2", "environment": environment},
    "FSDP1": {"kind": "fsdp1"},
}
more = {name: ranks(train_sharded, **kind, **run) for name, kind in asked.items()}
for name, (first, _) in more.items():
    facts = [first[x] for x in ("world_size", "distributed_type", "wrapper")]
    kept = first["held"]["parameters"] / parameters
    print(f"{name:18}", *facts, f"{kept:.0f} bytes of each parameter")

# %%
runs |= {name: more[name] for name in ("Trainer", "Accelerate, YAML", "FSDP1")}
silent = more["Trainer, as it is"][0]
on_cpu = not torch.cuda.is_available()
is_ddp = silent["wrapper"] == "DistributedDataParallel"
teach.claim("as it is, the run is DDP", is_ddp, when=on_cpu)
right = silent["losses_from_alone"] < 1e-5
teach.claim("and its losses are those of one process within 1e-5", right)
for name in ("Trainer", "Accelerate, YAML"):
    both = more[name]
    kind = {rank["distributed_type"] for rank in both}
    local = {tuple(rank["shards"]["model.embed_tokens.weight"]) for rank in both}
    halved = (kind, local) == ({"FSDP"}, {(256, 64)})
    teach.claim(f"{name}: FSDP, half of the rows", halved)
weights = [rank["from_alone"] for both in runs.values() for rank in both]
teach.claim("all nine end like one process, within 1e-4", max(weights) < 1e-4)
lengths = [rank["gradient_from_alone"] for both in runs.values() for rank in both]
teach.claim("and none has lost a factor of the gradient", max(lengths) < 1e-4)
equal = [sum(more[n][0]["held"].values()) / parameters for n in asked]
teach.claim("8 bytes per parameter where it shards", equal[1:] == [8, 8, 8])

# %% [markdown]
# The silent DDP run has the right losses and exit code 0. Only the wrapper, the type and the bytes give it away. Look
# at these after every first run, on GPUs too.
#
# macOS is untried: there `fully_shard` takes Apple's GPU, which gloo does not serve.
#
# ## 7 · What goes wrong, silently
#
# ### An optimizer made too early
#
# `fully_shard` replaces the parameters. An optimizer that was made before holds the old ones, which nobody uses any
# more. Six steps (without section 5's `2 *`, which AdamW hardly notices), and what has changed in the weights:

# %%
from course_utils.parallel.sharded import whole_weights


def train_with_optimizer(early, seed, source):
    device = join()
    model = reference.new_model(seed).to(device)
    if early:
        optimizer = reference.new_optimizer(model)
    shard(model)
    if not early:
        optimizer = reference.new_optimizer(model)
    before, losses = whole_weights(model), []
    for batch in reference.global_batches(6, seed=seed, source=source):
        mine = my_rows(batch, device)
        loss = reference.summed_loss(model, mine) / reference.count_targets(mine)
        loss.backward()
        losses.append(round(loss.item(), 2))
        optimizer.step()
        model.zero_grad()
    own = {p for group in optimizer.param_groups for p in group["params"]}
    used = sum(p in own for p in model.parameters())
    change = (whole_weights(model) - before).abs().max().item()
    return {"change": change, "own": used, "losses": losses}


few = {"seed": seed, "source": source}
early, late = (ranks(train_with_optimizer, early=e, **few)[0] for e in (True, False))
for name, facts in (("made too early", early), ("made afterwards", late)):
    print(f"{name}: {facts['own']} of the optimizer's parameters are the model's")
    print("  losses:", facts["losses"])
teach.claim("made too early: not one weight changes", early["change"] == 0)
teach.claim("made afterwards: it trains", late["change"] > 1e-3)

# %% [markdown]
# The loss still goes up and down with the batches, so a short look does not show it. The check: are the optimizer's
# parameters the model's? `accelerator.prepare` replaces them for you.
#
# ### Settings that nobody reads
#
# Unknown keys inside `fsdp_config` raise nothing, nor do keys of the other version. What counts is what a setting
# **resolves** to, the values that Accelerate gets. `task.plugin_of` reads them from the `TrainingArguments`,
# `task.environment_of` from a YAML file.

# %%
layer = {"transformer_layer_cls_to_wrap": "Qwen3DecoderLayer"}
wrong = {
    "sharding_strategy": "SHARD_GRAD_OP",
    "fsdp_offload_params": True,
    "reshard_after_foward": False,
}
resolved = task.plugin_of(**layer, **wrong)
print("resharding:", resolved["reshard_after_forward"])
print("offload:", resolved.get("cpu_offload", False))
shown = (resolved["reshard_after_forward"], resolved.get("cpu_offload", False))
teach.claim("three settings, none of them arrived", shown == (True, False))

# %%
yaml = task.YAML + "  fsdp_offload_parameters: true\n"
old = task.YAML.replace("version: 2", "version: 1").replace("true", "SHARD_GRAD_OP")
listed = task.YAML.replace("Qwen3DecoderLayer", "[Qwen3DecoderLayer]")
print("offload:", task.environment_of(yaml)["FSDP_OFFLOAD_PARAMS"])
print("FSDP1 sharding:", task.environment_of(old)["FSDP_SHARDING_STRATEGY"])
print("layer:", task.environment_of(listed)["FSDP_TRANSFORMER_CLS_TO_WRAP"])
ignored = task.environment_of(yaml) == task.environment_of(task.YAML)
teach.claim("a misspelt key in the YAML changes nothing", ignored)

# %% [markdown]
# | you write | it resolves to | write |
# |---|---|---|
# | `sharding_strategy: SHARD_GRAD_OP`, version 2 | resharding on | `reshard_after_forward: false` |
# | `reshard_after_forward: SHARD_GRAD_OP`, version 1, YAML | FULL_SHARD | `fsdp_sharding_strategy` |
# | `fsdp_offload_params` in `TrainingArguments` | no offload | `cpu_offload` |
# | a misspelt key | the default | look at what it resolved to |
# | a YAML list of layer classes | a class named `['Qwen3DecoderLayer']`: raises later | a string, commas between |
#
# ### Exercise 12.4 · debug
#
# A colleague wants, in the Trainer: FSDP2 that does **not** reshard after the forward pass, parameters offloaded to the
# CPU, one unit per `Qwen3DecoderLayer`, named, and **sharded** checkpoints. This runs, and none of the four arrives;
# the version does. Repair it: `repaired` is the `fsdp_config`. The name may stand in a list here: only YAML forbids it.
#
# ```python
# fsdp_config = {
#     "fsdp_version": 2,
#     "sharding_strategy": "SHARD_GRAD_OP",
#     "fsdp_offload_params": True,
#     "fsdp_auto_wrap_policy": "NO_WRAP",
#     "transformer_cls_names_to_wrap": ["Qwen3DecoderLayer"],
#     "checkpoint_type": "SHARDED_STATE_DICT",
# }
# ```

# %%
repaired = ...  # a dict

# %%
teach.check("12.4", repaired)

# %% [markdown]
# ### Exercise 12.5 · write
#
# The objective of this lesson: make a model ready to be trained in shards. `model` is a decoder with its layers in
# `model.model.layers`. Make one unit per layer and one for the rest. The backward pass begins with the last layers, so
# the last `keep` of them stay gathered after the forward pass; the others reshard. Compute in bfloat16, sum
# gradients in float32; AdamW with learning rate `lr`. Return the model and the optimizer. The checker pretends that
# this process is one of four ranks.


# %%
def shard_for_training(model, lr, keep):
    return ...


# %%
teach.check("12.5", shard_for_training)

# %% [markdown]
# ## 8 · What the model does now
#
# The model of section 5, read by `from_pretrained`. How surprised is it by this project's own sentences (loss in nats
# per token), before and after training?

# %%
from course_utils.data import load_classification

sentences = own_sentences()[:4]
fresh = task.loss_per_token(reference.new_model(seed), sentences, source)
after = task.loss_per_token(loaded, sentences, source)
for sentence, a, b in zip(sentences, fresh, after, strict=True):
    print(f"{a:.1f} -> {b:.1f}  {sentence[:64]}")
less = sum(after) < sum(fresh)
teach.claim("it is less surprised than before", less, when=max_steps >= 40)
trained_on = set(load_classification(source)["train"]["text"])
teach.claim("none of the sentences was trained on", trained_on.isdisjoint(sentences))

# %% [markdown]
# ## Deeper: FSDP1 and its names
#
# Before `fully_shard` there was the class `FullyShardedDataParallel`. It flattens units as we did in section 2 and
# wraps modules, so parameter names get `_fsdp_wrapped_module.` inside. Transformers calls it deprecated. You will meet
# it in older scripts. Their words, and today's:
#
# | FSDP1, or elsewhere | today |
# |---|---|
# | `FullyShardedDataParallel(model, auto_wrap_policy=...)` | `fully_shard(layer)` for each, then `fully_shard(model)` |
# | `sharding_strategy=FULL_SHARD` | `reshard_after_forward=True` |
# | `SHARD_GRAD_OP` | `reshard_after_forward=False` |
# | `HYBRID_SHARD` | a mesh with two dimensions (below) |
# | `MixedPrecision`, `CPUOffload` | `MixedPrecisionPolicy`, `CPUOffloadPolicy` |
# | `use_orig_params`, `sync_module_states`, `backward_prefetch` | gone |
# | `FSDP.state_dict_type(model, ...)` | `get_model_state_dict` |
# | `fsdp="full_shard auto_wrap"` in TrainingArguments | `fsdp=True` and `fsdp_config` |
#
# `reshard_after_forward=None`, the default, reshards the layers and not the root, the module sharded last. An explicit
# `True` for the root reshards that too, and the outer unit is then gathered twice.
#
# Without a layer class the Trainer takes the model's own `_no_split_modules`, here `Qwen3DecoderLayer`.
#
# FSDP1 runs on gloo, as section 6 shows. Its checkpoints do not resume exactly on CPU ranks, and its offloading does
# not work there, so neither is shown. What it keeps of a parameter is a piece of the flat buffer; 0 means that the
# parameter lies wholly in the other rank's half:

# %%
for rank in more["FSDP1"]:
    kept = list(rank["shards"].values())[:3]
    print(kept, "...", sum(n for (n,) in rank["shards"].values()))
pieces = [sum(n for (n,) in rank["shards"].values()) for rank in more["FSDP1"]]
teach.claim("two halves that make the whole", sum(pieces) == parameters)

# %% [markdown]
# ## Deeper: a LoRA adapter under FSDP
#
# LoRA (lesson 10) freezes the model and trains two thin matrices beside some of its own, the **adapter**. Under
# `fully_shard` both are shards. Save the adapter only: `ignore_frozen_params=True` leaves the rest out. All but one:
# the output layer's second name for the embedding stays in, so the dict is filtered by name. As in section 7 the loss
# is not scaled: AdamW hardly notices.

# %%
from peft import LoraConfig, PeftModel, get_peft_model


def train_adapter(steps, seed, source, folder):
    device = join()
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    with task.quietly():  # PEFT uses a name that transformers has renamed
        model = get_peft_model(reference.new_model(seed).to(device), settings)
    for layer in model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, foreach=False)
    for batch in reference.global_batches(steps, seed=seed, source=source):
        reference.summed_loss(model, my_rows(batch, device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    options = states.StateDictOptions(ignore_frozen_params=True)
    state = states.get_model_state_dict(model, options=options)
    adapter = {name: shard for name, shard in state.items() if "lora_" in name}
    dcp.save(adapter, checkpoint_id=folder)
    settings.save_pretrained(folder)
    return [len(state), len(adapter)]


train = {"steps": 4, "seed": seed, "source": source}
adapter = f"{scratch.name}/adapter"
print("not frozen, adapter:", ranks(train_adapter, **train, folder=adapter)[0])

# %% [markdown]
# `convert_checkpoint` writes either the adapter's folder, to be put on its base, or a whole model with the adapter
# added to the base's matrices. Both give the same scores, up to the order of sums.

# %%
base = f"{scratch.name}/base"
reference.new_model(seed).save_pretrained(base)
with task.quietly():
    kept = convert_checkpoint(adapter, base, f"{base}-kept", adapter="keep")
    merged = convert_checkpoint(adapter, base, f"{base}-merged", adapter="merge")
print(kept.parameters, *kept.files)
print(merged.parameters, *merged.files)
plain, below, whole = map(AutoModelForCausalLM.from_pretrained, (base, base, merged[0]))
with task.quietly(), torch.no_grad():
    above = PeftModel.from_pretrained(below, kept[0])
    ids = batch["input_ids"]
    before, on_top, inside = (m.eval()(ids).logits for m in (plain, above, whole))
off = (on_top - inside).abs().max().item()
teach.claim("kept and merged agree within 1e-4", off < 1e-4)
moved = (on_top - before).abs().max().item()
teach.claim("and the adapter changes something", moved > 0.01)

# %% [markdown]
# ## Deeper: tensor parallelism by hand
#
# ZeRO divides what is *kept*. **Tensor parallelism** (TP) divides what is *computed*: two ranks get the same rows, and
# each multiplies with a part of the matrix. An MLP needs two exchanges only, if its first matrix is cut by columns and
# its second by rows (Megatron-LM). The activation works on each column for itself, so nothing is exchanged in between.
# This speaks of `x @ W`. torch stores a linear layer's weight as (out, in), so there the words swap: `first` loses half
# of its 64 rows.

# %%
from course_utils.parallel import tensor_parallel

teach.show(figures.two_linears())
teach.show_source(tensor_parallel.Copy)
teach.show_source(tensor_parallel.Add)

# %% [markdown]
# The input is used by every rank's part, so its gradient is the sum of the ranks' gradients: an all-reduce in the
# backward pass. The outputs are parts of a sum: an all-reduce in the forward pass. `ParallelMLP` puts the two linears
# together; the second one's bias is whole on every rank and added once, after the sum. Against the undivided MLP:


# %%
def parallel_mlp(seed):
    from torch import nn

    from course_utils.parallel.sharded import join

    device = join()
    torch.manual_seed(seed)
    first, second = nn.Linear(16, 64).to(device), nn.Linear(64, 16).to(device)
    x = torch.randn(5, 16, device=device)
    results = []
    parallel = tensor_parallel.ParallelMLP(first, nn.GELU(), second)
    whole = nn.Sequential(first, nn.GELU(), second)
    for mlp in (parallel, whole):
        given = x.clone().requires_grad_()
        out = mlp(given)
        out.square().sum().backward()
        results.append((out, given.grad))
    (out, grad), (whole_out, whole_grad) = results
    mine = first.weight.grad.chunk(2)[torch.distributed.get_rank()]
    pairs = [(out, whole_out), (grad, whole_grad), (parallel.first.weight.grad, mine)]
    apart = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    return {"apart": max(apart), "local": list(parallel.first.weight.shape)}


halves = ranks(parallel_mlp, seed=seed)
print([half["local"] for half in halves])
off = max(half["apart"] for half in halves)
teach.claim("outputs and gradients as undivided, within 1e-5", off < 1e-5)

# %% [markdown]
# ## Deeper: four ranks, two dimensions
#
# Ranks can form a grid, a mesh with two dimensions. **HSDP** (hybrid sharding) shards along one and copies along the
# other: shards travel inside a machine, only gradients between machines. **FSDP x TP** cuts parameters twice. Here on
# four tiny ranks, which `Ranks` starts beside the two. In the figure's right half `down_proj` is `RowParallel`, cut
# along dimension 1; `gate_proj` and `up_proj` are cut along dimension 0 by both; attention is cut by FSDP only.

# %%
teach.show(figures.meshes())


# %%
def on_a_mesh(names, seed):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    from course_utils.parallel.sharded import join

    device = join()
    mesh = init_device_mesh(device.type, (2, 2), mesh_dim_names=tuple(names))
    parts, part = 4, torch.distributed.get_rank()  # the batch's rows: a quarter each
    model, alone = (reference.new_model(seed).to(device) for _ in range(2))
    if "tp" in names:
        parts, part = 2, mesh.get_local_rank("dp")  # both tp ranks get the same rows
        plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel()}
        plan["down_proj"] = RowwiseParallel()
        for layer in model.model.layers:
            parallelize_module(layer.mlp, mesh["tp"], plan)
        shard(model, mesh=mesh["dp"])
    else:
        shard(model, mesh=mesh)
    batch = reference.global_batches(1)[0]
    ids = reference.share(batch, part, parts)["input_ids"].to(device)
    with measure.Exchanged() as exchanged:
        logits = model(ids).logits
        logits.float().square().mean().backward()
    whole = alone(batch["input_ids"].to(device)).logits  # all rows, in one process
    whole.float().square().mean().backward()
    name = "model.layers.0.mlp.down_proj.weight"
    weight, wanted = model.get_parameter(name), alone.get_parameter(name).grad
    away = (weight.grad.full_tensor() - wanted).abs()
    return {
        "placements": str(weight.placements),
        "local": list(weight.to_local().shape),
        "calls": sorted({name for name, _ in exchanged.calls}),
        "apart": (logits - whole.chunk(parts)[part]).abs().max().item(),
        "gradient": (away.max() / wanted.abs().max()).item(),
    }


from course_utils.parallel import Ranks

four = Ranks(4, timeout=300)
meshes = {
    "HSDP": four(on_a_mesh, names=["replicate", "shard"], seed=seed),
    "FSDP x TP": four(on_a_mesh, names=["dp", "tp"], seed=seed),
}
four.close()
for name, everyone in meshes.items():
    first = everyone[0]
    print(f"{name:10} {first['placements']:30} {first['local']} {first['calls']}")
for name, everyone in meshes.items():
    sums = "all-reduce" in everyone[0]["calls"]
    teach.claim(f"{name}: all-reduces besides FSDP's calls", sums)
off = max(rank["apart"] for everyone in meshes.values() for rank in everyone)
teach.claim("logits as in one process, within 1e-4", off < 1e-4)
off = max(rank["gradient"] for everyone in meshes.values() for rank in everyone)
teach.claim("gradients of all rows, as in one process, within 0.1%", off < 1e-3)

# %% [markdown]
# `(Replicate(), Shard(dim=0))`: copies along the mesh's first dimension, shards along the second. HSDP adds an
# all-reduce of gradients between the copies, TP the all-reduces of the section before. Under FSDP x TP the matrix of
# 64 x 160 is a quarter on each rank.

# %%
ranks.close()
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# - Model states in fp32 with AdamW are 4 + 4 + 8 bytes per parameter. ZeRO-1 divides the 8, ZeRO-2 the gradients' 4
#   as well, ZeRO-3 and FSDP all. The run is that of one process, up to the order of sums.
# - Without accumulation stages 1 and 2 move as much as DDP, stage 3 up to half as much again.
# - Wrap each layer, then the model; then make the optimizer. `reshard_after_forward=False` spends memory and saves an
#   all-gather.
# - Save shards from all ranks; convert in one process. `dcp.load({})` loads nothing.
# - Assert type, wrapper and local shapes after the start.

# %% [markdown]
# ## Quiz
#
# **1.** Your model's states need 160 GB and you have 8 GPUs of 40 GB. Does ZeRO-1 help, with fp32 and AdamW?
#
# <details><summary>Answer</summary>
#
# No. 160 GB are 16 bytes for each of 10 billion parameters. ZeRO-1 keeps 4 + 4 + 1 = 9 bytes, 90 GB. ZeRO-2 keeps 4 +
# 12/8 = 5.5, 55 GB: still too much. ZeRO-3 keeps 2, 20 GB, and leaves room for activations.
#
# </details>

# %% [markdown]
# **2.** With four micro-batches per step, how often does the by-hand `Zero2` reduce a unit, and why?
#
# <details><summary>Answer</summary>
#
# Four times: a unit's whole gradients are dropped in every backward pass, so they must be reduced before. Parameters
# are gathered once, after the step: 4 + 1 = 5 numbers per parameter instead of 2.
#
# </details>

# %% [markdown]
# **3.** A run with an FSDP YAML has the right losses, exit code 0 and full GPUs. What do you look at?
#
# <details><summary>Answer</summary>
#
# At the type of the model's wrapper, `accelerator.distributed_type`, and the local shape of one parameter. If the
# wrapper is `DistributedDataParallel`, nothing is sharded. If it is FSDP, count the units: one unit gathers everything.
#
# </details>
#
# **Next:** [lesson 13](13_deepspeed.ipynb) does the same with DeepSpeed: its JSON file, ZeRO with offload, and what
# "auto" fills in.
