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
# # 11 · Data parallel: two processes, one model
#
# Lesson 08 let `prepare` turn one process into several. This lesson builds what is inside: how ranks exchange tensors,
# how gradients are averaged, and how that is hidden behind the backward pass. Then torch's own version, Accelerate and
# the Trainer have to agree with it, to the bit.
#
# **You will be able to**
#
# - draw and write the collectives, and say how many bytes each rank sends;
# - write a data parallel step that equals one process, also with unequal numbers of targets and with accumulation;
# - explain buckets, overlap and `no_sync`, and count the messages;
# - shard an epoch's rows, and find what a distributed loop forgot;
# - start ranks with torchrun on one node or several, and have a killed rank restarted.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (the loop), 03 (Trainer) and 08 (ranks, DDP).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 60  # optimizer steps of the main run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Where we are going
#
# The run of this lesson, and of the next two: a decoder of 119,232 weights without dropout, predicting the next token
# of docstring sentences like these, which are this project's own. A global batch has 8 rows; each of two ranks gets 4.

# %%
import torch

from course_utils.data.own_text import own_sentences
from course_utils.parallel import reference

torch.set_num_threads(1)  # the model is tiny: more threads would only wait
for sentence in own_sentences()[:2]:
    print("-", sentence)
batch = reference.global_batches(1, seed=seed, source=source)[0]
shares = [reference.share(batch, rank, 2) for rank in range(2)]
print("global batch:", tuple(batch["input_ids"].shape), "= (rows, tokens)")
print("targets of each rank's share:", [reference.count_targets(s) for s in shares])
print("weights:", sum(p.numel() for p in reference.new_model().parameters()))

# %% [markdown]
# The rows are sorted by length, so the ranks hold different numbers of targets. Each rank computes the gradient of its
# own rows. Here is that of one weight matrix, on two real processes:

# %%
from course_utils.lessons.lesson_11 import figures, on_ranks
from course_utils.parallel import shared_ranks

ranks = shared_ranks(2)  # lesson 08: two processes that wait for our calls
own = ranks(on_ranks.one_gradient, source=source, seed=seed)
alone = ranks(on_ranks.one_gradient, source=source, seed=seed, rows="all")[0]
total = sum(rank["targets"] for rank in own)
average = sum(torch.tensor(r["gradient"]) * r["targets"] / total for r in own)
expected = torch.tensor(alone["gradient"])
teach.show(figures.gradients(own, average, expected))
apart = ((average - expected).norm() / expected.norm()).item()
teach.claim("weighted by targets, the average is one process's", apart < 1e-5)

# %% [markdown]
# That is all of data parallel training. If all ranks take their step with this average, they stay equal, and equal to
# one process. The finished thing, which sections 3 to 5 build:

# %%
from course_utils.parallel.data_parallel_runs import train_data_parallel

run = {"steps": max_steps, "seed": seed, "source": source}
one = reference.train_alone(**run)
two = ranks(train_data_parallel, kind="bucketed", **run)
teach.show(figures.two_runs(one["losses"], two[0]["losses"]))
apart = max(abs(a - b) for a, b in zip(one["losses"], two[0]["losses"], strict=True))
teach.claim("losses of one and two processes agree within 1e-4", apart < 1e-4)
equal = two[0]["hash"] == two[1]["hash"]  # a hash of all weights
teach.claim("both ranks end with the same weights, bit for bit", equal)

# %% [markdown]
# ## 2 · Ranks that know each other
#
# A machine with its processes is a **node**. On each node runs one **torchrun**, which starts the ranks and tells each
# who it is through environment variables:

# %%
teach.show(figures.who_is_who())

# %% [markdown]
# `RANK` counts over all nodes, `LOCAL_RANK` inside a node: it chooses the GPU. Rank 0 opens a port, the others connect
# to it, and together they are a **process group**: ranks that can exchange tensors. The **backend** that carries them
# is NCCL where each rank has a GPU, and gloo on CPUs. This course's `join_group` does it and picks the backend. It
# returns this rank's *link* to the others: `rank`, `size`, `send`, `receive`, the `bytes` these sent, and `all_reduce`,
# which sums its tensor over the ranks in place and returns it.

# %%
from course_utils.parallel.links import join_group


def who_am_i():
    import os

    link = join_group()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    return {name: os.environ[name] for name in names} | {"backend": link.backend}


met = ranks(who_am_i)
print(*met, sep="\n")
on_cpu = met[0]["backend"] == "gloo"
teach.claim("two ranks met", [rank["RANK"] for rank in met] == ["0", "1"])

# %% [markdown]
# A `send` on CPU ranks ends when the other has received. If both send first, both wait until the time-out: half an
# hour, with NCCL ten minutes. This is a **deadlock**: each waits for the other. The way out is
# `link.exchange(tensor, to, like, source)`. It sends `tensor` to rank `to` and receives, at the same time, from
# `source` something of the shape of `like`.

# %% [markdown]
# ### Deeper: a deadlock
#
# With a time-out of one second:


# %%
def both_send_first(seconds):
    link = join_group().with_timeout(seconds)
    other = 1 - link.rank
    try:
        link.send(torch.ones(3), other)
        return link.receive(torch.ones(3), other).tolist()
    except RuntimeError as error:
        return "timed out" if "Timed out" in str(error) else "the other gave up"


ended = ranks(both_send_first, seconds=1)
in_vain = "timed out" in ended and [1.0, 1.0, 1.0] not in ended
teach.claim("both ranks waited in vain", in_vain, when=on_cpu)

# %% [markdown]
# ## 3 · Collectives
#
# A **collective** is an exchange that all ranks make together. Four of them carry all of this lesson and the next. A
# row is a rank, a column a chunk of its tensor, Σ the sum over the ranks:

# %%
teach.show(figures.collectives())

# %% [markdown]
# An all-reduce is a reduce-scatter followed by an all-gather. Keep that: lesson 12 pulls the two apart. The naive way,
# from `send` and `receive` alone, does neither:

# %%
from course_utils.parallel import collectives

teach.show_source(collectives.broadcast)
teach.show_source(collectives.all_reduce_naive)

# %% [markdown]
# It is right, and everything passes through rank 0. The **ring** shares the work out. Each rank only ever sends one
# chunk to its right neighbour and receives one from its left. Below is a real run, on four pretended ranks: threads of
# this process, which `in_threads` connects. A, B, C, D say whose numbers are in a chunk.

# %%
history = figures.ring_history(4)
teach.show(figures.ring(history))

# %% [markdown]
# All ranks send at every step; each waits only for its left neighbour. In N - 1 steps each rank has one complete chunk
# (reduce-scatter), in N - 1 more all of them (all-gather). A step moves 1/N of the tensor, so each rank sends 2(N-1)/N
# of it: less than twice its size. As the links count:

# %%
from course_utils.parallel.links import in_threads


def most_sent(way, size, elements):
    def on_each(link):
        way(link, torch.ones(elements))
        return link.bytes

    return max(in_threads(on_each, size))


sizes, elements = range(2, 9), 840  # 840 can be cut into 2, 3, ... 8 equal chunks
ways = {"naive": collectives.all_reduce_naive, "ring": collectives.all_reduce_ring}
counted = {k: {n: most_sent(w, n, elements) for n in sizes} for k, w in ways.items()}
teach.show(figures.bytes_sent(counted, 4 * elements))
formula = {n: 2 * (n - 1) / n * 4 * elements for n in sizes}
teach.claim("2 to 8 ranks: the bytes are the formula's", counted["ring"] == formula)
real = ranks(on_ranks.ring_traffic, elements=1000)
print("two real ranks, 4000 bytes:", real[0])
teach.claim("the same on real ranks", real[0]["right"] and real[0]["bytes"] == 4000)

# %% [markdown]
# NCCL and gloo have rings too, and other patterns for small tensors (*Deeper: what an all-reduce costs*).
#
# ### Exercise 11.1 · write
#
# The ring, from `link.exchange`. `chunks` is a list of `link.size` tensors of one shape. Return the list with the sum
# over the ranks in each. You may change the inputs. The checker runs it on 2, 3 and 4 pretended ranks and counts each
# one's bytes.


# %%
def ring_all_reduce(link, chunks):
    return ...


# %%
teach.check("11.1", ring_all_reduce)

# %% [markdown]
# ## 4 · Data parallel by hand
#
# Put `all_reduce` after `backward` and data parallel training is there. `AverageAfter` wraps a model; when it is built,
# it gives rank 0's weights to everybody.

# %%
from course_utils.parallel import data_parallel

teach.show_source(data_parallel.AverageAfter)

# %% [markdown]
# The loop around it. `summed_loss` is a cross entropy *summed* over this rank's targets. It is divided by the targets
# of all ranks, so that each target weighs the same. `finish` divides by the number of ranks, as DDP does, so the loss
# is multiplied by it first. `share` cuts this rank's rows out of the global batch; `AverageInBuckets` is section 5's.

# %%
from course_utils.data.batches import to_device
from course_utils.parallel.data_parallel import AverageAfter, AverageInBuckets


def train_by_hand(in_buckets, source, steps, seed, save_to=None):
    from safetensors.torch import save_model

    link = join_group()
    model = reference.new_model(seed).to(link.device)
    wrapped = (AverageInBuckets if in_buckets else AverageAfter)(model, link)
    optimizer, losses = reference.new_optimizer(model), []
    for batch in reference.global_batches(steps, seed=seed, source=source):
        mine = to_device(reference.share(batch, link.rank, link.size), link.device)
        own = torch.tensor(reference.count_targets(mine), device=link.device)
        targets = link.all_reduce(own)  # now the sum over the ranks
        loss = reference.summed_loss(wrapped, mine) / targets
        (loss * link.size).backward()
        wrapped.finish()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(link.all_reduce(loss.detach()).item())
    if save_to and link.rank == 0:
        save_model(model, save_to)
    weights = reference.hash_of(reference.flat_weights(model))
    return {"losses": losses, "hash": weights, "messages": wrapped.messages}


# %%
from tempfile import TemporaryDirectory

scratch = TemporaryDirectory()
saved = f"{scratch.name}/trained.safetensors"
naive = ranks(train_by_hand, in_buckets=False, **run, save_to=saved)
apart = max(abs(a - b) for a, b in zip(one["losses"], naive[0]["losses"], strict=True))
teach.claim("by hand equals one process within 1e-4", apart < 1e-4)
tensors = len(list(reference.new_model().parameters()))
one_each = naive[0]["messages"] == tensors * max_steps
teach.claim(f"a step has {tensors} all-reduces, one per parameter tensor", one_each)

# %% [markdown]
# Two more sum the targets and the loss.
#
# ### Exercise 11.2 · write
#
# Somebody else has called `backward`: each rank's gradients are those of *its mean loss* over its own `targets`, a
# number that differs between the ranks and is never 0. Make them, in place, the gradients of the mean over the targets
# of all ranks. Messages are dear: call `link.all_reduce(tensor)` at most twice. Some parameters are frozen, the same on
# all ranks.


# %%
def average_gradients(link, model, targets):
    """In place; what it returns does not matter."""
    return ...


# %%
teach.check("11.2", average_gradients)

# %% [markdown]
# ## 5 · Buckets, overlap, silence
#
# The naive way is slow twice. Each small message pays the price of a message. And the network rests during backward,
# the processor during the exchange.
#
# The last block's gradients are ready when backward has hardly begun. So they can travel while the earlier blocks are
# computed. Gradients are packed into **buckets**, from the last parameter to the first. Bucket 4 is the embedding, also
# the output matrix: its gradient is complete only at the end.

# %%
from course_utils.parallel.data_parallel import buckets_of

model = reference.new_model(seed)
grouped = buckets_of(list(model.parameters()), bucket_bytes=128 * 1024)
teach.show(figures.buckets(model, grouped))

# %% [markdown]
# A **hook** is a function that torch calls at a certain point. This one is called when a parameter's gradient is
# complete. It sends every bucket that is full, in one fixed order, and does not wait. `finish` waits.

# %%
# _place: a parameter's bucket. _missing: what each bucket still lacks.
# _running: buckets under way. _send: starts the next one.
teach.show_source(AverageInBuckets._gradient_is_there)

# %% [markdown]
# A step of a wider model, of five the one of median length, with time stamps from rank 0. A bar is one all-reduce;
# several can be under way. Compare where they begin, not lengths: the ranks share this machine's cores.

# %% tags=["nbval-ignore-output"]
kinds = {"naive": {}, "bucketed": {"bucket_bytes": 2**20}}
runs = {k: ranks(on_ranks.timeline, kind=k, **extra)[0] for k, extra in kinds.items()}
teach.show(figures.timelines(runs))
begun = {kind: [b for _, b, _ in r["exchanges"]] for kind, r in runs.items()}
end = runs["bucketed"]["backward"][1]
early = sum(moment < end for moment in begun["bucketed"])
most = early > len(begun["bucketed"]) / 2
teach.claim("in buckets, over half begin during backward", most)
teach.claim("there are fewer of them", len(begun["bucketed"]) < len(begun["naive"]))

# %%
fast = ranks(train_by_hand, in_buckets=True, **run)
same = all(fast[0][name] == naive[0][name] for name in ("hash", "losses"))
teach.claim("in buckets equals naive, bit for bit", same, when=on_cpu)

# %% [markdown]
# Large buckets are sent efficiently, and late: the very last can overlap with nothing. DDP's default is 25 MB
# (`bucket_cap_mb`; 1 MB for the first): this 0.5 MB model is one bucket, without overlap.
#
# ### Silence during accumulation
#
# With accumulation (lesson 01) a window has several micro-batches and one step. Only the sum is needed, so only the
# last backward has to talk. `with wrapped.no_sync():` switches the hooks off inside; in DDP it must enclose the forward
# pass too. Four micro-batches, with and without:

# %%
window = {"source": source, "seed": seed}
silent = ranks(on_ranks.window_of_four, quiet=True, **window)[0]
talking = ranks(on_ranks.window_of_four, quiet=False, **window)[0]
for name, sent in {"no_sync": silent, "without": talking}.items():
    print(f"{name:8} {sent['messages']:3} messages, {sent['bytes']:9,} bytes")
teach.claim("four times as many bytes", talking["bytes"] == 4 * silent["bytes"])
once, often = torch.tensor(silent["gradient"]), torch.tensor(talking["gradient"])
apart = ((once - often).norm() / once.norm()).item()
teach.claim("for the same gradient, within 1e-5", apart < 1e-5)

# %% [markdown]
# ### Exercise 11.3 · predict
#
# Two ranks. A model has 148 parameter tensors; DDP packs them into 6 buckets. In an epoch each rank has 22
# micro-batches, accumulation is 4, and the epoch's end ends a window. How many all-reduces of gradients does the epoch
# need: with `AverageAfter` and one `finish` a window; with DDP and `no_sync`; with DDP when `no_sync` is forgotten?

# %%
prediction = ...  # {"naive": ..., "buckets": ..., "forgotten": ...}

# %%
teach.check("11.3", prediction)

# %% [markdown]
# ## 6 · The real ones
#
# `DistributedDataParallel` is `AverageInBuckets` in C++: an equal start, buckets, hooks, overlap, `no_sync`. (A
# trainable parameter that a step leaves out needs `find_unused_parameters=True`.) Accelerate and the Trainer wrap the
# model in it. So all should give our weights. `train_data_parallel` runs each with the same rows, and compares the
# final weights with two runs of one process. One of these takes all 8 rows at once; the other adds up two micro-batches
# of 4, as two ranks do.

# %%
labels = {
    "by hand, naive": "naive",
    "by hand, in buckets": "bucketed",
    "DDP": "ddp",
    "Accelerate": "accelerate",
    "Trainer": "trainer",
}
short = {"steps": min(10, max_steps), "seed": seed, "source": source}
equal = {k: ranks(train_data_parallel, kind=v, **short)[0] for k, v in labels.items()}
off = {"kind": "trainer", "average_tokens": False}
odd = ranks(train_data_parallel, **off, **short)[0]
teach.show(figures.equality(equal | {"Trainer, own targets": odd}))
for name, result in equal.items():
    print(f"{name:20} {result['world_size']} ranks, {result['wrapper']}")

# %%
real = all(result["world_size"] == 2 for result in equal.values())
bitwise = max(result["from_micro_batches"] for result in equal.values())
close = max(result["from_alone"] for result in equal.values())
teach.claim("every run had two ranks that met", real)
teach.claim("as two micro-batches, bit for bit", bitwise == 0, when=on_cpu)
teach.claim("as one batch of 8, within 1e-4", close < 1e-4)
teach.claim("own targets: over 100 times farther", odd["from_alone"] > 100 * close)

# %% [markdown]
# Why are some equal to the bit and others not? Floating point addition depends on the order: $(a+b)+c$ is not $a+(b+c)$
# in the last digit. But $a+b$ *is* $b+a$. Two ranks compute the same two gradients as two micro-batches, and add two
# numbers; doubling and halving are exact. One batch of 8 rows adds up inside its matrix products in another order:
# hence differences of a few millionths in the weights. With three ranks or more the order inside the all-reduce counts
# as well.
#
# The last row is no rounding. `average_tokens_across_devices=False` lets each rank divide by its own targets. The
# average is then a mean of means, and a target on the rank with short rows weighs more. The default is True; loops
# that take `model(...).loss` and DDP's average have the same fault.
#
# With accumulation:

# %%
parts = short | {"accumulation": 2}
more = {k: ranks(train_data_parallel, kind=v, **parts)[0] for k, v in labels.items()}
apart = max(result["from_alone"] for result in more.values())
teach.claim("accumulation 2, all five ways: within 1e-4 of one process", apart < 1e-4)
first = more["by hand, naive"]["hash"]
same = all(result["hash"] == first for result in more.values())
teach.claim("all five agree, bit for bit", same, when=on_cpu)

# %% [markdown]
# ## 7 · Who reads which rows?
#
# So far `share` dealt the rows out. In a training program that is a **sampler**: it gives a rank its row numbers for
# an epoch. torch's is `DistributedSampler`, ours `ShardedSampler`; Accelerate and the Trainer deal out batches of an
# ordinary loader instead. Eleven rows on three ranks:

# %%
from torch.utils.data import DistributedSampler

from course_utils.parallel.sampler import ShardedSampler


def rows_of_all(count, size, **options):
    return [list(ShardedSampler(count, rank, size, **options)) for rank in range(size)]


ways = {"filled up (default)": {}, "drop_last=True": {"drop_last": True}}
dealt = {name: rows_of_all(11, 3, **options) for name, options in ways.items()}
teach.show(figures.dealt(dealt))

# %%
for count, size in ((11, 3), (16, 4), (2, 5)):
    theirs = [list(DistributedSampler(range(count), size, r)) for r in range(size)]
    same = theirs == rows_of_all(count, size)
    teach.claim(f"{count} rows on {size} ranks: dealt as torch does", same)

# %% [markdown]
# All ranks must make equally many steps, or one waits for an average that nobody else computes. So the end is filled
# up, which reads rows twice, or cut off. (*Deeper: `Join`* is a third way.)
#
# The order is drawn from `seed + epoch`. `set_epoch` says which epoch it is:

# %%
sampler = DistributedSampler(range(1000), num_replicas=2, rank=0)
forgotten = [list(sampler) for epoch in range(4)]
orders = []
for epoch in range(4):
    sampler.set_epoch(epoch)
    orders.append(list(sampler))
teach.claim("forgotten: four times the same order", forgotten == [forgotten[0]] * 4)
teach.claim("set_epoch: four different orders", len(set(map(tuple, orders))) == 4)

# %% [markdown]
# The same batches come back in each epoch, and each row stays with its rank. Nothing fails: look at the row numbers.
#
# ### Exercise 11.4 · write
#
# Without the two samplers above: the row numbers of `rank` in `epoch`, as a list. Shuffled, every row at least once,
# equally many on each rank; rows that come twice only where the ranks do not divide `count`.


# %%
def rows_of_rank(count, rank, size, seed, epoch):
    return ...


# %%
teach.check("11.4", rows_of_rank)

# %% [markdown]
# ## 8 · What goes wrong
#
# ### Every rank starts with a model of its own
#
# If each rank draws its weights from a seed of its own, and rank 0's are not sent to all, the ranks average the
# gradients of *different* models. With the equal start that `AverageInBuckets` and DDP make, the other ranks' seeds do
# not matter:

# %%
steps = min(30, max_steps)
task = {"steps": steps, "source": source}
ways = {
    "right": {"same": True, "equal_start": True},
    "repaired": {"same": False, "equal_start": True},
    "wrong": {"same": False, "equal_start": False},
}
go, seeds = on_ranks.train_from_seeds, range(seed, seed + 3)
found = {k: [ranks(go, **v, **task, seed=s)[0] for s in seeds] for k, v in ways.items()}
right, wrong = found["right"], found["wrong"]
worse = [w["loss"] - r["loss"] for w, r in zip(wrong, right, strict=True)]
curves = {"own weights": wrong[0]["apart"], "rank 0's": right[0]["apart"]}
teach.show(figures.seeds(curves, worse))
hashes = {name: [r["hash"] for r in results] for name, results in found.items()}
same = hashes["right"] == hashes["repaired"]
teach.claim("equal start: other seeds, the same bits", same, when=on_cpu)
wide = min(w["apart"][-1] for w in wrong)
teach.claim("without it the ranks are still over 0.01 apart", wide > 0.01)
full = max_steps >= 30
teach.claim("and the loss is higher in 3 of 3 seeds", min(worse) > 0, when=full)
falls = all(w["loss"] < w["before"] for w in wrong)
teach.claim("it falls all the same: nothing looks wrong", falls, when=full)

# %% [markdown]
# Only weight decay pulls the ranks together, a little: they add nearly the same steps to different starts.
#
# ### A score counts rows twice
#
# Eleven rows on two ranks, filled up to twelve. Every rank sums over its rows, then the sums are added:


# %%
def sums(count, which):
    link = join_group()
    filled = list(ShardedSampler(count, link.rank, link.size))
    own = range(link.rank, count, link.size)
    rows = {"filled up": filled, "all rows": range(count), "own rows": own}[which]
    scores = torch.tensor([float(row**2) for row in rows])  # some score of a row
    pair = torch.tensor([scores.sum(), float(len(scores))], device=link.device)
    total, seen = link.all_reduce(pair).tolist()
    return {"rows": int(seen), "mean": total / seen}


for which in ("filled up", "all rows", "own rows"):
    score = ranks(sums, count=11, which=which)[0]
    print(f"{which:10} {score['rows']:3} rows, mean {score['mean']:.2f}")
truth = sum(row**2 for row in range(11)) / 11
teach.claim("own rows, no filling: the true mean", abs(score["mean"] - truth) < 1e-4)

# %% [markdown]
# If all ranks evaluate everything, the mean is right and every count is doubled. A score has no backward that others
# wait for: deal rows out unevenly, sum, count, divide once. Use the unwrapped model: DDP's forward may exchange
# buffers. `gather_for_metrics` (lesson 08) drops repeats instead.
#
# ### Exercise 11.5 · debug
#
# This loop has three faults. Each rank's model was drawn from another seed. `batches(epoch)` gives this rank's rows of
# that epoch, equally many on each. `broadcast(link, parameter.data)` is section 3's. Copy it and repair it; learning
# rate and clipping threshold stay.
#
# ```python
# def train(link, model, batches, epochs):
#     optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
#     for epoch in range(epochs):
#         for x, y in batches(0):
#             nn.functional.cross_entropy(model(x), y).backward()
#             nn.utils.clip_grad_norm_(model.parameters(), 0.3)
#             for parameter in model.parameters():
#                 link.all_reduce(parameter.grad)
#                 parameter.grad /= link.size
#             optimizer.step()
#             optimizer.zero_grad()
#     return model
# ```

# %%
from torch import nn

from course_utils.parallel.collectives import broadcast  # noqa: F401 - for you


def train(link, model, batches, epochs):
    """The repaired copy; returns what the copy above returns."""
    return ...


# %%
teach.check("11.5", train)

# %% [markdown]
# ### What else, and how it is found
#
# Where ranks hang, the fault is often not where the stack says. It is where the ranks last did different things:
# `if rank == 0` around a collective, an empty batch on one rank, another number of batches.
#
# | symptom | look for | check that finds it |
# |---|---|---|
# | ranks differ | no equal start, optimizer steps before the average | compare weights after ten steps |
# | not as one process | a mean of means, clipping before the average | compare with one process on the same rows |
# | same batches each epoch | `set_epoch` | print row numbers of two epochs |
# | more rows than there are | filling, all ranks evaluate all | compare the count with the data set |
# | a hang | different collectives | time-out, `monitored_barrier` (gloo only), all stacks |
# | EADDRINUSE | another run on this port | another `--master-port`, or `--standalone` |
#
# ## 9 · All of it in one step
#
# ### Exercise 11.6 · write
#
# One data parallel step. `micro_batches` is this rank's window, pairs `(x, y)`; labels of -100 are no targets.
# `model(x)` gives logits (rows, classes), the loss is cross entropy, the models begin equal. Every rank must end with
# the weights of one process after a step on the mean over all targets, and return that loss, a number. Gradients travel
# once a step. Every window has a target, every parameter a gradient. No wrapper: you have `link.all_reduce`.


# %%
def train_step(link, model, optimizer, micro_batches):
    return ...


# %%
teach.check("11.6", train_step)

# %% [markdown]
# ## 10 · Start it
#
# A program that calls `join_group`, or makes an `Accelerator` or a `Trainer`, is started like this. `--standalone`
# picks a free port:
#
# ```bash
# torchrun --standalone --nproc-per-node 2 train.py
# ```
#
# On several nodes the same line runs on each; they meet at one address, a **rendezvous**:
#
# ```bash
# torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
#     --rdzv-endpoint first-node:29500 --rdzv-id my-job train.py
# ```
#
# `accelerate launch` sets the same variables. On a CPU, Accelerate and the Trainer must be told that the CPU is meant
# (`ACCELERATE_USE_CPU=true`, `use_cpu=True`), or each rank trains alone (lesson 08). This ran on Linux;
# macOS, untried, skips nothing. Windows outside WSL has no `kill -9` and skips the sections on restarts, nodes and
# hangs.

# %% [markdown]
# ## 11 · What the model does now
#
# What two ranks trained, in this one process. Loss per token of sentences that it has not seen, before and after:

# %%
from course_utils.lessons.lesson_11 import own_rows

shown = own_sentences()[2:7]
before = own_rows.losses(reference.new_model(seed), shown, source)
after = own_rows.losses(own_rows.load_trained(seed, saved), shown, source)
for sentence, old, new in zip(shown, before, after, strict=True):
    print(f"{old:.1f} -> {new:.1f}  {sentence[:62]}")
better = sum(new < old for old, new in zip(before, after, strict=True))
trained_on = set(map(tuple, reference.rows(source)))
fresh = trained_on.isdisjoint(map(tuple, reference.encode(shown, source)))
teach.claim("none of the five is a training row", fresh)
teach.claim("lower for all five", better == 5, when=max_steps >= 60)

# %% [markdown]
# ## Deeper: what an all-reduce costs
#
# Two ranks on this machine, over its network interface. Small tensors cost the same whatever their size: the price of
# a message (latency). Large ones cost their bytes (bandwidth). That is why buckets help.

# %% tags=["nbval-ignore-output"]
sizes = [10, 100, 1000, 10_000, 100_000, 1_000_000]
times = ranks(on_ranks.all_reduce_times, sizes=sizes)[0]
teach.show(figures.all_reduce_times(sizes, times))
growth = times["torch"][-1] / times["torch"][0]
teach.claim("100,000 times the bytes, under 1,000 times the time", growth < 1_000)
small = times["torch"][2] / times["torch"][0]
teach.claim("100 times the bytes of a small one: under 10 times the time", small < 10)

# %% [markdown]
# The times of small tensors jump from run to run, those of the ring by hand most: do not read single dips, or which of
# the two is ahead.

# %% [markdown]
# ## Deeper: the overlap in a trace
#
# `torch.profiler` records every operation of all threads. Here it watched a backward pass of section 5's wider model on
# rank 0. A tick is a gradient that is complete, a triangle a call of all-reduce; below are gloo's threads at work. The
# claims are about the order, which the program fixes, not about times:

# %% tags=["nbval-ignore-output"]
three = ("naive", "bucketed", "ddp")
seen = {kind: ranks(on_ranks.traced, kind=kind)[0] for kind in three}
teach.show(figures.traces(seen))
first = {kind: run["calls"][0] for kind, run in seen.items()}
last = {kind: run["gradients"][-1] for kind, run in seen.items()}
waits = first["naive"] > last["naive"]
teach.claim("naive: no all-reduce before the last gradient", waits)
early = all(first[kind] < last[kind] for kind in ("bucketed", "ddp"))
teach.claim("in buckets and in DDP the first comes before it", early)

# %% [markdown]
# ## Deeper: `Join`, when ranks have different numbers of batches
#
# Rank 0 has three batches, rank 1 two. In plain DDP rank 0's third backward waits until the time-out. Inside `Join` a
# rank that has finished answers the others' all-reduces with zeros. DDP goes on dividing by the ranks that began, so
# each row keeps its weight (`divide_by_initial_world_size=False`: by those that still work). At the end the last one to
# finish sends its weights to all. Here each rank's own gradient of the bias is 2, the rows of its batch:


# %%
def uneven(joined, seconds=2):
    from contextlib import nullcontext

    from torch.distributed.algorithms.join import Join

    link = join_group().with_timeout(seconds)
    torch.manual_seed(0)
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(4, 1), process_group=link.group)
    optimizer, averages = torch.optim.SGD(ddp.parameters(), lr=0.1), []
    try:
        with Join([ddp]) if joined else nullcontext():
            for _ in range(3 - link.rank):
                ddp(torch.ones(2, 4)).sum().backward()
                averages.append(ddp.module.bias.grad.item())
                optimizer.step()
                optimizer.zero_grad()
    except RuntimeError:
        return {"averages": averages, "timed out": True}
    weights = reference.flat_weights(ddp.module).tolist()
    return {"averages": averages, "timed out": False, "weights": weights}


if on_cpu:  # NCCL ends the process at a time-out, instead of raising
    plain, joined = (ranks(uneven, joined=joined) for joined in (False, True))
    teach.claim("plain DDP: rank 0 waits in vain", plain[0]["timed out"])
    for number, rank in enumerate(joined):
        print(f"with Join, rank {number}: averaged bias gradients", rank["averages"])
    teach.claim("Join: nobody waits", not any(rank["timed out"] for rank in joined))
    halved = joined[0]["averages"] == [2.0, 2.0, 1.0]
    teach.claim("rank 0's third gradient is divided by two ranks", halved)
    same = joined[0]["weights"] == joined[1]["weights"]
    teach.claim("both end with the same weights, bit for bit", same)

# %% [markdown]
# `Join` keeps every row and repeats none. Its price is one more small all-reduce in each step, which asks who still
# works. Accelerate has it as `accelerator.join_uneven_inputs`.

# %% [markdown]
# ## Deeper: a killed rank is started again
#
# `restartable.py` trains a toy model on two ranks and saves lesson 01's checkpoint every second step. Before step 6
# rank 1 kills itself, as `kill -9` would. torchrun notices, ends rank 0, and starts both again (`--max-restarts 1`).
# They read the newest complete checkpoint, that of step 4. `life` counts restarts: 1 is the second life.

# %%
from course_utils.lessons.lesson_11 import launched_runs, restartable

whole = ranks(restartable.train, folder=f"{scratch.name}/whole", steps=8)
if launched_runs.CAN_KILL:
    again = launched_runs.restarted(f"{scratch.name}/killed", steps=8, kill_at=6)
    for rank in again:
        print({name: rank[name] for name in ("world_size", "life", "begun_at")})
    second_life = all(rank["life"] == 1 and rank["begun_at"] == 4 for rank in again)
    teach.claim("both ranks are in their second life, from step 4", second_life)
    same = all(rank["weights"] == whole[0]["weights"] for rank in again)
    teach.claim("it ends with the uninterrupted run's weights, bit for bit", same)

# %% [markdown]
# Two settings were needed. `--rdzv-backend c10d` lets the ranks meet anew. And `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`
# keeps the restarted ranks from reading the dead ones' addresses: without it, our gloo ranks hung after a restart (our
# observation; pytorch issue 135712 reports that NCCL fails to start). Restarting is torchrun's part; going on where the
# run was is yours: a checkpoint is written under another name and renamed (lesson 01), and nobody goes on before it is
# on the disk.

# %% [markdown]
# ## Deeper: two nodes on one machine
#
# More nodes are more of the same: here two torchruns meet at one address, each with one rank. On a cluster the same
# command runs on each machine.

# %%
from course_utils.parallel.nodes import node_options

print(*node_options(nodes=2, processes=1, address="first-node:29500"), sep="\n")
if launched_runs.CAN_KILL:
    nodes = launched_runs.on_two_nodes(f"{scratch.name}/nodes", steps=8)
    for rank in nodes:
        print({name: rank[name] for name in ("world_size", "node", "local_rank")})
    teach.claim("two nodes, one rank each", [rank["node"] for rank in nodes] == [0, 1])
    same = all(rank["weights"] == whole[0]["weights"] for rank in nodes)
    teach.claim("the weights of one node, bit for bit", same)

# %% [markdown]
# ## Deeper: ranks that do not fit together
#
# A tensor of another shape, a rank that is elsewhere, a port that is taken. The group's time-out is one second here.
# `TCPStore` is the table behind rank 0's port through which ranks find each other. `roll_call` is torch's
# `monitored_barrier`: a line that all must reach in time, and a message about who did not.


# %%
def misfits(what):
    import time

    link = join_group().with_timeout(1)
    try:
        if what == "other shape":
            return link.all_reduce(torch.ones(3 + link.rank)).tolist()
        if what == "not there" and link.rank == 1:
            time.sleep(2)  # busy with something else
            return "did not come"
        link.roll_call(seconds=1)
    except RuntimeError as error:
        return str(error).splitlines()[0]


if on_cpu:  # NCCL ends the process at a time-out, instead of raising
    mixed, late = (ranks(misfits, what=what) for what in ("other shape", "not there"))
    print("another shape: rank 0 has", mixed[0])
    print("not there:    ", late[0])
    teach.claim("another shape: rank 1 times out", "Timed out" in mixed[1])
    teach.claim("the roll call names rank 1", "Rank 1 failed to pass" in late[0])

# %%
from course_utils.parallel.processes import free_ports

(port,) = free_ports(1)
options = {"world_size": 2, "is_master": True, "wait_for_workers": False}
first = torch.distributed.TCPStore("127.0.0.1", port, **options)
try:
    second = torch.distributed.TCPStore("127.0.0.1", port, **options)
    refused = ""
except RuntimeError as error:
    refused = str(error)
teach.claim("a taken port is refused: EADDRINUSE", "EADDRINUSE" in refused)

# %% [markdown]
# With the other shape rank 1 hangs at the cause. Rank 0 *has a result* and goes on: it would hang one exchange later.

# %% [markdown]
# ## Deeper: where does a rank hang?
#
# In `hanging.py`, on CPU ranks, rank 1 has taken another branch and never joins the all-reduce. `run_launched` gives it
# some seconds, then lets every rank write down where it is, and ends all. The functions on each stack, innermost first:

# %% tags=["nbval-ignore-output"]
if launched_runs.CAN_KILL:
    stacks = launched_runs.stacks_of_a_hang(timeout=25)
    for rank, stack in stacks.items():
        print(f"rank {rank}:", " < ".join(stack[:3]))
    teach.claim("rank 0 is in all_reduce", "all_reduce" in stacks[0])
    teach.claim("rank 1 is where nobody expected it", "save_the_model" in stacks[1])

# %% [markdown]
# Both stacks are needed: rank 0 only says that it waits. (NCCL's all-reduce is asynchronous: there the stack stands
# where the program next waits for the GPU.) On your own cluster, `py-spy dump --pid` does the same to a running
# process.

# %%
ranks.close()
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# - Ranks exchange tensors in collectives. All-reduce = reduce-scatter + all-gather; in a ring each rank sends
#   2(N-1)/N of the tensor.
# - Data parallel: equal start, own rows, averaged gradients, the same step. Divide by the targets of all ranks.
# - Buckets and hooks send gradients during backward; `no_sync` holds them back until the window's last micro-batch.
# - By hand, DDP, Accelerate and the Trainer gave the same bits on two ranks; one process differs by the order of sums.
# - `set_epoch`; in training fill up or drop rows, in a score do neither.
# - A hang is two ranks that do different things. Look at all stacks.
#
# ## Quiz

# %% [markdown]
# **1.** Why is DDP's traffic independent of the batch size?
#
# <details><summary>Answer</summary>
#
# Gradients travel, and there are as many numbers in them as the model has weights, whatever the batch. A larger batch
# means more computing per message, so the exchange is easier to hide.
#
# </details>

# %% [markdown]
# **2.** Eight ranks instead of two: how much more does each rank send with a ring?
#
# <details><summary>Answer</summary>
#
# 2·7/8 = 1.75 times the gradients instead of 2·1/2 = once. It never gets beyond twice. But there are 14 steps instead
# of 2, which counts for small tensors.
#
# </details>

# %% [markdown]
# **3.** Rank 3 of 8 runs out of memory in step 100 and raises. What do the others do?
#
# <details><summary>Answer</summary>
#
# They wait for the all-reduce of step 100 until the time-out, or until the launcher ends them. On CPU ranks their
# stacks end in that all-reduce; with NCCL, wherever they next wait for the GPU. The cause is in rank 3's log.
#
# </details>

# %% [markdown]
# **Next:** [lesson 12](12_sharding.ipynb) keeps the averaging and stops storing everything on every rank: sharding.
