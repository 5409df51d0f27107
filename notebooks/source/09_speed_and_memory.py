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
# # 09 · Speed and memory: make it fast, make it fit
#
# The same model on the same documents can take several times as long as it must. A model that "does not fit" often
# fits, once you know which tensors fill the memory. This lesson climbs from a naive step to a fast one, one measured
# change at a time.
#
# **You will be able to**
# - time a training step so that the number means something, and say where its time goes;
# - choose among packing, bf16, fused optimizers, attention kernels and compilation by measuring;
# - say why fp16 needs a loss scale and when bf16 weights stop learning;
# - predict what a step keeps in memory, and cut it: checkpointing, chunked cross-entropy, micro-batches;
# - compute a run's share of what the machine can do.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (accumulation), 02 (padding, packing), 04 (intervals).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 60  # optimizer steps of the one model that is trained here
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · The end result
#
# `bench/bench_ladder.py` trains one language model in ten ways. Each **rung** of the ladder keeps the changes of those
# above it and adds one. Bars: useful tokens (no padding) per second against the naive step, the median of the rounds'
# ratios. Thin lines: bootstrap intervals, with five rounds the smallest to the largest ratio. Grey: no clear gain over
# the rung *above*. Orange: TRL's `SFTTrainer` (lesson 10). *Load*: how many other programs ran.

# %%
from course_utils.lessons.lesson_09 import experiments, figures

report = experiments.recorded()
print(f"{report['processor']}, {report['cores']} cores, no GPU")
print(f"{report['step']}, {report['rounds']} rounds, load {report['load_at_start']}")
print(f"{report['model']['parameters']:,} parameters")
teach.show(figures.ladder(report))

# %% [markdown]
# Which rungs gain depends on the machine, the model's width and the rows' length. What carries over is the method, and
# the first large gain: not computing padding.
#
# A step, with B rows of L tokens, vectors of width H, a vocabulary of V tokens:

# %%
teach.show(figures.step())

# %% [markdown]
# The data is lesson 02's running text, a document a row. Two sentences of our own as examples:

# %%
import torch

from course_utils.data import load_language_modelling, own_sentences
from course_utils.models import load_causal_lm, load_tokenizer

torch.set_num_threads(1)  # for a model this small, and so that CPU time is the time
tokenizer = load_tokenizer(source)
rows = load_language_modelling(source)["train"].shuffle(seed=seed)
texts = rows["text"][: 400 + 8 * max_steps]
texts = list(texts) * (1 + (400 + 8 * max_steps) // len(texts))  # a small set: again
for text in own_sentences()[:2]:
    print(len(tokenizer(text)["input_ids"]), "tokens:", text)


def new_model(**sizes):
    torch.manual_seed(seed)
    return load_causal_lm(vocab_size=len(tokenizer), **sizes).train()


print(f"{new_model().num_parameters():,} parameters")

# %% [markdown]
# ## 2 · What to count, and how
#
# The number that matters is **useful tokens per second**: tokens that are a target. Padding is not, and neither is a
# document's first token, which nothing predicts.
#
# `Climb` runs one rung, and its `round` is the measurement. `wall` is the clock, `cpu` this process's own time,
# `_share` a round's part of the time for tokenising and packing in advance. `interleaved` lets the rungs take turns, so
# that a busy moment hits all of them, after one round of **warm-up** that does not count.

# %%
from course_utils.training.ladder import LADDER, Climb, interleaved, speedup

teach.show_source(Climb.round)
by_name = {rung.name: rung for rung in LADDER}
print("rungs:", ", ".join(by_name))

# %% [markdown]
# Four of them, live: pad every row to 128 tokens (naive), pad to the batch's longest, put similar lengths together,
# pack several documents into a row.

# %%
names = ["naive", "pad to the longest", "group by length", "pack"]


def climb_of(name):
    return Climb(by_name[name], texts, tokenizer, new_model(), per_step=8, steps=3)


climbs = [climb_of(name) for name in names]
rounds = interleaved(climbs, rounds=4)

# %% tags=["nbval-ignore-output"]
base, rates = rounds["naive"], {}
for name, found in rounds.items():
    seconds = sum(one.cpu for one in found)
    positions, useful = sum(o.computed for o in found), sum(o.useful for o in found)
    rates[name] = positions / seconds, useful / seconds
    print(f"{name:20} {speedup(found, base, 'cpu')} times the naive useful tokens/s")
teach.show(figures.counted(rates))
packing, ours = speedup(rounds["pack"], base, "cpu"), source == "local"
teach.claim("packing gains at least 1.5 times", packing.low > 1.5, when=ours)
lie = rates["pack"][0] / rates["naive"][0]
hidden = lie - 1 < 0.5 * (packing.value - 1)
teach.claim("counting padding hides most of that gain", hidden, when=ours)

# %% [markdown]
# In brackets the **interval**: lesson 04's bootstrap over the rounds' ratios. Round i of two rungs trains on the same
# documents, so their ratio is paired.
#
# ### Packed, and still the same training
#
# A faster step is worth nothing if it is another step. Lesson 02 showed that packing keeps the loss. Here the loss and
# *every gradient*, documents alone against packed rows; `distance` is the larger of the two relative differences.

# %%
model = new_model(num_hidden_layers=2)
documents = tokenizer(list(texts[:12]), truncation=True, max_length=96)["input_ids"]
right = experiments.apart(model, documents)
changes = {
    "mask and positions": {},
    "positions, no mask": {"attention_mask": None},
    "the same, use_cache=True": {"attention_mask": None, "use_cache": True},
}
for name, change in changes.items():
    found = experiments.packed(model, documents, 128, **change)
    off = experiments.distance(found, right)
    print(f"{name:26} {'the same step' if off < 1e-4 else 'another step'}")
    changes[name] = off
same = list(changes.values())[:2]
teach.claim("kept apart: loss and gradient equal within 1e-4", max(same) < 1e-4)
mixed = changes["the same, use_cache=True"]
teach.claim("one setting later the gradient is off by more than 1 %", mixed > 0.01)

# %% [markdown]
# Without a mask transformers tells documents apart by positions that restart at 0, but not when it keeps a cache.
#
# ### Exercise 09.1: repair a timing
#
# This function should return useful tokens per second. `wait()` waits until the device has done all it was given. Train
# on the first `warmup` batches, but do not count them. A row's first label is never predicted. Return one number of the
# batches' rates: the one that a single slow step does not move.
#
# ```python
# def rate(step, batches, clock, wait, warmup):
#     rates = []
#     for batch in batches:
#         began = clock()
#         step(batch)
#         rates.append(batch["input_ids"].numel() / (clock() - began))
#     return sum(rates) / len(rates)
# ```


# %%
def rate(step, batches, clock, wait, warmup):
    # Repair it.
    return ...


# %%
teach.check("09.1", rate)

# %% [markdown]
# ## 3 · Where the time goes
#
# A **profiler** notes when each operator of torch begins and ends. `record_function` names the parts of our step;
# `profile.record` runs the step once to warm up and once under the profiler, and writes the **trace** to a file.

# %%
import tempfile
from pathlib import Path

from course_utils.training import profile

teach.show_source(experiments.marked_step)
climb = climb_of("pack")
batch = climb.next_batches(1)[0]
folder = Path(tempfile.mkdtemp())


def take_step():
    experiments.marked_step(climb.model, climb.optimizer, batch)


trace = profile.record(take_step, folder / "step.json")

# %% tags=["nbval-ignore-output"]
teach.show(figures.operators(trace))
share = trace.operators[0].seconds / sum(one.seconds for one in trace.operators)
teach.claim("one operator takes at least 15 % of the time", share > 0.15)

# %% tags=["nbval-ignore-output"]
teach.show(figures.timeline(trace))
spans = {span.name: span for span in trace.spans()}
first, last = spans["forward"].start, spans["optimizer"].end
busy = profile.busy_seconds(trace.events, first, last) / (last - first)
print(f"operators run for {busy:.0%} of the step; {len(trace.events):,} events")
longer = spans["backward"].seconds > spans["optimizer"].seconds
teach.claim("backward takes longer than the optimizer", longer)

# %% [markdown]
# Backward does two matrix products for each one of forward. Red marks are **gaps**: no operator runs, because Python
# works, or another program has the processor. On a GPU wide gaps are the usual disease (section 9).
#
# `folder / "step.json"`, in a temporary folder, opens in [Perfetto](https://ui.perfetto.dev), which zooms to single
# operators and uploads nothing.
#
# The profile bounds what a change can bring: without a part that takes 8 % of it, a step is 1.09 times as fast. AdamW
# has three versions: a loop over the tensors, calls on lists of tensors (`foreach`), one compiled function, a
# **kernel**, for all (`fused`). Timed without the profiler, which slows many small calls most.

# %%
from course_utils.training.timing import interleaved_medians

model = new_model()
model(**batch).loss.backward()
ways = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}
ways["fused"] = {"fused": True}
steps = {}
for name, options in ways.items():
    steps[name] = torch.optim.AdamW(model.parameters(), lr=1e-4, **options).step
milliseconds = {k: 1e3 * v for k, v in interleaved_medians(steps, 9).items()}

# %% tags=["nbval-ignore-output"]
for name, value in milliseconds.items():
    print(f"{name:9} {value:6.1f} ms")
part = spans["optimizer"].seconds / sum(one.seconds for one in spans.values())
print(f"in the trace {part:.0%} of the step: a gain of at most {1 / (1 - part):.2f}")
teach.claim("fused beats the loop", milliseconds["fused"] < milliseconds["for-loop"])

# %% [markdown]
# ## 4 · Sixteen bits
#
# Matrix products in 16 bit move half the bytes, and processors have units for them. **Autocast** computes products in
# 16 bit and keeps weights, sums and losses in fp32: `with torch.autocast(device, dtype=torch.bfloat16): loss = ...`.

# %%
teach.show(figures.formats())

# %% [markdown]
# bf16 is the first half of an fp32 number: the same range, two to three decimal digits. fp16 has one digit more, and a
# small range: at most 65,504, at least 0.00000006; below half of that is 0. We train the language model a little and
# look at the gradient of its logits:

# %%
climb = climb_of("pack")
for group in climb.optimizer.param_groups:
    group["lr"] = 2e-3
training = climb.next_batches(max_steps)
losses = [climb.step(one) for one in training]
gradient = experiments.logit_gradients(climb.model, climb.next_batches(1)[0])
teach.show(figures.underflow(gradient))

# %%
lost = {
    "fp16": (gradient.half() == 0).double().mean().item(),
    "fp16, times 2^16": ((gradient * 2**16).half() == 0).double().mean().item(),
    "bf16": (gradient.bfloat16() == 0).double().mean().item(),
}
print({name: f"{share:.0%} become 0" for name, share in lost.items()})
gone = gradient[gradient.half() == 0].abs().sum() / gradient.abs().sum()
print(f"fp16 loses {gone:.0%} of the sum of sizes")
full = source == "local" and max_steps >= 60
teach.claim("fp16 loses more than a third of them", lost["fp16"] > 1 / 3, when=full)
teach.claim("with a scale it loses under 1 %", lost["fp16, times 2^16"] < 0.01)
teach.claim("bf16 loses none, unscaled", lost["bf16"] == 0)

# %% [markdown]
# Most of the 8,000 words are unlikely, and their gradients tiny: a small part of the sum, but what pushes these words
# down. In fp16 they **underflow** to 0. The cure is a **loss scale**, a large factor whose size the scaler finds
# itself:
#
# 1. *scale*: `backward` runs on loss x scale;
# 2. *unscale*: gradients / scale, in fp32, before clipping and the optimizer;
# 3. *skip*: if any of them overflowed to inf or nan, the optimizer's step is left out and the scale halved;
# 4. *grow*: after an interval of good steps (torch: 2,000) the scale doubles.
#
# This course's `GradScaler` (`course_utils/training/grad_scaler.py`) beside torch's own, in real fp16, from a scale far
# too high, with an interval of 6:

# %%
from course_utils.training.grad_scaler import GradScaler

torchs = lambda **options: torch.amp.GradScaler("cpu", **options)  # noqa: E731
ours, theirs = experiments.scaler_run(GradScaler), experiments.scaler_run(torchs)
teach.show(figures.scaler({"by hand": ours, "torch.amp.GradScaler": theirs}))
teach.claim("40 equal scales", ours.factors == theirs.factors)
teach.claim("bitwise equal weights", torch.equal(ours.weights, theirs.weights))
teach.claim("more than five steps were skipped", sum(ours.skipped) > 5)

# %% [markdown]
# bf16 needs none of this: its range is fp32's. NVIDIA's GPUs have it since 2020 (Ampere).
#
# ### Exercise 09.2: a scaled step
#
# One SGD step with a scaled loss. `gradient` is fp16 and belongs to scale x loss. Return the weights, the scale and the
# number of good steps after it (0 after a skip and after growth, each a factor of 2); weights in place or new.


# %%
def scaled_step(weights, gradient, scale, good_steps, interval, lr):
    # return weights, scale, good_steps
    return ...


# %%
teach.check("09.2", scaled_step)

# %% [markdown]
# ### Weights in bf16 can stop learning
#
# Why not keep the weights in bf16 too, at half the memory? Because an update is small against its weight, and bf16 has
# no number in between:

# %%
one = torch.tensor(1.0, dtype=torch.bfloat16)
print([(one + update).item() for update in (0.001, 0.003, 0.005)])
teach.claim("1 + 0.003 is 1 in bf16", one + 0.003 == 1)

# %% [markdown]
# After 1 comes 1.0078. A step below half that gap (0.0039) rounds back, every time: the weight **stalls**. For other
# weights the limit is 1/512 to 1/256 of their size.
#
# Two cures. A **master copy** in fp32 takes the updates, and the model gets its rounded copy. **Stochastic rounding**
# keeps no copy: it rounds up or down at random, so that the mean is right. Both beside fp32 and plain bf16, on a layer
# whose weights (standard deviation 2) need a change of 0.3, with Adam at a learning rate of 0.002. In plain bf16 only
# weights below 1 in size can move:

# %%
from course_utils.training.low_precision import round_stochastically

teach.show_source(round_stochastically)
seeds = range(seed, seed + 3)
small_steps = experiments.small_steps
stalls = {way: [small_steps(way, s) for s in seeds] for way in experiments.WAYS}
curves = {way: [losses_of for losses_of, _ in runs] for way, runs in stalls.items()}
teach.show(figures.stall(curves))

# %%
ends = {way: [sum(curve[-16:]) / 16 for curve in runs] for way, runs in curves.items()}
bf16_ends, master_ends = ends["bf16 weights"], ends["bf16, fp32 master copy"]
moved = max(share for _, share in stalls["bf16 weights"])
worse = min(b / m for b, m in zip(bf16_ends, master_ends, strict=True))
teach.claim("bf16 weights end 20 times higher, in every seed", worse > 20)
teach.claim("under 60 % of the bf16 weights ever moved", moved < 0.6)
stochastic = max(ends["bf16, stochastic rounding"]) / max(master_ends)
teach.claim("stochastic rounding ends within twice the copy's loss", stochastic < 2)

# %% [markdown]
# Nothing warns: no error, no nan. Autocast avoids it, since its weights are fp32.
#
# ## 5 · Kernels and compilation
#
# **Eager** attention computes a score for every pair of tokens, writes them all to memory, and reads them again. A
# fused kernel behind `scaled_dot_product_attention` (SDPA) works through blocks that stay in the cache and never writes
# the scores: FlashAttention ([Dao et al. 2022](https://arxiv.org/abs/2205.14135)). `attn_implementation="sdpa"` is
# transformers' default; the ladder starts eager. The scores grow with the square of the row's length: at 128 tokens
# there is little to save, and here SDPA is slower.
#
# **`torch.compile`** writes code for your model: chains of small operators become one loop. It costs a C++ compiler and
# time, which must be earned back. The bench on both:

# %%
found = {row["name"]: row for row in report["rungs"]}
print("first round with compilation:", report["compile_seconds"], "s")
for name in ("SDPA attention", "torch.compile"):
    if gain := found[name].get("against_the_rung_below"):
        print(f"{name} / rung above: {gain['ratio']} [{gain['low']}, {gain['high']}]")

# %% [markdown]
# The code, a **graph**, is made for shapes. Another shape is another compilation, and batches padded to their longest
# row bring one at nearly every step. `graphs_after` counts compilations without a compiler: twelve batches, each of
# another length.

# %%
from torch.nn import functional as F

from course_utils.training.compiling import graphs_after

batches = [(torch.randn(length, 8),) for length in range(20, 32)]
activation = lambda x: F.gelu(2 * x + 1).sum()  # noqa: E731
choices = {"dynamic=False": False, "default": None, "dynamic=True": True}
graphs = {name: graphs_after(activation, batches, way) for name, way in choices.items()}
teach.show(figures.recompiles(graphs))
last = [counts[-1] for counts in graphs.values()]
teach.claim("8 graphs and then it gives up, 2 graphs, 1 graph", last == [8, 2, 1])

# %% [markdown]
# By default the second shape makes the size a variable. `dynamic=False` runs uncompiled from the limit of 8 on. Packed
# rows always have one length.
#
# ## 6 · Where the memory goes
#
# Weights, gradients and AdamW's moments take 16 bytes per parameter, whatever the batch. The rest grows with the batch:
# activations that forward keeps for backward. autograd calls `saved_tensors_hooks` for every tensor it keeps, and
# `SavedTensors` counts their bytes, each storage once, weights left out.

# %%
from course_utils.training.saved_tensors import MIB, SavedTensors

model = new_model()
ids = torch.randint(5, len(tokenizer), (16, 64))
mask = (torch.arange(64) < 50).long().expand(16, 64)
labels = ids.masked_fill(mask == 0, -100)
example = {"input_ids": ids, "attention_mask": mask.contiguous(), "labels": labels}
with SavedTensors(model, example.values()) as saved:
    experiments.loss_of(model, example)
for (shape, _), size in saved.by_shape.most_common(4):
    print(f"{size / MIB:6.1f} MiB  {shape}")
print(f"{saved.bytes / MIB:6.1f} MiB in all")
print(f"{model.num_parameters() * 4 / MIB:6.1f} MiB of weights")

# %% [markdown]
# The largest is `(1024, 8000)`: log probabilities over the vocabulary at 16 x 64 positions, 1024 x 8000 x 4 bytes =
# 31.2 MiB. All sizes follow from the model's, so they can be *predicted*: each of the four layers' MLPs keeps
# three tensors `(16, 64, 352)` and one `(1024, 352)`, 4 x 1024 x 352 x 4 bytes = 5.5 MiB. `kept` measures, and predicts
# as lesson 15 will.
#
# **Checkpointing** keeps each layer's input only, and runs the layer again when backward comes to it: memory for time.
# `model.activation_checkpointing_enable()` switches it on.

# %%
kept = {
    "fp32": experiments.kept(model, example),
    "bf16 autocast": experiments.kept(model, example, bf16=True),
    "checkpointing": experiments.kept(model, example, checkpointing=True),
}
teach.show(figures.memory(kept))
for name, one in kept.items():
    measured, predicted = one.measured / MIB, one.predicted / MIB
    print(f"{name:14} {measured:3.0f} MiB, predicted {predicted:3.0f}")
gaps = [abs(one.predicted / one.measured - 1) for one in kept.values()]
teach.claim("predicted within 1 %: fp32, checkpointing", max(gaps[0], gaps[2]) < 0.01)
teach.claim("within 6 % under autocast", gaps[1] < 0.06)
layers = {name: one.measured - one.logits for name, one in kept.items()}
saving = 1 - layers["checkpointing"] / layers["fp32"]
teach.claim("checkpointing drops over 85 % of the layers' part", saving > 0.85)

# %% [markdown]
# bf16 saves less than half: autocast keeps a 16-bit copy for each matrix, and sums, norms and logits stay fp32.
# Checkpointing costs a second forward pass through the layers, so at most a third more of *their* operations:

# %%
from course_utils.models.flops import counted_flops


def step_of(model):
    model.zero_grad()
    experiments.loss_of(model, example).backward()


plain_flops = counted_flops(model, example)
plain_seconds = experiments.step_seconds(lambda: step_of(model))
with experiments.checkpointed(model):
    more_flops = counted_flops(model, example) / plain_flops
    more_seconds = experiments.step_seconds(lambda: step_of(model)) / plain_seconds
print(f"operations: {more_flops:.2f} times")
teach.claim("between 1.02 and 1.34 times the operations", 1.02 < more_flops < 1.34)

# %% tags=["nbval-ignore-output"]
print(f"CPU time: {more_seconds:.2f} times")
teach.claim("checkpointing costs less than twice the time", more_seconds < 2)

# %% [markdown]
# Far less than 4/3: the output layer, here more than half of all operations, is not repeated, and torch stops each
# repeat at the last tensor that backward needs. Norms and masks cost time too, and hardly count as operations.
#
# ### The logits that nobody needs
#
# With checkpointing, the logits are nearly all that is left. Yet a position's logits are needed only to turn one hidden
# vector into a loss and a gradient. So take a **chunk** of positions, compute its logits, its loss *and its gradient*
# (softmax minus 1 at the target), and throw the logits away:

# %%
from course_utils.training import chunked_cross_entropy as chunked

teach.show_source(chunked._ChunkedCrossEntropy.forward)

# %%
from course_utils.training.saved_tensors import peak_bytes


def all_logits():
    return model(**example).loss


def by_chunks():
    return chunked.causal_loss(model, example, chunk=128)


model.zero_grad()
results, peaks = [], []
for loss_of in (all_logits, by_chunks):
    loss = loss_of()
    loss.backward()
    results.append((loss.item(), experiments.gradients_of(model)))
    peaks.append(peak_bytes(lambda loss_of=loss_of: loss_of().backward()) / MIB)
    model.zero_grad()
off = experiments.distance(*reversed(results))
print(f"peak: {peaks[0]:.0f} MiB with all logits, {peaks[1]:.0f} by chunks")
teach.claim("same loss and gradient within 1e-5", off < 1e-5)
teach.claim("at most 0.6 of the peak", peaks[1] < 0.6 * peaks[0])

# %% [markdown]
# `peak_bytes` follows every tensor from birth to death. With a vocabulary of 150,000 and rows of 4,096 tokens the full
# logits of *one* row take 2.5 GB in fp32, three times: log softmax, its gradient, the logits' gradient.
#
# ## 7 · Micro-batch against accumulation
#
# The batch of an optimizer step is a choice about training. How it is divided is a choice about memory: lesson 01
# showed that k micro-batches give the same gradient. Sixteen rows, divided in five ways:

# %%
divided = experiments.divisions(model, example, [1, 2, 4, 8, 16])
per_row = [one.bytes / one.micro_batch / MIB for one in divided]
print("MiB a row:", [round(value, 1) for value in per_row])
teach.claim("memory in proportion within 2 %", max(per_row) < 1.02 * min(per_row))

# %% tags=["nbval-ignore-output"]
teach.show(figures.trade(divided))
slow, fast = divided[0].seconds, min(one.seconds for one in divided)
teach.claim("single rows take at least 1.1 times as long", slow > 1.1 * fast)

# %% [markdown]
# From a few rows on, larger products bring nothing more, and a step can get slower again (small differences are noise).
# So: the smallest micro-batch that is fast, on a GPU often the largest that fits, and accumulation for the rest.
#
# ### Exercise 09.3: choose for a budget
#
# A step must train on exactly `rows` rows. Weights, gradients and optimizer state take `fixed`, each row of a
# micro-batch `per_row`, and `budget` is what there is. Return `(micro_batch, accumulation)` with the largest
# micro-batch that fits and divides `rows`; one row always fits.


# %%
def divide(rows, fixed, per_row, budget):
    return ...


# %%
teach.check("09.3", divide)

# %% [markdown]
# ## 8 · How good is it? MFU
#
# Ratios say that a step got faster, not how fast it could be. **MFU**, model FLOPs utilisation, does: the operations
# that the model *needs* for its tokens, per second, divided by what the processor can do at most. PaLM's count
# ([Chowdhery et al. 2022](https://arxiv.org/abs/2204.02311), appendix B) per token:
#
# $$6N + 12\,D\,A\,Q\,\tfrac{L}{2}$$
#
# N weights of matrix products: two operations (FLOPs) each in forward, four in backward. D layers, A heads of width Q;
# a token of a causal model attends to half of its row's L tokens on average (PaLM counts all). What checkpointing
# repeats does not count. The peak: a large matrix product, measured here.

# %%
from course_utils.models.configs import shape_of_config
from course_utils.models.flops import training_flops_per_token
from course_utils.models.shapes import matrix_parameters

needed = training_flops_per_token(shape_of_config(model.config), 64) * ids.numel()
by_weights = 6 * matrix_parameters(shape_of_config(model.config)) * ids.numel()
counted = counted_flops(model, example)
print(f"{needed / 1e9:.2f} GFLOP by the formula, {counted / 1e9:.2f} counted")
teach.claim("the formula's 6N equals the count exactly", counted == by_weights)

# %% tags=["nbval-ignore-output"]
peak = max(experiments.matmul_rate() for _ in range(3))
seconds = experiments.step_seconds(lambda: step_of(model))
mfu = needed / seconds / peak
print(f"peak {peak / 1e9:.0f} GFLOP/s, MFU {mfu:.0%}")
print(f"by useful tokens {mfu * 49 / 64:.0%}: 49 of 64 are targets")
teach.claim("MFU between 5 % and 100 %", 0.05 < mfu < 1)

# %% [markdown]
# torch counts no fused attention on a CPU: the formula's second part is not checked. The rest of the time goes to
# norms, activations, softmax, masks, which read and write more than they multiply. PaLM's paper reports 46 % for its
# largest run, on 6,144 chips.
#
# ### Exercise 09.4: compute MFU
#
# From a model's numbers: `layers` of width `hidden`, as many key and value heads as query heads, all heads together as
# wide as `hidden`, a gated MLP (three matrices) of width `intermediate`, an output layer over `vocabulary`. A causal
# model, `tokens` trained on in `seconds`, rows of `length`, and `peak` in FLOP/s.


# %%
def mfu_of(layers, hidden, intermediate, vocabulary, length, tokens, seconds, peak):
    return ...


# %%
teach.check("09.4", mfu_of)

# %% [markdown]
# ### Deeper: against a library
#
# A ladder from a naive start flatters. So the bench puts its rung with the highest median rate (chosen from the same
# rounds, which favours it) beside TRL's `SFTTrainer`, which packs too, on the same documents, model and rows a step,
# both in bf16 without checkpointing. SFTTrainer logs entropy and accuracy of every step, which costs time and is left
# on: that is how people run it. Its `bfd` packing (best-fit decreasing) passes positions that restart with each
# document; `wrapped` cuts them and lets neighbours see each other.

# %%
for row in report["trl"]:
    ratio = row["ours"]
    print(f"{row['name']}: ours is {ratio['ratio']} times as fast", end=" ")
    print(f"[{ratio['low']}, {ratio['high']}]")
fastest = report["fastest"]
share = fastest["share_of_peak"]
print(f"highest median rate: {fastest['rung']}, {share:.0%} of bf16's peak")
for part, milliseconds_of in fastest["milliseconds"].items():
    print(f"  {part:10}{milliseconds_of:8.1f} ms")

# %% [markdown]
# In figure 1 another rung can stand higher: bars are medians of *ratios*. So no ratio here is a quotient of bars.

# %% [markdown]
# ## 9 · What goes wrong
#
# **Timing without waiting, and `.item()` in every step.** A GPU works from a queue: Python puts kernels in and goes on.
# Reading a result makes it wait. Computed, not measured: six steps, 2 ms of Python and 5 ms of device each.

# %%
from course_utils.lessons.lesson_09.device_queue import schedule

plans = {
    "loss kept as a tensor": schedule(6, 2.0, 5.0, read_each_step=False),
    "loss.item() after each step": schedule(6, 2.0, 5.0, read_each_step=True),
}
teach.show(figures.queue(plans))
no_wait = schedule(6, 2.0, 5.0, read_each_step=False, synchronise=False)
print(f"a timer without synchronise: {no_wait.read:g} ms")
print(f"the truth: {no_wait.total:g} ms")
reading = plans["loss.item() after each step"].total
teach.claim("by this sum: 42 ms against 32", (reading, no_wait.total) == (42, 32))

# %% [markdown]
# The dashed line is where a timer stops that does not **synchronise**, wait for the queue: it measured Python. Call
# `torch.cuda.synchronize()` before reading the clock, and read losses every tenth step.
#
# **The others**, some from the folded sections:
#
# | symptom | cause | check |
# |---|---|---|
# | "twice the tokens/s", same loss per hour | padding counted | count labels other than -100 |
# | first step slow, or speed-up of 50 | no warm-up; no synchronise | warm up, interleave, wait, median |
# | GPU at 60 %, gaps in the trace | `.item()`, slow loader | timeline: who waits? |
# | slow for minutes, then a line in the log | recompiling for each shape | `graphs_after`, `TORCH_LOGS=recompiles` |
# | fp16 loss fine, unlikely words are not pushed down | gradients underflow | share of gradients that are 0 |
# | loss rests early, no error | bf16 weights without master copy | which weights moved in 100 steps? |
# | memory grows with each worker | lists of Python objects | private memory of a worker |
#
# ### Exercise 09.5: a fast step that is the same step
#
# One optimizer step on all `documents` (lists of token ids): packed into rows of `row_length`, kept apart, layers in
# bf16, weights in fp32, on the CPU. Leave no gradient behind (none is there at first), do not clip, do nothing that
# makes the program wait. `pack_documents(documents, row_length)` gives rows, `PackedCollator(dtype=...)(rows)` a batch
# with a mask of that type, the layers'. Return the mean loss over all targets, as a tensor without its graph. The
# checker compares with each document alone, and counts the positions you compute.

# %%
from course_utils.data.packing import PackedCollator, pack_documents  # noqa: F401


def fast_step(model, optimizer, documents, row_length):
    # batch = ...
    return ...


# %%
teach.check("09.5", fast_step)

# %% [markdown]
# ## 10 · What the trained model says now
#
# The model of section 4 has seen a few hundred documents. Its loss, and the words it finds likeliest:

# %%
start_loss, end_loss = losses[0].item(), torch.stack(losses[-5:]).mean().item()
print(f"loss {start_loss:.1f} -> {end_loss:.1f}")
long_enough = max_steps >= 40
falls = "it learns: the loss falls by more than 1"
teach.claim(falls, end_loss < start_loss - 1, when=long_enough)

# %% tags=["nbval-ignore-output"]
trained = climb.model.eval()
for text in ("the value of", "returns the number", "if the array is not"):
    found = experiments.next_words(trained, tokenizer, text)
    print(f"{text} ...", {word: round(chance, 2) for word, chance in found.items()})
likeliest = max(experiments.next_words(trained, tokenizer, "the value of").values())
sure = "surer than chance by a factor of 100"
teach.claim(sure, likeliest > 100 / len(tokenizer), when=long_enough)

# %% [markdown]
# Common tokens: their frequency alone gives the factor of 100.

# %% [markdown]
# ## Deeper: selective checkpointing
#
# Checkpointing repeats nearly all of a layer. Matrix products take most operations and keep the smaller part of the
# memory; norms, activations and masks are cheap to repeat and keep much. **Selective** checkpointing keeps the results
# of products and repeats the rest: `context_fn` of `torch.utils.checkpoint` asks a policy for each operator. We use the
# chunked loss, so that the layers decide the peak. Operations here are matrix products; time is not measured.

# %%
from functools import partial

from torch.utils.checkpoint import (
    CheckpointPolicy,
    create_selective_checkpoint_contexts,
)

products = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}
products.add(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)


def policy(context, operator, *arguments, **options):
    keep, repeat = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
    return keep if operator in products else repeat


contexts = partial(create_selective_checkpoint_contexts, policy)
amounts = {}
kinds = {"none": None, "selective": {"context_fn": contexts}, "all": {}}
for name, options in kinds.items():
    with experiments.checkpointed(model, options is not None, **(options or {})):
        flops = counted_flops(model, example) / plain_flops
        amounts[name] = peak_bytes(lambda: by_chunks().backward()) / MIB, flops
    model.zero_grad()
    print(f"{name:10} peak {amounts[name][0]:5.0f} MiB, operations {flops:.2f} times")
(high, _), (middle, selective_flops), (low, all_flops) = amounts.values()
teach.claim("selective lies between both in memory", low < middle < high)
teach.claim("and no counted product is repeated", selective_flops == 1)

# %% [markdown]
# ## Deeper: what compilation does to a chain of small operators
#
# A norm and a gate, written in torch, are nine operators; each reads and writes the whole tensor. Compiled, they are
# one loop. The first call compiles: whoever times it, or a mean that contains it, has timed the compiler. Without a
# C++ compiler this cell says that it was skipped.

# %%
from time import perf_counter

from course_utils.training.optim import compiler_available


def norm_and_gate(x, weight, gate):
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
    return y * torch.sigmoid(gate) * gate


# %% tags=["nbval-ignore-output"]
inputs = torch.randn(1024, 512), torch.ones(512), torch.randn(1024, 512)
faster = slow_start = None
if compiler_available():
    fused, began = torch.compile(norm_and_gate), perf_counter()
    torch.testing.assert_close(fused(*inputs), norm_and_gate(*inputs))
    first_call = perf_counter() - began
    both = {"eager": norm_and_gate, "compiled": fused}
    times = interleaved_medians({k: partial(f, *inputs) for k, f in both.items()}, 15)
    faster = times["eager"] / times["compiled"]
    slow_start = first_call / times["compiled"]
    print(f"compiled: {faster:.1f} times as fast")
    print(f"the first call took as long as {slow_start:.0f}")
else:
    print("skipped: no C++ compiler")
teach.claim("faster by 1.2 or more, or skipped", faster is None or faster > 1.2)
cold = slow_start is None or slow_start > 50
teach.claim("the first call takes as long as 50 later ones, or skipped", cold)

# %% [markdown]
# On a whole model the gain is smaller (section 5 prints it): matrix products dominate and are hardly touched.

# %% [markdown]
# ## Deeper: workers that copy the data set
#
# A loader worker is a forked process and shares its parent's memory, until it writes. Reading a Python object writes
# its count of references, so a list of strings is copied page by page, by each worker. A tensor, a NumPy array or an
# Arrow table (`datasets`) has one object and a block of numbers.

# %%
from course_utils.data.worker_memory import growth_in_a_worker

strings = [[str(200 * row + i) for i in range(200)] for row in range(3_000)]
numbers = torch.arange(600_000).view(3_000, 200)
growth = {
    "lists of strings": growth_in_a_worker(strings, lambda row: sum(map(len, row))),
    "a tensor": growth_in_a_worker(numbers, lambda row: row.sum()),
}

# %% tags=["nbval-ignore-output"]
measurable = all(values is not None for values in growth.values())
ends_at = [values[-1] if values else 0 for values in growth.values()]
if measurable:
    teach.show(figures.copies(growth))
grows = not measurable or ends_at[0] > 10 + ends_at[1]
teach.claim("lists are copied, the tensor is not (Linux)", grows)

# %% [markdown]
# ## Deeper: rungs that need a GPU
#
# The code of these rungs is in `course_utils/training/ladder.py` and runs with `bench_ladder.py --device cuda`. Here:

# %%
for row in report["rungs"]:
    if "not_run" in row:
        print(f"{row['name']}: {row['not_run']}")
on_a_gpu = experiments.recorded("ladder_cuda")
if on_a_gpu:
    teach.show(figures.ladder(on_a_gpu))
else:
    print("no ladder of a GPU has been recorded")

# %% [markdown]
# What they do. **TF32**: fp32 products with 10 bits of fraction on tensor cores, one line,
# `torch.set_float32_matmul_precision("high")`. **Pinned memory**: the loader puts batches where the GPU can fetch them
# itself, and `to(device, non_blocking=True)` goes on while it does. **CUDA graphs**: a step's kernels are recorded once
# and started with one call, which closes gaps; shapes must not change. **Liger**: fused kernels for norms, MLPs and
# section 6's loss. **FP8**: products in 8 bits, with a scale per tensor, on GPUs from 2022 on. Two rungs of the CPU
# have their real case here too: the fused optimizer, because a loop over the tensors starts hundreds of tiny kernels,
# microseconds each, and SDPA, on long rows. None of it was measured here.

# %% [markdown]
# ## Recap
#
# - Count useful tokens. Warm up, take turns, wait for the device, report the median ratio with its interval.
# - Padding first, then number formats, then kernels. Profile before, and prove after that the step is the same.
# - bf16: autocast over fp32 weights. fp16 needs a loss scale; bf16 weights need a master copy or stochastic rounding.
# - Activations and logits can be predicted; checkpointing and chunks cut them for a price you can measure.
# - Micro-batch and accumulation trade memory for time at the same gradient; MFU says how far you are from the peak.

# %% [markdown]
# ## Quiz
#
# **1.** A colleague reports 90,000 tokens per second padded to 1,024; you have 60,000 packed. Who is faster?
#
# <details><summary>Answer</summary>
#
# Unknown until both count targets. If the documents had 300 tokens each, 90,000 positions padded to 1,024 would be
# about 26,000 useful tokens.
#
# </details>

# %% [markdown]
# **2.** The optimizer takes 6 % of a step. A vendor's optimizer is "three times faster". What do you gain?
#
# <details><summary>Answer</summary>
#
# 4 % of the step: a factor of 1.04.
#
# </details>

# %% [markdown]
# **3.** With checkpointing on, a step needs 1.3 times the operations and takes 1.3 times as long. What happens to MFU?
#
# <details><summary>Answer</summary>
#
# It falls by a factor of 1.3. MFU counts what the model needs, not what you repeat; the processor is as busy as before.
#
# </details>
#
# **Next:** [lesson 10](10_llm_finetuning.ipynb) fine-tunes a language model, with label masks, LoRA and a launch
# configuration.
