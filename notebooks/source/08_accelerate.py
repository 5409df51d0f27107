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
# # 08 · Accelerate: the loop again, on any hardware
#
# Lesson 01's loop runs in one process. Training on two GPUs, or on sixty-four, means as many processes, each with its
# own copy of the program. `accelerate` turns the loop you know into one that runs on any number of them. A handful of
# lines change. This lesson shows what each does, and what happens, without any error, when one is missing.
#
# **You will be able to**
#
# - port a training loop to several processes by changing a few lines, and show that the result is the same;
# - say what `prepare` does to a model, an optimizer, a scheduler and a data loader, and who gets which rows;
# - accumulate, clip, evaluate, save and resume on several processes, exactly;
# - find a forgotten `prepare` by what it does to the run;
# - start the program with a real launcher and prove that it was distributed.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (the loop), 02 (batches) and 03 (mixed precision, trackers).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 100  # optimizer steps of the main run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Where we are going
#
# A **rank** is one process of a run and its number, from 0 on. The number of ranks is the **world size**. Every rank
# executes the same program, from the first line to the last. What makes them one run is what they exchange. In **data
# parallel** training each rank has a full copy of the model and computes the gradient of its own rows. The ranks then
# average their gradients (an *all-reduce*), so all take the same step and stay equal.

# %%
from course_utils.lessons.lesson_08 import figures, task

teach.show(figures.flow())

# %% [markdown]
# On a GPU machine each rank has a GPU, and NCCL carries the gradients. Here the ranks are two processes on the CPU and
# **gloo** carries them. The code is the same.
#
# This was run on Linux; a Mac is untried. On Windows use WSL: section 8 needs a signal (SIGUSR1) that Windows lacks.
#
# The task is lesson 01's: which library does a sentence come from? Rows look like these sentences of this project's
# own; at the end the trained model says what they remind it of.

# %%
import torch

from course_utils.data import load_classification
from course_utils.data.own_text import own_sentences

torch.set_num_threads(1)  # the model is tiny: more threads would only wait
names = load_classification(source)["train"].features["label"].names
for sentence in own_sentences()[:3]:
    print("-", sentence)
batch = task.collator(source)(task.load_rows(source)[:4])
print({name: tuple(values.shape) for name, values in batch.items()})

# %% [markdown]
# ### The loop you know
#
# One layer of lesson 01's encoder, so that everything here takes seconds, and no dropout: random masks would differ
# between one process and two. `order` is the shuffling's own generator.

# %%
from torch import nn
from torch.utils.data import DataLoader

from course_utils.training.schedules import make_scheduler


def train_by_hand(source, max_steps, batch_size, seed):
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = make_scheduler(optimizer, "linear", max_steps // 10, max_steps)
    order, collate = torch.Generator().manual_seed(seed), task.collator(source)
    rows = task.load_rows(source)
    loader = DataLoader(rows, batch_size, True, generator=order, collate_fn=collate)

    losses = []
    for _, batch in zip(range(max_steps), loader, strict=False):
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "weights": task.some_weights(model)}


one = train_by_hand(source, max_steps, batch_size=32, seed=seed)

# %% [markdown]
# ### The same loop with Accelerate
#
# `Accelerator()` finds the other ranks through environment variables that a launcher has set. `prepare` wraps what has
# to know about several processes. `accelerator.backward` and `clip_grad_norm_` replace two calls; `reduce` averages the
# ranks' losses for the log. Section 4 explains `step_scheduler_with_optimizer=False`.
#
# Two helpers are this course's. `expect_ranks` raises when the ranks did not meet, which no launcher tells you: exit
# code 0 proves nothing. Every distributed run of this lesson calls it. `task.some_weights` returns every 101st weight
# of a model, enough to compare two of them.

# %%
from accelerate import Accelerator

from course_utils.parallel.accelerated import expect_ranks


def train_with_accelerate(source, max_steps, batch_size, seed, save_to=None):
    accelerator = Accelerator(step_scheduler_with_optimizer=False)  # NEW
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = make_scheduler(optimizer, "linear", max_steps // 10, max_steps)
    order, collate = torch.Generator().manual_seed(seed), task.collator(source)
    rows = task.load_rows(source)
    loader = DataLoader(rows, batch_size, True, generator=order, collate_fn=collate)
    prepared = accelerator.prepare(model, optimizer, scheduler, loader)  # NEW
    model, optimizer, scheduler, loader = prepared  # NEW
    ran = expect_ranks(accelerator, 2, model)  # NEW

    losses = []
    for _, batch in zip(range(max_steps), loader, strict=False):
        loss = model(**batch).loss
        accelerator.backward(loss)  # NEW
        accelerator.clip_grad_norm_(model.parameters(), 1.0)  # NEW
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())  # NEW
    if save_to:
        accelerator.save_model(model, save_to)  # NEW
    return {"losses": losses, "weights": task.some_weights(model), "ran": ran}


# %% [markdown]
# What changed, line by line:

# %%
teach.show(figures.difference(train_by_hand, train_with_accelerate))

# %% [markdown]
# ### Run it on two ranks
#
# A notebook's kernel is one process, and should stay one. `shared_ranks(2)` starts two more beside it. They wait;
# `ranks(function, ...)` runs a function on both and returns what each returned. You can edit any function below and
# call it again at once. If one hangs, both are ended and the kernel lives.
#
# 16 rows on each of two ranks are the 32 rows of the run by hand, so the runs should agree.

# %%
from tempfile import TemporaryDirectory

from course_utils.parallel import shared_ranks

scratch = TemporaryDirectory()
saved = f"{scratch.name}/model"
ranks = shared_ranks(2)
run = {"source": source, "max_steps": max_steps, "seed": seed}
two = ranks(train_with_accelerate, **run, batch_size=16, save_to=saved)
for name, value in two[0]["ran"].items():
    print(f"{name:17} {value}")

# %% [markdown]
# And where the ranks did not meet? This kernel is alone:

# %%
from course_utils.parallel.accelerated import WrongRanks

try:
    expect_ranks(Accelerator(), 2)
except WrongRanks as error:
    print(error)

# %% [markdown]
# Do one and two processes agree? `task.farthest` is the largest difference between two rows of numbers.

# %%
apart = task.farthest(one["losses"], two[0]["losses"])
between = task.farthest(two[0]["weights"], two[1]["weights"])
to_one = task.farthest(one["weights"], two[0]["weights"])
teach.claim("both ranks end with equal weights (the compared ones)", between == 0)
teach.claim("losses of one and two processes agree within 1e-4", apart < 1e-4)
teach.claim("their final weights agree within 1e-3", to_one < 1e-3)

# %%
teach.show(figures.two_runs(one["losses"], two[0]["losses"]))

# %% [markdown]
# They agree, but not bit for bit. Each rank sums over its 16 rows, and the two results are averaged. That is another
# order of additions than over 32 rows, and in float32 the order shows in the seventh digit. AdamW can enlarge the
# difference: where a gradient is nearly zero, its ratio $m/\sqrt v$ turns a last digit into a step of another size.
#
# ## 2 · What `prepare` does
#
# `prepare` looks at the type of each argument and wraps the ones it knows. Anything else comes back untouched, without
# a word. Here on two ranks, with a plain list of batches among the arguments:


# %%
def wrapped_types(source, seed):
    accelerator = Accelerator()
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = make_scheduler(optimizer, "linear", 0, 10)
    loader = DataLoader(range(8), 2)
    given = [model, optimizer, scheduler, loader, [[0, 1], [2, 3]]]
    before = [type(thing).__name__ for thing in given]
    got = accelerator.prepare(*given)
    expect_ranks(accelerator, 2, got[0])
    return list(zip(before, [type(thing).__name__ for thing in got], strict=True))


types = ranks(wrapped_types, source=source, seed=seed)[0]
teach.show(figures.wrapped(types))
teach.claim("an unknown type comes back unchanged", types[-1] == ["list", "list"])

# %% [markdown]
# - The **model** moves to the rank's device and into `DistributedDataParallel` (DDP). It starts from rank 0's weights
#   and averages the gradients during `backward`. In one process the model stays what it was.
# - The **optimizer** learns when *not* to step: in the middle of an accumulation window, or after an fp16 overflow.
# - The **scheduler** does the same, and multiplies its steps (section 4).
# - The **loader** gives this rank its share of the batches, on its device.
# - A list, or lesson 01's `ShuffledBatches`, is none of these. It stays, and every rank gets all of its rows.
#
# ### Who gets which rows?
#
# The loader deals out whole batches in turn. Eleven rows on two ranks, in three settings:


# %%
def rows_of_rank(count, batch_size, **dealing):
    from accelerate import DataLoaderConfiguration

    config = DataLoaderConfiguration(**dealing)
    accelerator = Accelerator(dataloader_config=config)
    expect_ranks(accelerator, 2)
    loader = accelerator.prepare(DataLoader(range(count), batch_size))
    return [batch.tolist() for batch in loader]


ways = {
    "batches of 2": {"batch_size": 2},
    "batches of 4, split": {"batch_size": 4, "split_batches": True},
    "batches of 2, uneven": {"batch_size": 2, "even_batches": False},
}
dealt = {name: ranks(rows_of_rank, count=11, **some) for name, some in ways.items()}
teach.show(figures.who_gets_what(dealt, 11))
teach.claim("by default row 0 is dealt twice", dealt["batches of 2"][1][-1] == [10, 0])

# %% [markdown]
# By default `batch_size` is per rank, so the **effective batch** is batch size x ranks x accumulation. With
# `split_batches=True` `batch_size` is for all ranks together, and each gets a slice.
#
# Ranks must take the same number of steps: the average of gradients waits for all. So an epoch's end is filled up
# with rows of its beginning (`even_batches=True`). In training a few rows count twice. In evaluation that makes the
# score wrong, and section 6 repairs it. `even_batches=False` gives each row once; then a rank's last batch can be
# shorter, as here, or missing.
#
# ### Exercise 08.1 · predict
#
# 22 rows, `batch_size=3`, default settings, **three** ranks. How many batches does each rank get in one epoch, and
# which rows are seen twice?

# %%
prediction = ...  # {"batches": a number, "twice": [row numbers]}

# %%
teach.check("08.1", prediction)

# %% [markdown]
# ## 3 · What goes wrong: something was not prepared
#
# Model, optimizer, scheduler, loader: each can be forgotten, and nothing raises. The function below trains with
# accumulation and leaves one out. `accelerator.accumulate(model)` opens a micro-batch (section 5). Inside it, a
# prepared optimizer and scheduler skip their step until the window is full. A prepared scheduler then takes one step
# per rank (section 4), so its schedule is built for steps x ranks, as in Accelerate's examples.


# %%
def train_without(forgotten, source, steps, seed, accumulation=4):
    accelerator = Accelerator(gradient_accumulation_steps=accumulation)
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    length = steps * accelerator.num_processes
    things = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": make_scheduler(optimizer, "linear", 0, length),
        "loader": task.new_loader(source, 8, seed, numbered=True),
    }
    for name in things.keys() - {forgotten}:
        things[name] = accelerator.prepare(things[name])
    model, optimizer, scheduler, loader = things.values()
    expect_ranks(accelerator, 2, None if forgotten == "model" else model)
    seen, rates = [], []
    for _, batch in zip(range(accumulation * steps), loader, strict=False):
        seen += batch.pop("number").tolist()
        rates.append(optimizer.param_groups[0]["lr"])
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return {
        "seen": seen,
        "rates": rates,
        "weights": task.some_weights(model),
        "loss": task.validation_loss(model, source),
    }


# %% [markdown]
# Three seeds for each variant:


# %%
def three_seeds(function, **arguments):
    return [ranks(function, seed=seed + i, **arguments) for i in range(3)]


steps = max(4, min(12, max_steps // 4))
run = {"source": source, "steps": steps}
variants = ["nothing", "model", "optimizer", "scheduler", "loader"]
forgot = {name: three_seeds(train_without, forgotten=name, **run) for name in variants}
teach.show(figures.forgotten(forgot))

# %% [markdown]
# What was forgotten, and what it did:
#
# - **Loader:** both ranks got the same rows. Nothing in the log looks wrong, but the run saw half of the data, and its
#   second process was of no use: the average of two equal gradients is the gradient of one.
# - **Optimizer:** it stepped at every micro-batch, before the gradients were averaged. The ranks drifted apart: two
#   models, of which one is saved.
# - **Scheduler:** it took four steps, one a micro-batch, where two, one a rank, were planned. The rate was zero after
#   half of the run.
# - **Model:** two separate runs. Nothing was ever averaged.
#
# The right panel compares each variant with the complete run of the same seed: the mean of the three differences and
# its 95 % interval, by `paired_interval` as in lesson 06. Two intervals lie above zero, model and scheduler; the other
# two hold zero, so three seeds do not decide. In practice you have no complete run to compare with. The other panels'
# symptoms need none.

# %%
from course_utils.training.paired import paired_interval

both, drift, spent = {}, {}, {}
for name in variants:
    first, second = forgot[name][0]  # the first seed's two ranks
    both[name] = len(set(first["seen"]) & set(second["seen"]))
    drift[name] = task.farthest(first["weights"], second["weights"])
    spent[name] = first["rates"].count(0) / len(first["rates"])
teach.claim("all prepared: no row on both ranks", both["nothing"] == 0)
teach.claim("all prepared: equal weights, bit for bit", drift["nothing"] == 0)
teach.claim("loader forgotten: every row on both ranks", both["loader"] == 32 * steps)
teach.claim("optimizer forgotten: the ranks drift apart", drift["optimizer"] > 0)
teach.claim("model forgotten: the ranks drift apart", drift["model"] > 0)
teach.claim("scheduler forgotten: rate 0 for a third", spent["scheduler"] > 1 / 3)
enough = max_steps >= 100 and source == "local"
for name in ("model", "scheduler"):
    above = min(figures.losses_above(forgot, name))
    teach.claim(f"{name} forgotten: a higher loss, three times", above > 0, when=enough)

# %% [markdown]
# A forgotten optimizer is found late. In float32 and without accumulation it makes no difference:

# %%
once = {"accumulation": 1, "seed": seed, **run}
whole = ranks(train_without, forgotten="nothing", **once)
without = ranks(train_without, forgotten="optimizer", **once)
same = all(a["weights"] == b["weights"] for a, b in zip(whole, without, strict=True))
teach.claim("without accumulation, preparing the optimizer changes nothing", same)

# %% [markdown]
# | check | finds |
# |---|---|
# | the rows of a first step on each rank are different ones | the loader |
# | after ten steps the weights of all ranks are equal, bit for bit | model, optimizer |
# | at the end the learning rate is what the schedule says | the scheduler |
#
# ### Exercise 08.2 · debug
#
# One epoch of SGD over `rows`, a list of pairs `(x, y)`. It runs, on two ranks as well, and something is wrong. Copy it
# into the cell and repair it. The checker runs it on two real ranks.
#
# ```python
# def fine_tune(accelerator, model, rows):
#     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
#     loader = DataLoader(rows, batch_size=4)
#     model, optimizer = accelerator.prepare(model, optimizer)
#     accelerator.prepare(loader)
#     for x, y in loader:
#         loss = nn.functional.cross_entropy(model(x), y)
#         accelerator.backward(loss)
#         optimizer.step()
#         optimizer.zero_grad()
#     return model
# ```


# %%
def fine_tune(accelerator, model, rows):
    """The trained model."""
    return ...


# %%
teach.check("08.2", fine_tune)

# %% [markdown]
# ## 4 · The scheduler steps as often as there are ranks
#
# A prepared scheduler takes `num_processes` steps at every call. The idea: you planned the schedule for one process,
# where an epoch has `len(loader)` steps; on two ranks an epoch takes half as many, so each must count twice. If you
# count in *optimizer steps*, as this course does, the rate is zero halfway. Three ways to write it:


# %%
def rates(length, steps, split=False, **settings):
    from accelerate import DataLoaderConfiguration

    dealing = DataLoaderConfiguration(split_batches=split)
    accelerator = Accelerator(dataloader_config=dealing, **settings)
    expect_ranks(accelerator, 2)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = make_scheduler(optimizer, "linear", length // 10, length)
    optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


name = "step_scheduler_with_optimizer=False"
once = {"step_scheduler_with_optimizer": False}
curves = {
    "planned": task.linear_rates(100),
    "length 100": ranks(rates, length=100, steps=100)[0],
    "length 100 x ranks": ranks(rates, length=200, steps=100)[0],
    name: ranks(rates, length=100, steps=100, **once)[0],
}
teach.show(figures.scheduler_rates(curves))

# %%
end = curves["length 100"].index(0, 1)  # from step 1 on: warm-up begins with rate 0
teach.claim("a schedule of 100 steps on 2 ranks ends at step 50", end == 50)
same = curves[name] == curves["planned"]
teach.claim("counted once per call, it is the one planned", same)

# %% [markdown]
# `step_scheduler_with_optimizer=False` says: one call, one step. Then call it once per optimizer step yourself, as
# lesson 01's loop does. With accumulation that means only when the window is full.
#
# ### Exercise 08.3 · vary
#
# You change the number of ranks and keep the number of optimizer steps. For which length must the schedule be built so
# that it ends with the run? `with_optimizer` is `step_scheduler_with_optimizer`, `split` is `split_batches`.
# `ranks(rates, length=100, steps=100, split=True)[0]` shows what `split_batches=True` does to the rates.


# %%
def schedule_length(optimizer_steps, num_processes, with_optimizer=True, split=False):
    """Steps that make_scheduler is given for a run of optimizer_steps."""
    return ...


# %%
teach.check("08.3", schedule_length)

# %% [markdown]
# ## 5 · Accumulation across ranks
#
# `with accelerator.accumulate(model)` does two things: it tells DDP not to exchange gradients before the last
# micro-batch of a window, and it lets a prepared optimizer and scheduler skip until then. (A scheduler with
# `step_scheduler_with_optimizer=False` skips nothing.) `accelerator.backward` divides the loss by
# `gradient_accumulation_steps`. `accelerator.sync_gradients` says whether the window is full.
#
# So the gradient is a *mean of means*: over the micro-batches of a rank, then over the ranks. Lesson 01 showed what is
# wrong with it: a target in a short micro-batch weighs more. Now ranks differ too. Measured on a masked language model
# whose four micro-batches hold different numbers of targets, two on each rank, against the gradient of all four at
# once:


# %%
def gradient_error(how, source, seed):
    accelerator = Accelerator(gradient_accumulation_steps=2)
    everything = task.masked_batches(source, 4, 8, seed)
    expected = task.gradient_of_all(everything, source, seed)
    model = accelerator.prepare(task.new_masked_lm(source, seed))
    expect_ranks(accelerator, 2, model)
    mine = everything[accelerator.process_index :: accelerator.num_processes]
    own = sum(task.count(batch) for batch in mine)
    targets = accelerator.reduce(torch.tensor(own)).item()  # the sum over the ranks
    for batch in mine:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            if how == "by targets":
                undo = 2 * accelerator.num_processes  # accumulation x ranks
                loss = loss * task.count(batch) / targets * undo
            accelerator.backward(loss)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    error = (found - expected).norm() / expected.norm()
    return {"error": error.item(), "targets": [task.count(b) for b in everything]}


# %%
means = three_seeds(gradient_error, how="mean of means", source=source)
weighted = three_seeds(gradient_error, how="by targets", source=source)
print("targets of the four micro-batches:", means[0][0]["targets"])
off, exact = ([draw[0]["error"] for draw in draws] for draws in (means, weighted))
print("mean of means: relative error", *(f"{value:.0%}" for value in off))
teach.claim("a mean of means is off by over 5% in 3 of 3 draws", min(off) > 0.05)
teach.claim("weighted by targets the error is below 1e-5", max(exact) < 1e-5)

# %% [markdown]
# The line that repairs it undoes two divisions. `backward` divides by `gradient_accumulation_steps`; DDP averages, so
# it divides by the ranks. Multiply by both, divide by the targets of all micro-batches of all ranks, and one target
# weighs as much as any other. For a classifier with full batches each row is one target and the two agree.
#
# ## 6 · Exact scores
#
# Each rank sees its share of the evaluation rows, plus the rows that fill up the end. Four ways to an accuracy on 19
# validation rows, with the model trained above; one process gives the right one.


# %%
def accuracies(count, source, seed, saved):
    accelerator = Accelerator()
    plain = task.load_saved(source, seed, saved)
    model, loader = accelerator.prepare(plain, task.validation_loader(source, count, 4))
    expect_ranks(accelerator, 2, model)
    own, gathered, exact, numbers = [], [], [], []
    for batch in loader:
        number = batch.pop("number")
        with torch.no_grad():
            right = (model(**batch).logits.argmax(-1) == batch["labels"]).float()
        own.append(right)
        gathered.append(accelerator.gather(right))
        exact.append(accelerator.gather_for_metrics(right))
        numbers.append(accelerator.gather(number))
    own, gathered, exact = (torch.cat(part).mean() for part in (own, gathered, exact))
    return {
        "this rank only": own.item(),
        "mean of the ranks": accelerator.reduce(own, "mean").item(),
        "gather": gathered.item(),
        "gather_for_metrics": exact.item(),
        "order": torch.cat(numbers).tolist(),
    }


# %%
run = {"source": source, "seed": seed, "saved": saved}
sizes = (19, 24, 41)
asked = {count: ranks(accuracies, count=count, **run) for count in sizes}
for way in ("this rank only", "mean of the ranks", "gather", "gather_for_metrics"):
    print(f"{way:19}", *(f"{rank[way]:.3f}" for rank in asked[19]))
truth = {n: task.accuracy_of_one_process(source, seed, saved, n) for n in sizes}
exact = [abs(rank["gather_for_metrics"] - truth[n]) for n in sizes for rank in asked[n]]
order = asked[19][0]["order"]
teach.claim("gather_for_metrics is exact for 19, 24 and 41 rows", max(exact) < 1e-6)
teach.claim("gather saw 24 rows instead of 19", len(order) == 24)

# %%
teach.show(figures.gathered(order, 19, 4))

# %% [markdown]
# `gather` puts the ranks' tensors one after the other, repeated rows included. `gather_for_metrics` knows how many rows
# the data set has and cuts the last gather. It is exact under three conditions: the loader was prepared, it is read to
# its end, and every tensor has one entry per row. Logits of different lengths need
# `accelerator.pad_across_processes` first, which fills them up to the same shape.
#
# Do not average the ranks' scores, nor compute F1 on one rank. Gather predictions and labels, then compute once.
#
# ### Exercise 08.4 · write
#
# Macro-F1 (lesson 04) over all rows, each counted once, the same number on every rank. `loader` is prepared and gives
# pairs `(x, y)`; `model(x)` gives logits of three classes. The model has dropout and arrives in training mode; leave it
# so. `macro_f1(predicted, labels, 3)` is given. The checker runs it on two ranks, with sizes that do not divide.


# %%


def score(accelerator, model, loader):
    """Macro-F1 over the rows of all ranks."""
    return ...


# %%
teach.check("08.4", score)

# %% [markdown]
# ## 7 · Save and resume
#
# `accelerator.save_state(folder)` writes everything that was prepared, and the random states of *each* rank. All ranks
# must call it. `load_state` puts it back. The position in the data is yours: `skip_first_batches(loader, n)` leaves out
# the first n batches, per rank, without reading them. Eight steps, and the same eight with a stop after five:


# %%
def train_part(source, seed, begin, end, folder, skip=True):
    accelerator = Accelerator(step_scheduler_with_optimizer=False)
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = make_scheduler(optimizer, "linear", 0, 8)
    loader = task.new_loader(source, 8, seed)
    things = accelerator.prepare(model, optimizer, scheduler, loader)
    model, optimizer, scheduler, loader = things
    expect_ranks(accelerator, 2, model)
    if begin:
        accelerator.load_state(folder)
        if skip:
            loader = accelerator.skip_first_batches(loader, begin)
    for _, batch in zip(range(begin, end), loader, strict=False):
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if end < 8:
        accelerator.save_state(folder)
    return task.some_weights(model)


# %%
from pathlib import Path

part = {"source": source, "seed": seed, "folder": f"{scratch.name}/state"}
whole = ranks(train_part, **part, begin=0, end=8)
ranks(train_part, **part, begin=0, end=5)
print(*sorted(path.name for path in Path(part["folder"]).iterdir()), sep="\n")
resumed = ranks(train_part, **part, begin=5, end=8)
careless = ranks(train_part, **part, begin=5, end=8, skip=False)
teach.claim("5 + 3 steps end like 8, bit for bit, on both ranks", resumed == whole)
teach.claim("without skip_first_batches they do not", careless != whole)

# %% [markdown]
# A folder that is half written looks like a whole one: `accelerated.save_checkpoint` writes under a hidden name and
# renames, as lesson 01 does. Other tools, from `autocast` to trackers, follow in *Deeper: the small tools*.
#
# ## 8 · Under a real launcher
#
# On a cluster nobody calls functions from a notebook. A program is started by `accelerate launch`, `torchrun` or
# `deepspeed`, and each copy finds out who it is. `course_utils/recipes/train_with_accelerate.py` is lesson 01's program
# plus marked lines. `run_launched` starts it with the real launcher, shows the ranks' output as it comes, and collects
# what each reports. If a rank fails, it names the first and shows its traceback, and nothing is left running.

# %% tags=["nbval-ignore-output"]
from course_utils.parallel import run_launched
from course_utils.recipes import train_with_accelerate as recipe

tiny = ["--hidden_size=32", "--num_hidden_layers=1", "--max_length=16"]
tiny += ["--batch_size=8", "--max_steps=20", f"--folder={scratch.name}/run"]
reports = run_launched(recipe.__file__, "accelerate", processes=2, arguments=tiny)
size, wrapper = reports[1]["world_size"], reports[1]["wrapper"]
teach.claim("two ranks met", size == 2 and wrapper == "DistributedDataParallel")

# %% [markdown]
# The same in a terminal. `--multi_gpu` asks for one process per device. On a CPU the variable is needed: without it
# accelerate looks for GPUs, finds none and lets every rank train alone, with exit code 0.
#
# ```bash
# ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 \
#     --module course_utils.recipes.train_with_accelerate --folder runs/two
# ```
#
# | you write | what runs on a CPU machine |
# |---|---|
# | `accelerate launch --cpu --num_processes 2` | one process |
# | `torchrun --nproc-per-node 2`, plain `Accelerator()` | two separate runs |
# | the command above, or `Accelerator(cpu=True)` under torchrun | two ranks |

# %% [markdown]
# ### Exercise 08.5 · write
#
# The objective of this lesson. This loop accumulates two micro-batches a step. Port it, so that it trains on any number
# of ranks exactly as on one:
#
# ```python
# def train_loop(model, optimizer, scheduler, loader):
#     losses, total = [], 0.0
#     for i, (x, y) in enumerate(loader):
#         loss = nn.functional.cross_entropy(model(x), y) / 2
#         loss.backward()
#         total += loss.item()
#         if i % 2:
#             nn.utils.clip_grad_norm_(model.parameters(), 0.5)
#             optimizer.step()
#             scheduler.step()
#             optimizer.zero_grad()
#             losses.append(total)
#             total = 0.0
#     return model, losses
# ```
#
# `accelerator` has `gradient_accumulation_steps=2` and `step_scheduler_with_optimizer=False`. Nothing is prepared yet.
# Return the trained model and the loss of each step over the rows of all ranks. The checker compares with one process
# at the same effective batch.


# %%
def train_loop(accelerator, model, optimizer, scheduler, loader):
    """(the trained model, the loss of each step)."""
    return ...


# %%
teach.check("08.5", train_loop)

# %% [markdown]
# ## 9 · What the model does now
#
# The model that two ranks trained, in this one process. Of this project's sentences, one for each library that they
# remind it of:

# %% tags=["nbval-ignore-output"]
trained = task.load_saved(source, seed, saved)
shown = {}
for sentence, label in task.classify(trained, source, own_sentences()):
    shown.setdefault(names[label], sentence)
for name, sentence in shown.items():
    print(f"{name:13} <- {sentence[:60]}")
right = task.accuracy_of_one_process(source, seed, saved, 500)
largest = task.largest_class_share(source, 500)
print(f"accuracy on 500 rows {right:.2f}; always the largest class: {largest:.2f}")
enough = max_steps >= 100 and source == "local"
teach.claim("it beats the largest class on 500 rows", right > largest, when=enough)

# %% [markdown]
# ## Deeper: why not `notebook_launcher`?
#
# `accelerate.notebook_launcher(function, num_processes=2)` starts ranks out of the kernel, as forks: copies that
# inherit its memory. It must come before anything has touched a GPU or made an `Accelerator`. If a fork hangs, your
# kernel hangs with it. And what it runs is not what the cluster will run. In this kernel, which has an `Accelerator`:

# %%
from accelerate import notebook_launcher

alone = Accelerator()
try:
    notebook_launcher(print, num_processes=2)
    refused = False
except ValueError as error:
    print(str(error).split(".")[0] + ".")
    refused = True
teach.claim("notebook_launcher refuses once the kernel has an Accelerator", refused)

# %% [markdown]
# ## Deeper: the small tools
#
# - **`main_process_first`** lets rank 0 download or tokenise while the others wait; then they read what it left.
#   **`wait_for_everyone`** only waits until all ranks are there.
# - **`set_seed(..., device_specific=True)`** gives each rank its own random numbers, for dropout. Without it all ranks
#   draw the same.
# - **`autocast`** is lesson 03's mixed precision. Inside the block products are computed in bf16. A prepared model does
#   it by itself and returns float32.
# - **Trackers** (`log_with=`, `init_trackers`, `log`) and **`accelerator.print`** write on rank 0 only.


# %%
import os


def small_tools(folder):
    from accelerate.utils import set_seed

    settings = {"mixed_precision": "bf16", "log_with": "tensorboard"}
    accelerator = Accelerator(**settings, project_dir=folder)
    model = accelerator.prepare(nn.Linear(4, 2))
    found = expect_ranks(accelerator, 2, model)
    marker = Path(folder) / "tokenized"
    with accelerator.main_process_first():
        found["found the cache"] = marker.exists()
        marker.touch()
    set_seed(0)
    found["same seed"] = round(torch.rand(1).item(), 3)
    set_seed(0, device_specific=True)
    found["own seed"] = round(torch.rand(1).item(), 3)
    with accelerator.autocast():
        found["inside autocast"] = str(torch.ones(2, 2).mm(torch.ones(2, 2)).dtype)
    found["prepared model's output"] = str(model(torch.ones(1, 4)).dtype)
    found["weights"] = str(model.module.weight.dtype)
    accelerator.init_trackers("run", config={"lr": 1e-3})
    accelerator.log({"loss": 1.0}, step=0)
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()  # a program ends with accelerator.end_training() instead
    files = [path.name for path in Path(folder).rglob("*tfevents*")]
    found["wrote to the tracker"] = any(f".{os.getpid()}." in name for name in files)
    return found


tools = ranks(small_tools, folder=scratch.name)
for name in list(tools[0])[4:]:
    print(f"{name:24} rank 0: {tools[0][name]!s:16} rank 1: {tools[1][name]}")

# %%
first, second = tools
waited = [rank["found the cache"] for rank in tools]
teach.claim("rank 1 found what rank 0 had left", waited == [False, True])
wrote = [rank["wrote to the tracker"] for rank in tools]
teach.claim("only rank 0 wrote to the tracker", wrote == [True, False])
teach.claim("set_seed alone: equal numbers", first["same seed"] == second["same seed"])
teach.claim("device_specific: other numbers", first["own seed"] != second["own seed"])

# %% [markdown]
# ## Deeper: reading a window ahead
#
# Weighting by targets needs the counts *before* the first micro-batch, so the window must be read ahead. `accumulate`
# notices an epoch's end by the loader's last batch, and a loader that was read ahead has passed it. The short last
# window is then never stepped. Where you read ahead, use `accelerator.no_sync(model)` on all micro-batches but the
# last, as `course_utils/parallel/accelerated.py` and the Trainer do. Five batches, windows of two:


# %%
def windows_stepped(ahead):
    from course_utils.data.batches import windows

    accelerator = Accelerator(gradient_accumulation_steps=2)
    expect_ranks(accelerator, 2)
    loader, full = accelerator.prepare(DataLoader(range(10), 1)), 0
    model = accelerator.prepare(nn.Linear(1, 1))
    batches = (b for window in windows(loader, 2) for b in window) if ahead else loader
    for _ in batches:
        with accelerator.accumulate(model):
            full += accelerator.sync_gradients
    return full


usual, ahead = (ranks(windows_stepped, ahead=ahead)[0] for ahead in (False, True))
print(f"windows that end in a step: {usual} batch by batch, {ahead} read ahead")
teach.claim("read ahead, the short last window is lost", ahead < usual == 3)

# %% [markdown]
# ## Deeper: local SGD, fewer exchanges
#
# DDP exchanges gradients at every step. On slow networks one can let each rank take several steps alone and then
# average the *weights*: local SGD (Stich, ICLR 2019). Accelerate has it as a context manager. Does it cost quality?
# Three seeds, every step against every eighth.


# %%
def train_local(every, source, steps, seed):
    from accelerate.local_sgd import LocalSGD

    accelerator = Accelerator()
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = task.new_loader(source, 16, seed)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    expect_ranks(accelerator, 2, model)
    apart = []
    with LocalSGD(accelerator, model, every, enabled=every > 1) as local:
        for _, batch in zip(range(steps), loader, strict=False):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
            local.step()
            both = accelerator.gather(torch.tensor([task.some_weights(model)]))
            apart.append((both[0] - both[1]).abs().max().item())
    loss = task.validation_loss(model, source)
    return {"loss": loss, "apart": apart}


# %%
steps = max(8, min(40, max_steps))
run = {"source": source, "steps": steps}
both = {every: three_seeds(train_local, every=every, **run) for every in (1, 8)}
local = {every: [first for first, _ in draws] for every, draws in both.items()}
teach.show(figures.local_sgd(local))
after = local[8][0]["apart"][7::8]
teach.claim("every step: the ranks are always equal", max(local[1][0]["apart"]) == 0)
teach.claim("every 8 steps: equal after each average", max(after) == 0)
teach.claim("every 8 steps: different in between", max(local[8][0]["apart"]) > 0)
losses = {every: [draw["loss"] for draw in draws] for every, draws in local.items()}
added = paired_interval(losses[8], losses[1])
enough = max_steps >= 100 and source == "local"
teach.claim("on average its validation loss is higher", added.value > 0, when=enough)

# %% [markdown]
# Averaging every eighth step costs something here: the differences, seed by seed, are above zero on average. (Started
# from one other seed of six, their interval holds zero.) That is this model, rate and forty steps, no more. What the figure does not show: each rank's Adam moments are its
# own and are never averaged. `LocalSGD` works with plain data parallel only, not with sharding.

# %% [markdown]
# ## Deeper: a whole program, and how equal it is
#
# `train_with_accelerate.py` repeats `train_by_hand.py` line by line. A test compares the two files: every line that
# differs bears the mark `# NEW`. The loop it calls, `course_utils/parallel/accelerated.py`, is compared with lesson
# 01's `loop.py` in the same way.

# %%
from course_utils.parallel import accelerated
from course_utils.training import loop as plain_loop

teach.show(figures.difference(plain_loop.train, accelerated.train))

# %% [markdown]
# How to read it. `micro_loss` is divided by the targets of all ranks; DDP then divides the sum of gradients by the
# ranks once more, hence `* num_processes`. `loss_type` tells how a model counts its targets; DDP's wrapper hides it, so
# it is copied to the wrapper. `PreparedBatches` is `ShuffledBatches` (lesson 01) for a prepared loader: an epoch, and a
# position that can be saved.
#
# Two things are not in the examples you will find elsewhere.
#
# 1. **A batch sampler of your own** is wrapped by `prepare` so that `loader.set_epoch` does not reach it on several
#    ranks. In one process it does. Without `PreparedBatches`, every epoch on two ranks would have the order of the
#    first; measured below.
# 2. **`load_state` on more ranks than saved** restores no random state on the new ranks and says so to nobody.
#    `accelerated.load_checkpoint` refuses.


# %%
def first_batches(epochs):
    from course_utils.data.sampling import LengthGroupedBatchSampler

    accelerator = Accelerator()
    sampler = LengthGroupedBatchSampler([1] * 16, batch_size=2, seed=0)
    loader = accelerator.prepare(DataLoader(range(16), batch_sampler=sampler))
    expect_ranks(accelerator, accelerator.num_processes)
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found.append([batch.tolist() for batch in loader][0])
    return found


in_one, on_two = first_batches(3), ranks(first_batches, epochs=3)[0]
print("first batch of three epochs, one process:", in_one)
print("first batch of three epochs, two ranks:  ", on_two)
differ = in_one[0] != in_one[1] != in_one[2]
teach.claim("one process: another order in each epoch", differ)
teach.claim("two ranks: set_epoch does not arrive", on_two[0] == on_two[1] == on_two[2])

# %% [markdown]
# ## Deeper: what is sent, and when
#
# `no_sync` saves traffic, which can be counted. DDP packs gradients into buckets, each of which is sent at once, and
# calls a function of ours, a hook, to send one.


# %%
def exchanged(accumulation, steps):
    accelerator = Accelerator(gradient_accumulation_steps=accumulation)
    model = accelerator.prepare(nn.Linear(1000, 10))
    expect_ranks(accelerator, 2, model)
    sent = []

    def hook(group, bucket):
        sent.append(bucket.buffer().numel() * 4)
        work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    model.register_comm_hook(None, hook)
    for _ in range(steps):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(4, 1000)).sum())
    return sum(sent)


size = 4 * 10010  # bytes of the gradients
plain, fourth = (ranks(exchanged, accumulation=k, steps=8)[0] for k in (1, 4))
print(f"8 micro-batches, {size:,} bytes of gradients: {plain:,} and {fourth:,} sent")
teach.claim("each of 8 micro-batches exchanges all gradients", plain == 8 * size)
teach.claim("with accumulation 4 two exchanges are left", fourth == 2 * size)

# %%
ranks.close()
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# - Every rank runs the whole program. `prepare` the model, the optimizer, the scheduler and the loader; call
#   `accelerator.backward` and `clip_grad_norm_`.
# - The effective batch is batch size x ranks x accumulation. At the same effective batch two ranks equal one, up to the
#   order of sums.
# - A forgotten `prepare` raises nothing. Compare rows, weights and the last learning rate across ranks.
# - A prepared scheduler steps `num_processes` times. Decide how you count.
# - Divide by the targets of all micro-batches of all ranks.
# - `gather_for_metrics`, then compute once. Assert world size, backend, type and wrapper.
#
# ### You may see
#
# | elsewhere | today |
# |---|---|
# | `Accelerator(fp16=True)` | `Accelerator(mixed_precision="fp16")` |
# | `Accelerator(split_batches=True)` | `DataLoaderConfiguration(split_batches=True)` as `dataloader_config` |
# | `accelerator.gather(...)` for metrics | `accelerator.gather_for_metrics(...)` |
#
# ## Quiz

# %% [markdown]
# **1.** Your run on four ranks gives exactly the losses of a run on one, at the same batch size per rank. Good news?
#
# <details><summary>Answer</summary>
#
# No. Four ranks should see four times as many rows a step. Equal losses mean equal rows: the loader was not prepared,
# or the four processes never met and each trains alone.
#
# </details>

# %% [markdown]
# **2.** Why does the last batch of an epoch matter for accuracy and hardly for training?
#
# <details><summary>Answer</summary>
#
# A few rows are repeated so that all ranks take the same number of steps. In training these weigh a little more. A
# score, however, then counts some rows twice, and depends on the number of ranks.
#
# </details>

# %% [markdown]
# **3.** You save with `if accelerator.is_main_process: accelerator.save_state(folder)`. What happens?
#
# <details><summary>Answer</summary>
#
# The random states of the other ranks are missing, so a resumed run differs. With sharded models it hangs: saving
# gathers the shards, and the other ranks do not take part.
#
# </details>

# %% [markdown]
# **Next:** [lesson 09](09_speed_and_memory.ipynb) makes one process fast, before more of them are added. Lesson 11
# builds DDP by hand.
