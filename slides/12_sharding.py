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
max_steps = 6  # of each run that is measured
seed = 0

# %% slideshow={"slide_type": "skip"}
import course_utils.parallel.held as measure
from course_utils import teach
from course_utils.lessons.lesson_12 import figures, task
from course_utils.parallel import shared_ranks
from course_utils.parallel.fsdp_runs import train_sharded

teach.start(source=source, max_steps=max_steps, seed=seed)
ranks = shared_ranks(2)
parameters = task.reference_parameters()
kinds = {"DDP": "ddp", "ZeRO-1": "zero1", "ZeRO-2": "zero2", "ZeRO-3": "zero3", "fully_shard": "fully_shard"}
run = {"steps": max(2, max_steps), "seed": seed, "source": source}
ways = {name: {"kind": kind} for name, kind in kinds.items()}
ways["no resharding"] = {"kind": "fully_shard", "reshard_after_forward": False}
first = {name: ranks(train_sharded, **way, **run)[0] for name, way in ways.items()}
held = {name: rank["held"] | {"gathered": rank["gathered"]} for name, rank in first.items()}

# %% [markdown] slideshow={"slide_type": "slide"}
# # 12 · Sharding
#
# ZeRO and FSDP: the same run, divided

# %% [markdown] slideshow={"slide_type": "notes"}
# Lesson 11 put the whole model on every GPU. What does not fit on one does not fit on a thousand. Today we divide what
# training keeps. About 80 minutes with the exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 16 bytes per parameter, on every rank
#
# | fp32, AdamW | bytes |
# |---|---|
# | parameter | 4 |
# | gradient | 4 |
# | two moments | 8 |
#
# > All ranks hold the same numbers. Why N times?

# %% [markdown] slideshow={"slide_type": "notes"}
# The model states. Activations are not in this sum: they depend on the batch, and sharding the states does not change
# them. Ask: how many GB for 7 billion parameters? 112, before the first activation.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What each stage divides
#
# Each stage divides one state more; the rows are divided in all of them.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.stages())

# %% [markdown] slideshow={"slide_type": "notes"}
# ZeRO: Zero Redundancy Optimizer. Each stage divides one state more. FSDP is PyTorch's name for stage 3. Each rank
# still works on rows of its own: a shard is a place to keep things, not a division of the work.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Measured on two ranks
#
# Bytes counted from the tensors' memory; the black line is the formula.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
outer = task.outer_parameters()
formula = {
    name: measure.expected(parameters, 2, way["kind"])
    | {"gathered": measure.expected_gathered(parameters, outer, **way)}
    for name, way in ways.items()
}
teach.show(figures.held_bytes(held, formula, parameters))

# %% [markdown] slideshow={"slide_type": "notes"}
# Counted from the memory behind the tensors, not computed. The black line is the formula. With more ranks the divided
# parts go on shrinking; stages 1 and 2 have a floor, stage 3 has the gathered units instead: hatched, what is there
# when the forward pass has ended. Exercise 12.1 is such a sum with other number types.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A unit: one flat buffer, a slice for each rank
#
# Laid end to end, padded, cut: any slice can be optimized on its own.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.cut([(6, 4), (5,), (3, 4)]))

# %% [markdown] slideshow={"slide_type": "notes"}
# Laid end to end, padded, cut. The model's parameters become views into the buffer. AdamW treats every number for
# itself, so an optimizer can work on any slice. Exercise 12.2 does it with a list in place of the ranks.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Stage 1: four lines
#
# ```python
# def step(self):
#     self.reduce_gradients()     # reduce-scatter: my slice of the sum
#     self.optimizer.step()       # AdamW on my slice only
#     self.clear_gradients()
#     self.publish()              # all-gather: everybody's slices
# ```
#
# - **stage 2:** reduce a unit as soon as `backward` has finished with it
# - **stage 3:** gather a unit before it computes, free it afterwards

# %% [markdown] slideshow={"slide_type": "notes"}
# The class Zero1 of course_utils/parallel/zero.py. Zero2 overrides how gradients are kept, Zero3 adds hooks around the
# layers. The model's code does not change.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Stage 3: gather, compute, free
#
# The network runs ahead: the next unit is gathered while this one is computed.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.one_step())

# %% [markdown] slideshow={"slide_type": "notes"}
# Read the three rows from left to right. The network runs ahead of the computation. The outer unit (embedding, norm,
# output layer) stays. On two CPU ranks nothing overlaps visibly; the order of the calls is the same.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The price: traffic
#
# Stage 3 pays with traffic; accumulation makes it pay again for every micro-batch.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
ways = {name: {"kind": kind} for name, kind in kinds.items()}
ways["no resharding"] = {"kind": "fully_shard", "reshard_after_forward": False}
teach.show(figures.volumes({name: ranks(task.exchanged_in_a_step, **way)[0] for name, way in ways.items()}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Collectives counted as torch calls them. The ZeRO paper's 2 Psi, 2 Psi, 3 Psi; the third is a little less here, since
# the outer unit is gathered once. Without accumulation stages 1 and 2 cost nothing extra; with it stage 2 reduces after
# every micro-batch and stage 3 gathers as well.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The real one
#
# ```python
# for layer in model.model.layers:
#     fully_shard(layer)
# fully_shard(model)                       # what is left
# optimizer = AdamW(model.parameters())    # afterwards
# ```
#
# > A parameter is now a **DTensor**: whole shape, mesh, placement, local part.

# %% [markdown] slideshow={"slide_type": "notes"}
# In place. Layers first, then the model. The optimizer comes last: fully_shard replaces the parameters, and an
# optimizer made before trains nothing, without an error.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A DTensor is cut by rows
#
# Each parameter keeps its name and shape; each rank holds some of its rows.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
bands = {"down_proj (64, 160)": [(32, 160), (32, 160)], "odd (5, 4)": [(3, 4), (2, 4)]}
teach.show(figures.dtensor(bands))

# %% [markdown] slideshow={"slide_type": "notes"}
# Shard(0) along dimension 0 of the mesh. Unlike the flat buffer each parameter keeps its name and shape. Five rows on
# two ranks: three and two.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What you wrap is what is gathered at once
#
# One unit for the whole model gathers the whole model.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
choices = {
    "per layer": {},
    "per layer, no resharding": {"reshard_after_forward": False},
    "one unit": {"per_layer": False},
}
watched = {name: ranks(task.gathered_over_a_step, layers=task.LAYERS, **some)[0] for name, some in choices.items()}
teach.show(figures.gathered(watched))

# %% [markdown] slideshow={"slide_type": "notes"}
# Measured after each operation of one step. Per layer is the usual choice. One unit is the mistake that happens with
# fully_shard(model) alone, or with the policy NO_WRAP. Whole gradients come on top. Exercise 12.3 picks a size.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Save shards, convert once
#
# ```python
# shards = get_model_state_dict(model)          # every rank
# dcp.save(shards, checkpoint_id=folder)
#
# dcp.load({}, checkpoint_id=folder)            # loads nothing, silently
# dcp.load(model.state_dict(), checkpoint_id=folder)
#
# convert_checkpoint(folder, config, "model")   # -> from_pretrained
# ```

# %% [markdown] slideshow={"slide_type": "notes"}
# DCP reads into tensors that are there; an empty dict asks for nothing. A full state dict with cpu_offload is complete
# on rank 0 and empty on the others. With if rank == 0 around the call, rank 0 waits until the backend's timeout.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same by YAML, and in the Trainer
#
# ```yaml
# distributed_type: FSDP
# fsdp_config:
#   fsdp_version: 2
#   fsdp_reshard_after_forward: true
#   fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
#   fsdp_transformer_layer_cls_to_wrap: Qwen3DecoderLayer
# ```
#
# `TrainingArguments(fsdp=True, fsdp_config={...})`: the same keys without `fsdp_`, but `cpu_offload`

# %% [markdown] slideshow={"slide_type": "notes"}
# The launcher turns the file into environment variables; Accelerator reads those. On CPU ranks accelerate trains with
# DDP instead, with exit code 0 and the right losses. The lesson relabels the ranks for a rehearsal.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Settings that nobody reads
#
# | you write | it resolves to |
# |---|---|
# | `sharding_strategy`, version 2 | resharding on |
# | `fsdp_offload_params` in TrainingArguments | no offload |
# | a misspelt key | the default |
# | FSDP on CPU ranks | DDP |
#
# > Look at what it resolved to: type, wrapper, local shapes.

# %% [markdown] slideshow={"slide_type": "notes"}
# Each row is executed in the lesson. None of them raises. Exercise 12.4 repairs a configuration with four such faults.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Two dimensions: HSDP, and FSDP with TP
#
# HSDP: shards inside a machine, copies across. With TP a parameter is cut twice.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.meshes())

# %% [markdown] slideshow={"slide_type": "notes"}
# A mesh of four ranks. HSDP: shards inside a machine, copies across machines. With tensor parallelism a parameter is
# cut twice; the picture is down_proj, the other matrices are cut otherwise. Both run in Deeper sections, on four
# tiny ranks.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - **12.1** Bytes on each of four GPUs
# - **12.2** One layer, sharded by hand
# - **12.3** How many layers in a unit?
# - **12.4** Settings that arrive
# - **12.5** A model ready to be trained in shards
#
# > Next: lesson 13, DeepSpeed.

# %% [markdown] slideshow={"slide_type": "notes"}
# 30 minutes. No checker starts other processes; 12.5 runs the answer as one of four ranks and plays the others.

# %% slideshow={"slide_type": "skip"}
ranks.close()
