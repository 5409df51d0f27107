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
max_steps = 4  # of the runs whose bytes and exchanges are shown
seed = 0

# %% slideshow={"slide_type": "skip"}
import torch

from course_utils import teach
from course_utils.lessons.lesson_13 import figures, runs
from course_utils.parallel import reference
from course_utils.parallel.deepspeed_hf import auto_config, train_accelerate, train_trainer
from course_utils.parallel.deepspeed_runs import train_engine

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
ranks = runs.LessonRanks()
P = sum(p.numel() for p in reference.new_model(seed).parameters())
quick = {"source": source, "seed": seed, "steps": min(3, max_steps)}

# %% [markdown] slideshow={"slide_type": "slide"}
# # 13 · DeepSpeed
#
# ZeRO behind one JSON

# %% [markdown] slideshow={"slide_type": "notes"}
# Everybody has cut optimizer, gradients and weights by hand in lesson 12. Today a library does it, told by a JSON.
# Half of the lesson is about lines that do something else than they seem to. About 80 minutes with exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One object, three calls
#
# Only the third stage needs an exchange in the forward pass.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.flow())

# %% [markdown] slideshow={"slide_type": "notes"}
# initialize takes model and optimizer in. The loop calls the engine three times per micro-batch, step included.
# Below: what N ranks exchange in each stage. Ask: which stage needs an exchange in the forward pass? Only the third,
# which gathers again in the backward pass what it has freed.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What a rank holds
#
# Light blue is DeepSpeed's own copy of the weights, which the formula must count.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
run = {"source": source, "seed": seed, "steps": max_steps, "accumulation": 2}
stages = {stage: ranks(train_engine, stage=stage, **run)[0] for stage in (0, 1, 2, 3)}
held = {runs.NAMES[stage]: found["bytes"] for stage, found in stages.items()}
teach.show(figures.bytes_per_rank(held, {runs.NAMES[stage]: runs.predicted(P, 2, stage) for stage in stages}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Measured on rank 0 of two, between two micro-batches, by the memory behind the tensors. Black: the formula. Light
# blue are the master copies, DeepSpeed's own copy of the weights for the update: useful in 16 bit, a second copy in
# fp32. Stage 2 is off by part of one tensor, which the cut goes through.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## As a formula
#
# | bytes, fp32 | stage 0 | 1 | 2 | 3 |
# |---|---|---|---|---|
# | weights | 4 P | 4 P | 4 P | **4 P/N** |
# | gradients | 4 P | 4 P | **4 P/N** | 4 P/N |
# | master copy | - | **4 P/N** | 4 P/N | 4 P/N |
# | moments | 8 P | **8 P/N** | 8 P/N | 8 P/N |
#
# > Lesson 15's planner agrees; stage 2's gradients within one tensor.

# %% [markdown] slideshow={"slide_type": "notes"}
# Exercise 13.1: thirty million parameters, stage 1, eight ranks. Give two minutes. Exercise 13.4 turns the table round:
# which stage for which budget? With one rank, stages 1 to 3 cost more than none.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The JSON, line by line
#
# Give two of the three batch numbers; the third is computed.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.annotated(runs.LARGER))

# %% [markdown] slideshow={"slide_type": "notes"}
# The first three numbers must multiply: 2 x 4 x 8 ranks are 64. Give two and the third is computed, give three that
# contradict and it raises. Nobody compares them with the rows that your loader really gives.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loop that changes
#
# ```python
# engine, _, _, _ = deepspeed.initialize(
#     model=model, optimizer=optimizer, config=config)
#
# for batch in micro_batches:
#     loss = summed_loss(engine, batch) / targets_of_all_ranks
#     engine.backward(loss * ranks * accumulation)  # undo its two averages
#     engine.step()                   # after EVERY micro-batch
# ```
#
# - no `optimizer.step()`, no `zero_grad()`, no `no_sync()`
# - the engine counts micro-batches and acts at the last one

# %% [markdown] slideshow={"slide_type": "notes"}
# The commonest mistake: one call of step for all micro-batches, as in torch. With accumulation 2 it then updates half
# as often; the lesson counts it. backward divides by the ranks and by the micro-batches of a step, and our loss is
# divided by all targets already: hence the factor.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same run
#
# The stages change where numbers lie; what is left is the order of sums.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
rows = [(runs.NAMES[n], found["from_alone"], 2e-5) for n, found in stages.items()]
for name, stage, place in (("ZeRO-2, optimizer offload", 2, "optimizer"), ("ZeRO-3, all offloaded", 3, "all")):
    rows.append((name, ranks(train_engine, stage=stage, offload=place, **quick)[0]["from_alone"], 2e-5))
teach.show(figures.distances(rows, "Final weights against one process"))

# %% [markdown] slideshow={"slide_type": "notes"}
# The stages change where numbers lie, not which. What is left is the order of float32 sums. Weights alone prove
# little: AdamW hides a wrong factor of the gradient. Without the factor they and the losses are off by less than
# 1e-3; the gradient norm is a quarter. The lesson compares it, and puts all ways of lessons 11 to 13 in one table.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Offload: what waits elsewhere
#
# The optimizer in host memory makes it fit, and makes a step of one micro-batch several times as long.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
large = runs.offload_plans("Qwen/Qwen3-32B")
memory = {name: (plan.total / 2**30, plan.host_total / 2**30) for name, plan in large.items()}
teach.show(figures.offload(memory, limit=large["ZeRO-3"].limit / 2**30, host=2048))

# %% [markdown] slideshow={"slide_type": "notes"}
# Planned, not measured: Qwen3-32B on eight H100, 79.6 GiB each. ZeRO-3 alone misses by a little: 20 bytes a parameter
# at the update. With the optimizer in host memory it fits easily, and a step of one micro-batch takes several times as
# long; the CPU updates once a step, so that accumulation shrinks the factor. ZeRO-Infinity puts it on NVMe: 12 bytes a
# parameter read and 12 written each step, which pays only when a step is long.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Buckets: few calls, or little memory
#
# Many small buckets are many calls; one large bucket is a large buffer.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
counts = {}
for size in (500_000_000, 20_000, 4_096):
    asked = quick | {"zero": {"reduce_bucket_size": size}}
    counts[size] = runs.reductions(*(ranks(train_engine, stage=n, **asked)[0]["exchanged"] for n in (2, 3)))
teach.show(figures.buckets(counts))

# %% [markdown] slideshow={"slide_type": "notes"}
# Counted on two ranks. The default of 500 million elements is a GB of buffer in 16 bit. 4,096 is what Hugging Face's
# "auto", two slides on, makes of it here. There ZeRO-2 has one call more: its cut goes through a tensor.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The threshold that keeps everything whole
#
# `stage3_param_persistence_threshold`: tensors up to this size stay whole on all ranks. Default: 100,000 elements.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
cut = ranks(train_engine, stage=3, **quick)[0]["bytes"]
whole = ranks(train_engine, stage=3, without=["stage3_param_persistence_threshold"], **quick)[0]["bytes"]
pair = {"threshold 0": cut, "default": whole}
alt = (
    "Two stacked bars of bytes on rank 0. With threshold 0 all four parts end at the black marks. With the default the "
    "parameters take three times as much, and the other parts, as long as before, begin further right."
)
teach.show(figures.bytes_per_rank(pair, {name: runs.predicted(P, 2, 3) for name in pair}, alt))

# %% [markdown] slideshow={"slide_type": "notes"}
# A model whose largest tensor has 32,768 elements. With the default every rank has all weights and its slice
# besides. The run is right, it says ZeRO-3, and it holds more weights than DDP: 6 bytes a parameter instead of 4. The
# other states are divided all the same, so that it is 14 in all against 16. For a large model the default is fine; but
# LoRA's matrices are below it, too.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who fills in "auto"?
#
# DeepSpeed does not know the word: Trainer and Accelerate fill it in, not always alike.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
config = auto_config(3) | {"gradient_clipping": "auto"}
tools = {
    "Trainer": ranks(train_trainer, stage=3, **quick)[0]["resolved"],
    "Trainer, width 96": ranks(runs.fill_in, hidden_size=96)[0],
    "Accelerate": ranks(train_accelerate, stage=3, config=config, **quick)[0]["resolved"],
}
teach.show(figures.filled(config, tools))

# %% [markdown] slideshow={"slide_type": "notes"}
# DeepSpeed does not know the word. The Trainer fills in from TrainingArguments, Accelerate from what it is given.
# See the clipping: the Trainer was told 0. In Accelerate clipping is a call in the loop, so it takes 1.0, and that call
# only returns the norm. Exercise 13.2: find the formulas behind the three sizes from widths 64 and 96.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## JSON before model
#
# Found before the model is built: slices. Not found: the whole model on each rank.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.gathering())

# %% [markdown] slideshow={"slide_type": "notes"}
# from_pretrained looks for a HfDeepSpeedConfig, which TrainingArguments makes and keeps. Found: the model is built
# in slices. Not found: each rank has all of it, and no error until memory is gone. The reference is weak: keep the
# object.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What goes wrong without an error
#
# | you write | what happens | check |
# |---|---|---|
# | no `gradient_clipping` | clipped at 1.0, since June 2026 | write 0.0 |
# | one `step` for two micro-batches | half of the updates | `engine.global_steps` |
# | a scheduler that the loop steps too | rate 0 halfway | `engine.get_lr()` |
# | `ACCELERATE_USE_CPU=true` | DDP | `distributed_type` |
# | an `optimizer` block | norms decayed | parameter groups |
# | `from_pretrained` first | whole on each rank | slices |

# %% [markdown] slideshow={"slide_type": "notes"}
# Each row is measured in the lesson (DeepSpeed 0.19.8). Exercise 13.3 repairs JSONs with such faults: give ten minutes.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Checkpoint to Hugging Face folder
#
# | stage | weights are in | optimizer is in |
# |---|---|---|
# | 1, 2 | `mp_rank_00_model_states.pt` | a file a rank |
# | 3 | the optimizer's files | a file a rank |
#
# ```python
# state = get_fp32_state_dict_from_zero_checkpoint(folder)
# model.load_state_dict(state)
# model.save_pretrained(out)      # with config.json
# ```
#
# > Bit for bit the engine's weights; tied weights make the script's safetensors option fail.

# %% [markdown] slideshow={"slide_type": "notes"}
# zero_to_fp32.py lies beside every checkpoint. It writes no config.json, and with --safe_serialization it refuses tied
# weights. Through the model's own save_pretrained both are solved. Every rank must call save_checkpoint.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## FSDP or DeepSpeed: what is sent
#
# DeepSpeed's stages 1 and 2 move three model sizes where the paper's move two.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
live = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
plain = {n: ranks(train_engine, stage=n, **quick)[0] for n in (0, 1, 2, 3)}
seen = {
    "DDP (stage 0)": plain[0],
    "ZeRO-1": plain[1],
    "ZeRO-2": plain[2],
    "ZeRO-3, weights kept": plain[3],
    "ZeRO-3, freed": ranks(train_engine, stage=3, zero=live, **quick)[0],
    "FSDP2, weights kept": ranks(runs.fsdp_step, reshard=False)[0],
    "FSDP2, freed": ranks(runs.fsdp_step, reshard=True)[0],
}
teach.show(figures.volumes({name: runs.in_models(found["exchanged"], P) for name, found in seen.items()}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Counted from inside, one step of one micro-batch on two ranks. The paper's stages 1 and 2 move two model sizes,
# DeepSpeed's three: by default it all-reduces and keeps a slice. With two micro-batches ZeRO-2 moves five, ZeRO-3 with
# weights kept four. ZeRO-3 freed gathers the tied embedding twice in each pass, for input and output.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## When to take which
#
# Bytes per GPU decide, not the model's size; frames are the fastest that fit.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.by_size(runs.plans_by_size()))

# %% [markdown] slideshow={"slide_type": "notes"}
# Eight H100s, one micro-batch of 2,048 tokens each, planned by lesson 15's arithmetic.
# Rules by model size ("up to 10B ZeRO-2") miss what decides: bytes per GPU.
# Frames: the fastest that fit. ZeRO-2 is in none: it waits for an all-gather that nothing hides.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Take home
#
# - one engine, three calls, each for every micro-batch
# - batch = micro-batch x accumulation x ranks; write clipping down
# - read the *resolved* JSON, and the bytes on a rank
# - JSON before model; threshold below your tensors
# - choose by bytes per GPU
#
# > Exit code 0 proves nothing: ask the engine what runs.

# %% [markdown] slideshow={"slide_type": "notes"}
# The last exercise is the objective: a whole JSON for a given run. Lesson 15 writes such files and executes them.

# %% slideshow={"slide_type": "skip"}
ranks.close()
