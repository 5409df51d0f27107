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
max_steps = 60  # of the one model that is trained
seed = 0

# %% slideshow={"slide_type": "skip"}
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from course_utils import teach
from course_utils.data import load_language_modelling
from course_utils.data.worker_memory import growth_in_a_worker
from course_utils.lessons.lesson_09 import experiments, figures
from course_utils.lessons.lesson_09.device_queue import schedule
from course_utils.models import load_causal_lm, load_tokenizer
from course_utils.training import profile
from course_utils.training.compiling import graphs_after
from course_utils.training.grad_scaler import GradScaler
from course_utils.training.ladder import LADDER, Climb, interleaved

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
tokenizer = load_tokenizer(source)
texts = load_language_modelling(source)["train"].shuffle(seed=seed)["text"][: 400 + 8 * max_steps]
texts = list(texts) * (1 + (400 + 8 * max_steps) // len(texts))
by_name = {rung.name: rung for rung in LADDER}
report = experiments.recorded()


def new_model(**sizes):
    torch.manual_seed(seed)
    return load_causal_lm(vocab_size=len(tokenizer), **sizes).train()


def climb_of(name):
    return Climb(by_name[name], texts, tokenizer, new_model(), per_step=8, steps=3)


# %% [markdown] slideshow={"slide_type": "slide"}
# # 09 · Speed and memory
#
# Make it fast, make it fit, and know by how much

# %% [markdown] slideshow={"slide_type": "notes"}
# Goal of the session: everybody can time a step honestly, say where its time and memory go, and knows the few changes
# that pay. About 75 minutes with exercises. Opening question: who has reported tokens per second, and which tokens?

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The ladder
#
# Each rung keeps what stands above it; grey: no gain that the rounds can tell.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.ladder(report))

# %% [markdown] slideshow={"slide_type": "notes"}
# From bench/bench_ladder.py, on the machine that the result file names: a CPU. Each rung keeps what stands above it.
# Grey rungs have no clear gain over the rung above and stay in the figure. Orange is TRL's SFTTrainer on the same data,
# model and batch, with its own logging on. On another machine the order changes; the method does not.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One step, and where this lesson touches it
#
# Everything black keeps something in memory for everything red.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.step())

# %% [markdown] slideshow={"slide_type": "notes"}
# Follow it: texts become rows, the layers make vectors, the output layer makes logits, B by L by V, the largest
# tensor of a small model. Everything black keeps something for everything red.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Count useful tokens
#
# The machine multiplies padding as fast as anything: only useful tokens count.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
names = ["naive", "pad to the longest", "group by length", "pack"]
rounds = interleaved([climb_of(name) for name in names], rounds=4)
rates = {}
for name, found in rounds.items():
    seconds = sum(one.cpu for one in found)
    rates[name] = sum(o.computed for o in found) / seconds, sum(o.useful for o in found) / seconds
teach.show(figures.counted(rates))

# %% [markdown] slideshow={"slide_type": "notes"}
# Grey hardly changes: the machine multiplies padding as fast as anything. Blue is what trains. Packing keeps
# documents apart by mask and positions; the notebook proves that loss and every gradient equal those of documents
# alone, and shows that use_cache=True silently mixes them.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How to time a step
#
# - **Warm up**: allocation, caches, compilation
# - **Wait** for the device before reading the clock
# - **Take turns**: a busy moment hits all rungs
# - Ratio per round, **median**, interval
# - Useful tokens: labels other than -100
#
# > Then prove that it is still the same step

# %% [markdown] slideshow={"slide_type": "notes"}
# Exercise 09.1 has a plausible timing function with all of these missing. Let pairs find the faults before they run it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A trace: which operators
#
# What takes a twentieth of the step cannot make it faster than 1.05 times.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
climb = climb_of("pack")
batch = climb.next_batches(1)[0]
trace = profile.record(
    lambda: experiments.marked_step(climb.model, climb.optimizer, batch), Path(tempfile.mkdtemp()) / "step.json"
)
teach.show(figures.operators(trace))

# %% [markdown] slideshow={"slide_type": "notes"}
# Blue are matrix products, orange reads and writes. The profile bounds what a change can bring: an optimizer that takes
# a twentieth of the step cannot make it faster than 1.05 times.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same step over time
#
# Backward is about twice forward; in the red gaps no operator runs.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.timeline(trace))

# %% [markdown] slideshow={"slide_type": "notes"}
# Backward is about twice forward. Red: no operator runs. On a GPU wide gaps mean that the device waits for Python, for
# the loader, or for a number that somebody reads. The file opens in Perfetto; show it live if there is time.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who waits for whom
#
# Python queues, the device works: every number you read empties the queue.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
plans = {
    "loss kept as a tensor": schedule(6, 2.0, 5.0, read_each_step=False),
    "loss.item() after each step": schedule(6, 2.0, 5.0, read_each_step=True),
}
teach.show(figures.queue(plans))

# %% [markdown] slideshow={"slide_type": "notes"}
# Computed, not measured: 2 ms of Python, 5 ms of device. The dashed line is where a timer stops that does not
# synchronise. Below, every reading makes the device stand still while the next step is queued.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Sixteen bits, twice

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.formats())

# %% [markdown] slideshow={"slide_type": "-"}
# bf16: fp32's range, few digits. fp16: a digit more, a small range.

# %% [markdown] slideshow={"slide_type": "notes"}
# Autocast computes matrix products in 16 bit and keeps weights, sums and losses in fp32. Which 16 bits decides what can
# go wrong: next two slides.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## fp16 loses small gradients
#
# Most of the vocabulary's gradients are too small for fp16; scaled, they fit.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
climb = climb_of("pack")
for group in climb.optimizer.param_groups:
    group["lr"] = 2e-3
for one in climb.next_batches(max_steps):
    climb.step(one)
teach.show(figures.underflow(experiments.logit_gradients(climb.model, climb.next_batches(1)[0])))

# %% [markdown] slideshow={"slide_type": "notes"}
# Real gradients of the logits of a language model after a minute of training. Most of the vocabulary is unlikely, and
# its gradients vanish in fp16: most entries, a few per cent of their sum. Multiplied by 65,536 they fit. bf16 loses
# none.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## GradScaler: scale, unscale, skip, grow
#
# Overflow: skip the step and halve. A row of good steps: double.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
runs = {
    "by hand": experiments.scaler_run(GradScaler),
    "torch.amp.GradScaler": experiments.scaler_run(lambda **options: torch.amp.GradScaler("cpu", **options)),
}
teach.show(figures.scaler(runs))

# %% [markdown] slideshow={"slide_type": "notes"}
# Starts far too high on purpose. Each overflow is a step left out and a halved scale. After an interval of good steps
# it doubles, until it overflows again. Equal to torch's in every factor and weight. Exercise 09.2 writes the step.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Weights in bf16 can stop learning
#
# An update below half the gap between two numbers rounds back, every time.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
curves = {way: [experiments.small_steps(way, s)[0] for s in range(seed, seed + 3)] for way in experiments.WAYS}
teach.show(figures.stall(curves))

# %% [markdown] slideshow={"slide_type": "notes"}
# After 1 comes 1.0078: an update below half the gap rounds back, every time. A layer made for it: only weights below 1
# in size can move. No error, no nan. A
# master copy in fp32 takes the updates, or stochastic rounding makes the mean right. Autocast over fp32 weights never
# has the problem.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## torch.compile: once per shape, or once
#
# A new shape is a new compilation; packed rows have one shape.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
batches = [(torch.randn(length, 8),) for length in range(20, 32)]
choices = {"dynamic=False": False, "default": None, "dynamic=True": True}
graphs = {name: graphs_after(lambda x: F.gelu(2 * x + 1).sum(), batches, way) for name, way in choices.items()}
teach.show(figures.recompiles(graphs))

# %% [markdown] slideshow={"slide_type": "notes"}
# It turns chains of small operators into one loop and costs a compiler and time. Batches padded to their longest row
# bring a new shape at nearly every step. Packed rows always have one length. What it brings for the whole model on a
# CPU: see the ladder's rung.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Memory: predicted, measured
#
# What autograd keeps follows from the model's sizes; the black mark is computed.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
ids = torch.randint(5, len(tokenizer), (16, 64))
mask = (torch.arange(64) < 50).long().expand(16, 64).contiguous()
example = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
model = new_model()
kept = {
    "fp32": experiments.kept(model, example),
    "bf16 autocast": experiments.kept(model, example, bf16=True),
    "checkpointing": experiments.kept(model, example, checkpointing=True),
}
teach.show(figures.memory(kept))

# %% [markdown] slideshow={"slide_type": "notes"}
# What autograd keeps, counted by hooks; the black mark is computed from the model's sizes alone. Checkpointing keeps
# each layer's input and runs the layer again: up to a third more operations in the layers. Then the logits are what is
# left.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Never hold all logits
#
# ```python
# for start in range(0, N, chunk):
#     logits = hidden[start:start + chunk] @ weight.T      # (chunk, V)
#     log_sum = logits.logsumexp(-1)
#     total += (log_sum - logits[target]).sum()
#     slope = (logits - log_sum[:, None]).exp()            # softmax
#     slope[target] -= 1                                   # the gradient
#     grad_hidden[start:start + chunk] = slope @ weight
#     grad_weight += slope.T @ hidden[start:start + chunk]
# ```
#
# Equal to the full loss in value and gradient

# %% [markdown] slideshow={"slide_type": "notes"}
# The gradient is made in forward, while the chunk is there, so backward needs no logits. Liger's fused loss does it
# on a GPU. With a vocabulary of 150,000 and 4,096 tokens, a row's logits are 2.5 GB in fp32.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Micro-batch against accumulation
#
# The same gradient either way: memory grows with the micro-batch, time falls, up to a point.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.trade(experiments.divisions(model, example, [1, 2, 4, 8, 16])))

# %% [markdown] slideshow={"slide_type": "notes"}
# The same sixteen rows, the same gradient. Memory grows in proportion, time falls until the products are large enough,
# and can rise again: medians of three rounds, small differences are noise.
# Exercise 09.3: the largest micro-batch that fits a budget.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## MFU: how far from the peak?
#
# $$\mathrm{MFU} = \frac{(6N + 12\,D\,A\,Q\,L/2) \cdot \text{tokens per second}}{\text{peak}}$$
#
# - N: weights of matrix products; the embedding's look-up is none
# - D layers, A heads of width Q; of L tokens a causal model attends to half
# - What checkpointing repeats does **not** count
# - Peak: measured with a large matrix product

# %% [markdown] slideshow={"slide_type": "notes"}
# PaLM, appendix B. Exercise 09.4. Ask: with checkpointing on and 1.3 times the time, what happens to MFU? It falls,
# although the processor is as busy as before.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Workers that copy the data set
#
# Python objects are copied as they are read; one tensor or table is not.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
strings = [[str(200 * row + i) for i in range(200)] for row in range(3_000)]
numbers = torch.arange(600_000).view(3_000, 200)
growth = {
    "lists of strings": growth_in_a_worker(strings, lambda row: sum(map(len, row))) or [0.0, 0.0],
    "a tensor": growth_in_a_worker(numbers, lambda row: row.sum()) or [0.0, 0.0],
}
teach.show(figures.copies(growth))

# %% [markdown] slideshow={"slide_type": "notes"}
# A forked worker shares memory until it writes, and reading a Python object writes its reference count. Tensors, arrays
# and Arrow tables are one object and a block of numbers.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Take home
#
# - **Useful** tokens, warm, waited for, in turns, with an interval
# - Padding first, then number formats, then kernels
# - Autocast over fp32 weights; fp16 needs a scale
# - Checkpointing and chunks: memory for a price you can measure
# - MFU says what is left
#
# > Next: lesson 10, fine-tuning a language model

# %% [markdown] slideshow={"slide_type": "notes"}
# Exercise 09.5 is the objective: a step that is fast and provably the same. Close with the first question of the quiz:
# 90,000 padded tokens per second or 60,000 packed, who is faster?
