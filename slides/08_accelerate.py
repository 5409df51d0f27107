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
max_steps = 60  # of the run whose curves are shown
seed = 0

# %% slideshow={"slide_type": "skip"}
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader

from course_utils import teach
from course_utils.lessons.lesson_08 import figures, task
from course_utils.parallel import shared_ranks
from course_utils.parallel.accelerated import expect_ranks
from course_utils.training.schedules import make_scheduler

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
ranks = shared_ranks(2)


def train_by_hand(source, max_steps, batch_size, seed):
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = make_scheduler(optimizer, "linear", max_steps // 10, max_steps)
    loader = task.new_loader(source, batch_size, seed)
    losses = []
    for _, batch in zip(range(max_steps), loader, strict=False):
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_with_accelerate(source, max_steps, batch_size, seed):
    accelerator = Accelerator(step_scheduler_with_optimizer=False)  # NEW
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = make_scheduler(optimizer, "linear", max_steps // 10, max_steps)
    loader = task.new_loader(source, batch_size, seed)
    prepared = accelerator.prepare(model, optimizer, scheduler, loader)  # NEW
    model, optimizer, scheduler, loader = prepared  # NEW
    expect_ranks(accelerator, 2, model)  # NEW
    losses = []
    for _, batch in zip(range(max_steps), loader, strict=False):
        loss = model(**batch).loss
        accelerator.backward(loss)  # NEW
        accelerator.clip_grad_norm_(model.parameters(), 1.0)  # NEW
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())  # NEW
    return losses


# %% [markdown] slideshow={"slide_type": "slide"}
# # 08 · Accelerate
#
# The loop again, on any hardware

# %% [markdown] slideshow={"slide_type": "notes"}
# Everybody has a loop from lesson 01. Today it runs on two processes, and on sixty-four, after a handful of lines.
# The harder half: what happens, without an error, when one of these lines is missing. About 75 minutes with exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One step on two ranks
#
# Each rank has its own rows and a whole model; only gradients travel.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.flow())

# %% [markdown] slideshow={"slide_type": "notes"}
# A rank is a process and its number. Each has a whole copy of the model and its own rows. Only gradients travel, as
# many numbers as the model has weights, whatever the batch. Same average, same step: the copies stay equal. Ask: what
# would happen if they did not start equal? DDP sends rank 0's weights round at the start.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The lines that change
#
# A handful of lines makes a loop on one process a loop on many.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.difference(train_by_hand, train_with_accelerate))

# %% [markdown] slideshow={"slide_type": "notes"}
# Made from the two functions that this deck runs. Accelerator finds the other ranks through environment variables.
# expect_ranks is ours: world size, backend, distributed type, wrapper. A launcher ends with exit code 0 also when every
# process trained alone.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same run
#
# Same rows, same order: the runs differ by rounding only.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
one = train_by_hand(source, max_steps, 32, seed)
two = ranks(train_with_accelerate, source=source, max_steps=max_steps, batch_size=16, seed=seed)[0]
teach.show(figures.two_runs(one, two))

# %% [markdown] slideshow={"slide_type": "notes"}
# One process with 32 rows, two with 16 each: same rows, same order. The distance is that of float32 sums in another
# order. No dropout here: each rank draws its own masks, so with dropout the runs would differ and both be right.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What `prepare` puts around each object
#
# `prepare` goes by type, and what it does not know comes back as it was.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


def wrapped_types(source, seed):
    accelerator = Accelerator()
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = make_scheduler(optimizer, "linear", 0, 10)
    given = [model, optimizer, scheduler, DataLoader(range(8), 2), [[0, 1], [2, 3]]]
    before = [type(thing).__name__ for thing in given]
    got = accelerator.prepare(*given)
    expect_ranks(accelerator, 2, got[0])
    return list(zip(before, [type(thing).__name__ for thing in got], strict=True))


teach.show(figures.wrapped(ranks(wrapped_types, source=source, seed=seed)[0]))

# %% [markdown] slideshow={"slide_type": "notes"}
# Types as found on rank 0. prepare goes by type; what it does not know comes back as it was. So lesson 01's
# ShuffledBatches, which is no DataLoader, would give every rank all rows. prepare returns new objects: a call whose
# result is not used does nothing for the loader.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who gets which rows?
#
# The end is filled up from the beginning: harmless in training, wrong in a score.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


def rows_of_rank(count, batch_size, **settings):
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**settings))
    expect_ranks(accelerator, 2)
    loader = accelerator.prepare(DataLoader(range(count), batch_size))
    return [batch.tolist() for batch in loader]


dealt = {
    "batches of 2": ranks(rows_of_rank, count=11, batch_size=2),
    "batches of 4, split": ranks(rows_of_rank, count=11, batch_size=4, split_batches=True),
    "batches of 2, uneven": ranks(rows_of_rank, count=11, batch_size=2, even_batches=False),
}
teach.show(figures.who_gets_what(dealt, 11))

# %% [markdown] slideshow={"slide_type": "notes"}
# By default the batch size is per rank. With split_batches it is the total. Ranks must take the same number of steps,
# so the end is filled up from the beginning: row 0 in red. In training harmless, in a score wrong. Uneven: nothing is
# repeated, but DDP would wait for the missing step.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Effective batch = batch size x ranks x accumulation
#
# | | batch size | ranks | accumulation | rows a step |
# |---|---|---|---|---|
# | by hand | 32 | 1 | 1 | 32 |
# | two GPUs | 16 | 2 | 1 | 32 |
# | two small GPUs | 8 | 2 | 2 | 32 |
# | the same script on 8 GPUs | 16 | 8 | 1 | **128** |
#
# > More ranks, same script: another run.

# %% [markdown] slideshow={"slide_type": "notes"}
# Keep the effective batch when you compare. When it grows, learning rate and number of steps are to be reconsidered,
# as in lesson 01 with accumulation.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Forget one of them: nothing raises
#
# Each line that is forgotten leaves a symptom, and none of them is an error.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


def train_without(forgotten, source, steps, seed):
    accelerator = Accelerator(gradient_accumulation_steps=4)
    model = task.new_model(source, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    things = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": make_scheduler(optimizer, "linear", 0, steps * accelerator.num_processes),
        "loader": task.new_loader(source, 8, seed, numbered=True),
    }
    for name in things.keys() - {forgotten}:
        things[name] = accelerator.prepare(things[name])
    model, optimizer, scheduler, loader = things.values()
    expect_ranks(accelerator, 2, None if forgotten == "model" else model)
    seen, rates = [], []
    for _, batch in zip(range(4 * steps), loader, strict=False):
        seen += batch.pop("number").tolist()
        rates.append(optimizer.param_groups[0]["lr"])
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    loss = task.validation_loss(model, source)
    return {"seen": seen, "rates": rates, "weights": task.some_weights(model), "loss": loss}


variants = ("nothing", "model", "optimizer", "scheduler", "loader")
options = {"source": source, "steps": min(12, max_steps)}
forgot = {name: [ranks(train_without, forgotten=name, seed=seed + i, **options) for i in range(3)] for name in variants}
teach.show(figures.forgotten(forgot))

# %% [markdown] slideshow={"slide_type": "notes"}
# Twelve steps, accumulation 4, three seeds. On the right, what is added to the loss of the complete run of the same
# seed: two intervals lie above zero, two hold it, and in a real run there is nothing to compare with. The symptoms
# tell. Without accumulation, in float32, a forgotten optimizer changes nothing at all, which is why it is found
# late.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Three cheap checks
#
# | check | finds |
# |---|---|
# | first step: different rows on each rank | the loader |
# | after ten steps: equal weights, bit for bit | model, optimizer |
# | at the end: the learning rate as planned | the scheduler |
#
# > And before them: world size, backend, type, wrapper.

# %% [markdown] slideshow={"slide_type": "notes"}
# Exercise 08.2 is a planted one: prepare is called and its result thrown away. Give five minutes.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A prepared scheduler counts the ranks
#
# Half of a run at rate zero looks like convergence.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


def rates(length, steps, **settings):
    accelerator = Accelerator(**settings)
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


once = {"step_scheduler_with_optimizer": False}
curves = {
    "planned": task.linear_rates(100),
    "length 100": ranks(rates, length=100, steps=100)[0],
    "length 100 x ranks": ranks(rates, length=200, steps=100)[0],
    "step_scheduler_with_optimizer=False": ranks(rates, length=100, steps=100, **once)[0],
}
teach.show(figures.scheduler_rates(curves))

# %% [markdown] slideshow={"slide_type": "notes"}
# The library assumes that you planned for one process, where an epoch has as many steps as the loader has batches. If
# you count optimizer steps, tell it so. Half of a run at rate zero looks like convergence.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Divide by the targets of all ranks
#
# ```python
# targets = accelerator.reduce(own_targets)      # the sum over the ranks
# for batch in window:
#     with accelerator.accumulate(model):
#         loss = model(**batch).loss             # a mean
#         undo = accumulation * accelerator.num_processes
#         loss = loss * count(batch) / targets * undo
#         accelerator.backward(loss)
# ```
#
# > Two hidden divisions: `backward` by the window, DDP by the ranks.

# %% [markdown] slideshow={"slide_type": "notes"}
# Lesson 01's window, once more: a target in a short micro-batch must not weigh more. The lesson measures a mean of
# means against the gradient of all rows at once: far off on ragged rows; weighted, it is exact up to rounding.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## `gather` repeats rows, `gather_for_metrics` does not

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


def gathered_order(count, batch_size):
    accelerator = Accelerator()
    expect_ranks(accelerator, 2)
    loader = accelerator.prepare(DataLoader(range(count), batch_size))
    return [row for batch in loader for row in accelerator.gather(batch).tolist()]


teach.show(figures.gathered(ranks(gathered_order, count=19, batch_size=4)[0], 19, 4))

# %% [markdown] slideshow={"slide_type": "-"}
# - prepare the loader, read it to its end
# - one entry per row in each tensor
# - compute accuracy and F1 **once**, from everything

# %% [markdown] slideshow={"slide_type": "notes"}
# 19 rows in batches of 4 on two ranks: 24 come back. Averages over ranks are wrong twice: repeated rows, and F1 does
# not average. Exercise 08.4.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Save on all ranks, resume at the batch
#
# ```python
# accelerator.save_state(folder)        # every rank calls it
#
# accelerator.load_state(folder)
# loader = accelerator.skip_first_batches(loader, 5)
# ```
#
# | file | from |
# |---|---|
# | `model.safetensors`, `optimizer.bin`, `scheduler.bin` | rank 0 |
# | `random_states_0.pkl`, `random_states_1.pkl` | each rank |

# %% [markdown] slideshow={"slide_type": "notes"}
# Five steps and three equal eight, bit for bit. The position in the data is the user's: without skip_first_batches the
# run goes on with the first rows again, silently. Resumed on more ranks, the new ones have no random state, silently
# too.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Start it for real
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
# | the line above | two ranks |

# %% [markdown] slideshow={"slide_type": "notes"}
# All three end with exit code 0. That is why the program itself must check. notebook_launcher forks the kernel: it
# refuses once an Accelerator exists, and a hanging fork takes the kernel with it. A subprocess is safer and is what the
# cluster runs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - **08.1** Three ranks, 22 rows: who sees what twice?
# - **08.2** Repair an epoch
# - **08.3** How long must the schedule be?
# - **08.4** Exact macro-F1 on two ranks
# - **08.5** Port the loop, with accumulation
#
# > Next: lesson 09, one process made fast.

# %% [markdown] slideshow={"slide_type": "notes"}
# 30 minutes. The checkers of 08.2, 08.4 and 08.5 run the answer on two real ranks: a wrong one may wait for another
# rank; after a minute it is ended and the checker says so.

# %% slideshow={"slide_type": "skip"}
ranks.close()
