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
max_steps = 40  # of the run whose curves are shown
seed = 0

# %% slideshow={"slide_type": "skip"}
import torch

from course_utils import teach
from course_utils.lessons.lesson_11 import figures, on_ranks
from course_utils.parallel import collectives, reference, shared_ranks
from course_utils.parallel.data_parallel import buckets_of
from course_utils.parallel.data_parallel_runs import train_data_parallel
from course_utils.parallel.links import in_threads
from course_utils.parallel.sampler import ShardedSampler

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
ranks = shared_ranks(2)
run = {"steps": max_steps, "seed": seed, "source": source}

# %% [markdown] slideshow={"slide_type": "slide"}
# # 11 · Data parallel
#
# Two processes, one model

# %% [markdown] slideshow={"slide_type": "notes"}
# Lesson 08 let prepare do it. Today we build it: the exchange, the average, the buckets. Then DDP, Accelerate and the
# Trainer have to give our bits. About 75 minutes with exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The average of gradients is the gradient of all rows
#
# Weighted by each rank's targets, the average is exactly the gradient of all rows.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
own = ranks(on_ranks.one_gradient, source=source, seed=seed)
alone = ranks(on_ranks.one_gradient, source=source, seed=seed, rows="all")[0]
total = sum(rank["targets"] for rank in own)
average = sum(torch.tensor(rank["gradient"]) * rank["targets"] / total for rank in own)
teach.show(figures.gradients(own, average, torch.tensor(alone["gradient"])))

# %% [markdown] slideshow={"slide_type": "notes"}
# One weight matrix's gradient, on two real processes. The rows are sorted by length, so rank 1 has more targets: the
# average is weighted by them. Ask: what would a plain mean of the two pictures be? A mean of means, section 6.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## So two ranks make the same run
#
# Every way of training on several processes has to repeat this run.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
one = reference.train_alone(**run)
two = ranks(train_data_parallel, kind="bucketed", **run)[0]
teach.show(figures.two_runs(one["losses"], two["losses"]))

# %% [markdown] slideshow={"slide_type": "notes"}
# The reference run of lessons 11 to 13: a tiny decoder, fixed rows, no dropout. Every way of training on several
# processes has to repeat it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who is who
#
# RANK counts over all nodes, LOCAL_RANK chooses the GPU.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.who_is_who())

# %% [markdown] slideshow={"slide_type": "notes"}
# torchrun runs once per node and starts the ranks. RANK counts over all nodes, LOCAL_RANK chooses the GPU. Rank 0 opens
# the port, the others connect to it: a process group. NCCL on GPUs, gloo on CPUs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Four collectives
#
# All-reduce is reduce-scatter, then all-gather.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.collectives())

# %% [markdown] slideshow={"slide_type": "notes"}
# A row is a rank, a column a chunk. Point out that all-reduce is reduce-scatter, then all-gather. Lesson 12 takes the
# two apart and keeps the middle: each rank with its own slice of the sum.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The ring
#
# All send at once, and each waits only for its left neighbour.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.ring(figures.ring_history(4)))

# %% [markdown] slideshow={"slide_type": "notes"}
# A recorded run on four pretended ranks. Follow chunk 0: it starts at rank 1, collects B, C, D, and is complete at rank
# 0. All send at once; each waits only for its left neighbour. If all sent first and then received, on gloo, all would
# wait for ever.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 2(N-1)/N, counted
#
# Less than twice the tensor, on any number of ranks.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


def most_sent(way, size, elements):
    def on_each(link):
        way(link, torch.ones(elements))
        return link.bytes

    return max(in_threads(on_each, size))


ways = {"naive": collectives.all_reduce_naive, "ring": collectives.all_reduce_ring}
counted = {name: {size: most_sent(way, size, 840) for size in range(2, 9)} for name, way in ways.items()}
teach.show(figures.bytes_sent(counted, 4 * 840))

# %% [markdown] slideshow={"slide_type": "notes"}
# Naive: rank 0 sends the whole to each of the others. Ring: less than twice the tensor, on any number of ranks. The
# number of steps grows, though: for small tensors other patterns are better. Exercise 11.1: write the ring.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## By hand
#
# ```python
# wrapped = AverageAfter(model, link)        # rank 0's weights for all
# for batch in batches:
#     mine = share(batch, link.rank, link.size)
#     targets = link.all_reduce(count_targets(mine))
#     loss = summed_loss(wrapped, mine) / targets
#     (loss * link.size).backward()
#     wrapped.finish()                       # average, gradient by gradient
#     optimizer.step()
#     optimizer.zero_grad()
# ```
#
# > Divide by the targets of all ranks.

# %% [markdown] slideshow={"slide_type": "notes"}
# finish divides by the ranks, as DDP does; so the loss is multiplied by them first. Exercise 11.2 starts from gradients
# of mean losses: weigh them.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Buckets fill from the end of the model
#
# The last block's gradients travel while the first block's are computed.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
model = reference.new_model(seed)
teach.show(figures.buckets(model, buckets_of(list(model.parameters()), 128 * 1024)))

# %% [markdown] slideshow={"slide_type": "notes"}
# Backward reaches the last block first. Its gradients can travel while the others are computed. The embedding comes
# last: it is also the output matrix, so its gradient is complete only at the end. Buckets go out in one fixed order:
# ranks pair exchanges by their order.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Overlap, with time stamps
#
# In buckets most messages travel during backward; the last can hide behind nothing.

# %% slideshow={"slide_type": "-"} tags=["hide-input", "nbval-ignore-output"] jupyter={"source_hidden": true}
options = {"naive": {}, "bucketed": {"bucket_bytes": 2**20}}
teach.show(figures.timelines({kind: ranks(on_ranks.timeline, kind=kind, **more)[0] for kind, more in options.items()}))

# %% [markdown] slideshow={"slide_type": "notes"}
# One step, rank 0, this machine. Naive: the network rests during backward, then the processor rests. In buckets: fewer
# messages, most of them during backward. The very last can overlap with nothing. Here two ranks share the cores, so do
# not read milliseconds as a promise: the step shown is the one of median length of five. Compare where exchanges begin.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## `no_sync`: talk once a window
#
# ```python
# for number, batch in enumerate(window, start=1):
#     if number < len(window):
#         with wrapped.no_sync():
#             loss_of(batch).backward()      # adds up on this rank
#     else:
#         loss_of(batch).backward()          # the hooks send the sum
# ```

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
for quiet in (True, False):
    sent = ranks(on_ranks.window_of_four, quiet=quiet, source=source, seed=seed)[0]
    name = "with no_sync" if quiet else "without"
    print(f"four micro-batches, {name:12} {sent['messages']:3} messages, {sent['bytes']:9,} bytes")

# %% [markdown] slideshow={"slide_type": "notes"}
# The same gradient, four times the traffic. Exercise 11.3: count the messages of an epoch whose last window is short.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Five ways, the same bits
#
# Distances from one process: zero is bitwise, small is another order of sums.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
names = {
    "by hand, naive": "naive",
    "by hand, in buckets": "bucketed",
    "DDP": "ddp",
    "Accelerate": "accelerate",
    "Trainer": "trainer",
}
short = run | {"steps": 10}
results = {name: ranks(train_data_parallel, kind=kind, **short)[0] for name, kind in names.items()}
off = ranks(train_data_parallel, kind="trainer", average_tokens=False, **short)[0]
teach.show(figures.equality(results | {"Trainer, own targets": off}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Blue: one process that adds up two micro-batches, as the two ranks do: zero. a+b is b+a. Red: one batch of 8 rows adds
# up inside its matrix products in another order. Last line: average_tokens_across_devices=False is no rounding, it is
# another gradient.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## An epoch's rows, dealt out

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
settings = {"filled up (default)": {}, "drop_last=True": {"drop_last": True}}
dealt = {name: [list(ShardedSampler(11, r, 3, **some)) for r in range(3)] for name, some in settings.items()}
teach.show(figures.dealt(dealt))

# %% [markdown] slideshow={"slide_type": "-"}
# - the order is drawn from `seed + epoch`: call **`set_epoch`**
# - forgotten: the same batches again, each row stays with its rank

# %% [markdown] slideshow={"slide_type": "notes"}
# All ranks must make equally many steps. In training one row more or less does not matter; in a score it does. Exercise
# 11.4 writes the sampler.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Goes wrong: a model of its own on each rank
#
# Averaged gradients of different models never make one model.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
variants = {"right": {"same": True, "equal_start": True}, "wrong": {"same": False, "equal_start": False}}
task = {"steps": 30, "source": source}
found = {
    name: [ranks(on_ranks.train_from_seeds, **some, **task, seed=seed + i)[0] for i in range(3)]
    for name, some in variants.items()
}
worse = [wrong["loss"] - right["loss"] for wrong, right in zip(found["wrong"], found["right"], strict=True)]
teach.show(figures.seeds({"own weights": found["wrong"][0]["apart"], "rank 0's": found["right"][0]["apart"]}, worse))

# %% [markdown] slideshow={"slide_type": "notes"}
# The ranks average gradients of different models. Only weight decay pulls them together, a little. On unseen rows the
# loss is higher in all three seeds. DDP's broadcast at construction repairs it, and then the other ranks' seeds change
# nothing, to the bit.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Symptoms and checks
#
# | symptom | look for |
# |---|---|
# | ranks differ | no equal start; a step before the average |
# | not as one process | a mean of means; clipping before the average |
# | same batches each epoch | `set_epoch` |
# | more rows than there are | filling; all ranks evaluate all |
# | a hang | different collectives: look at **all** stacks |
# | EADDRINUSE | another run on this port: `--standalone` |

# %% [markdown] slideshow={"slide_type": "notes"}
# Gloo, shapes that do not fit: rank 1 hangs at the cause, rank 0 has a result and hangs one exchange later.
# monitored_barrier (gloo only) names the rank that is missing. Exercise 11.5: a loop that forgot three things.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Start it, and start it again
#
# ```bash
# torchrun --standalone --nproc-per-node 2 train.py
#
# torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
#     --rdzv-endpoint first-node:29500 --rdzv-id my-job \
#     --max-restarts 2 train.py
# ```
#
# - a killed rank: torchrun ends the others and starts all again
# - going on where the run was is **yours**: a complete checkpoint

# %% [markdown] slideshow={"slide_type": "notes"}
# The lesson kills rank 1 before step 6; both ranks come back from step 4 and end with the uninterrupted run's weights,
# bit for bit. On gloo this needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1. Two nodes are two torchruns: shown on one
# machine.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - **11.1** A ring all-reduce
# - **11.2** Average gradients
# - **11.3** Count the messages
# - **11.4** Shard a sampler
# - **11.5** A loop that forgot something
# - **11.6** The data parallel step
#
# > Next: lesson 12, not everything on every rank.

# %% [markdown] slideshow={"slide_type": "notes"}
# 36 minutes. The checkers run answers on pretended ranks, threads that wait as strictly as real ones: a deadlock is
# told after two seconds.

# %% slideshow={"slide_type": "skip"}
ranks.close()
