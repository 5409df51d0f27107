# %% tags=["parameters"] slideshow={"slide_type": "skip"}
source = "local"
max_steps = 120
seed = 0

# %% slideshow={"slide_type": "skip"}
import copy
import json
from pathlib import Path

import torch
from torch import nn
from transformers import DataCollatorWithPadding

import course_utils
from course_utils import teach
from course_utils.data import load_classification
from course_utils.data.batches import ShuffledBatches
from course_utils.lessons.lesson_01 import figures
from course_utils.models import load_classifier, load_tokenizer
from course_utils.teach import charts
from course_utils.training.evaluation import evaluate, macro_f1
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import AdamW, ForeachAdamW, parameter_groups
from course_utils.training.schedules import cosine_with_warmup, linear_with_warmup, make_scheduler
from course_utils.training.timing import interleaved_medians

teach.start(source=source, max_steps=max_steps, seed=seed)
recorded = Path(course_utils.__file__).parents[1] / "bench" / "results"

# %% [markdown] slideshow={"slide_type": "slide"}
# # 01 · The training loop
#
# Five lines, written by hand once, and what can go wrong in each of them

# %% [markdown] slideshow={"slide_type": "notes"}
# Welcome. Everything later in the course, Trainer, data parallel, FSDP, DeepSpeed, is this loop with parts moved
# around. Today we write it ourselves. The lesson takes an hour; every number in it is measured while it runs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A real task, and a bar to clear
#
# - which library does this sentence of documentation come from?
# - 10 classes, about **30 : 1** between the largest and the smallest
# - two numbers: accuracy, and **macro-F1** (every class counts the same)
# - baselines first: majority class, TF-IDF + logistic regression
#
# > A network that does not beat word counts has no business being trained.

# %% [markdown] slideshow={"slide_type": "notes"}
# The data is on everybody's disk: docstrings of the installed libraries, split by source file. Show the majority
# baseline in the notebook: accuracy looks like something, macro-F1 is near zero. That is what imbalance does. TF-IDF
# needs seconds.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loop
#
# ```python
# for batch in batches:
#     outputs = model(**batch)        # forward
#     loss = outputs.loss             # loss
#     loss.backward()                 # d loss / d p  into  p.grad
#     optimizer.step()                # move every p
#     model.zero_grad()               # backward ADDS: clear it
# ```
#
# - the first loss: $\ln(\text{classes})$ or a few tenths above, on some hundred rows
# - one batch, repeated, must overfit

# %% [markdown] slideshow={"slide_type": "notes"}
# Ask the room what happens without the last line before you go on. Then the two free tests of any new script: the
# first loss is ln 10 = 2.3 for ten classes or a few tenths above (the lesson's model starts at 2.6: random logits have
# a spread of almost 1), and a handful of rows can be learnt by heart. Eight rows are too few for the first test. If
# one of the two fails, do not start the long run.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Adam: a step size per parameter
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2$$
#
# $$p \leftarrow p - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}$$
#
# - $m$: direction, smoothed; $\sqrt{v}$: typical size of the gradient
# - the hats: corrected for their start at zero (next slide)
# - the ratio is about 1 at most, whatever the gradient's scale
# - $\epsilon$ stands **outside** the root

# %% [markdown] slideshow={"slide_type": "notes"}
# SGD uses one rate for everything. A rare word's embedding and a norm's scale see gradients of very different size.
# Adam divides by the size. The ratio is about 1 when the gradient keeps its sign and about 0.2 when it is pure noise,
# so the learning rate is roughly the longest step a parameter makes. Beta1 is 0.9, beta2 is 0.999. Epsilon inside the
# root would act like 1e-4 and swallow small gradients: the lesson has a three-line table of that.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Bias correction

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
m, raw = 0.0, []
for _ in range(30):
    m = 0.9 * m + 0.1 * 1.0
    raw.append(m)
corrected = [m / (1 - 0.9**t) for t, m in enumerate(raw, start=1)]
teach.show(
    figures.bias_correction(range(1, 31), raw, corrected, 1.0),
    alt="The raw moving average climbs slowly from near zero; the corrected one is right from the first step.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# Both averages start at zero. For a constant gradient m is g times one minus beta to the t; divide it out. v is even
# further off, so without the correction the first hundred steps are three to seven times too long, when we know the
# direction least.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Adam + L2 is not AdamW


# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
def decay_path(make_optimizer, scale, steps=600, copies=200):
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.ones(copies))
    optimizer, path = make_optimizer([p]), [1.0]
    for _ in range(steps):
        p.grad = scale * torch.randn(copies, generator=generator)
        optimizer.step()
        path.append(p.mean().item())
    return path


versions = {"AdamW": AdamW, "Adam + L2": torch.optim.Adam}
paths = {
    f"{version}, {size} gradients": decay_path(lambda p, c=cls: c(p, lr=2e-3, weight_decay=0.5), scale)
    for version, cls in versions.items()
    for size, scale in {"large": 10.0, "small": 0.01}.items()
}
teach.show(
    figures.decay_paths(paths),
    alt="Under AdamW both weights shrink alike. Under Adam plus L2 the weight with large gradients hardly shrinks.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# Pure noise as gradient, so decay is the only force. Left: both weights shrink at the same rate. Right: L2 joins the
# gradient and is divided by its size, so the weight with large gradients keeps nearly everything. That is what
# "decoupled" in AdamW means: decay acts on the weight and never enters m or v. In torch decay is multiplied by the
# learning rate; in the paper only by the schedule's factor. With torch, halving the rate halves the decay.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who gets decayed?
#
# ```python
# matrices = [p for p in model.parameters() if p.ndim >= 2]
# vectors = [p for p in model.parameters() if p.ndim < 2]
# groups = [
#     {"params": matrices, "weight_decay": 0.01},
#     {"params": vectors, "weight_decay": 0.0},
# ]
# ```
#
# - decay is for matrices
# - a bias or a norm's scale is one number per feature: pulling it to zero removes signal
# - an optimizer takes these **parameter groups** in place of parameters

# %% [markdown] slideshow={"slide_type": "notes"}
# In the lesson's model 19 tensors are decayed and 11 are not: ten scales of norms and the classifier's bias. The lesson
# prints their names. Trainer divides the parameters of this model in the same way; a test compares the two.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## AdamW, three times
#
# | version | what it is |
# |---|---|
# | readable | the formula, parameter by parameter |
# | foreach | each line once, for a list of all tensors |
# | compiled | one fused loop: read and write every number once |
#
# Each equals `torch.optim.AdamW`: $\le 10^{-12}$ in float64 over 200 steps.

# %% [markdown] slideshow={"slide_type": "notes"}
# Compare optimizers in float64 and on one sequence of gradients. If each trains its own model, a difference in rounding
# changes the next gradient, and two right versions can drift apart. The lesson compares the first two; the compiled one
# needs longer, so bench/bench_optimizer.py and tests/training/test_optim.py compare it. One trap of the compiled
# version: what changes each step must be a tensor, or it is compiled anew every step.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One step: measured here, and recorded

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
data = load_classification(source)
num_labels = data["train"].features["label"].num_classes
model = load_classifier(num_labels, source)


def stepper(cls, **options):
    params = copy.deepcopy(list(model.parameters()))
    for p in params:
        p.grad = torch.randn_like(p)
    return cls(params, **options).step


steps_of = {
    "torch for-loop": stepper(torch.optim.AdamW, foreach=False),
    "torch foreach": stepper(torch.optim.AdamW, foreach=True),
    "torch fused": stepper(torch.optim.AdamW, fused=True),
    "own readable": stepper(AdamW),
    "own foreach": stepper(ForeachAdamW),
}
bench = json.loads((recorded / "optimizer.json").read_text())
machine = f"{bench['machine']}, {bench['threads']} threads, torch {bench['torch']}"
assert bench["ratio_to_fused"]["own compiled"] <= 1.1 and max(bench["largest_difference_float64"].values()) <= 1e-12
teach.show(
    figures.step_times(interleaved_medians(steps_of, rounds=30), bench["ratio_to_fused"], machine),
    alt="On a CPU, torch's fused step is the fastest measured here; the for-loop and foreach versions take several "
    "times as long. In the recorded ratios the compiled version lies beside fused.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# Interleaved rounds, medians. The fused version is one pass and one call for all tensors; the others make about eight
# calls and passes per tensor. foreach gains little on a CPU: its benefit is fewer kernel launches on a GPU. The
# diamonds are the ratios in bench/results/optimizer.json, with the compiled version, on the machine in the legend.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Warm up, then decay

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
curves = {
    name: [1e-3 * schedule(step, 50, 500) for step in range(501)]
    for name, schedule in {"linear": linear_with_warmup, "cosine": cosine_with_warmup}.items()
}
teach.show(
    charts.schedules(curves, 50),
    alt="Both schedules rise over the first tenth of the run; one then falls in a line, the other along a cosine.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# Warm-up because Adam's averages rest on one batch at first. At step 0 the rate is 0: the first step changes nothing,
# in transformers too. Decay because late error is mostly noise between
# batches, and small steps average it out. Both are plain functions from step to factor, equal to transformers' at
# every step. One step of the scheduler per optimizer step, not per micro-batch.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Clip by global norm
#
# $$g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert}\right)$$
#
# - one norm over **all** gradients, one factor for all
# - the direction stays
# - on a GPU: no `if`, it would wait for the device

# %% [markdown] slideshow={"slide_type": "notes"}
# One bad batch can undo a hundred steps. Clipping each tensor on its own would bend the direction. Watch the norm: a
# jump is often the first sign of trouble, long before the loss shows it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Accumulation: divide by all targets
#
# effective batch = per-device batch × devices × accumulation

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
generator = torch.Generator().manual_seed(seed)
counts = [8, 40, 14, 19]
layer = nn.Linear(16, 10, dtype=torch.float64)


def gradient(pieces, weights):
    layer.zero_grad()
    for (x, y), weight in zip(pieces, weights, strict=True):
        (weight * nn.functional.cross_entropy(layer(x), y)).backward()
    return torch.cat([p.grad.flatten() for p in layer.parameters()])


errors = {"loss / k": [], "all targets": []}
for _ in range(5):
    pieces = [
        (
            torch.randn(n, 16, generator=generator, dtype=torch.float64),
            torch.randint(0, 10, (n,), generator=generator),
        )
        for n in counts
    ]
    reference = gradient([tuple(map(torch.cat, zip(*pieces, strict=True)))], [1.0])
    for name, weights in (("loss / k", [1 / 4] * 4), ("all targets", [n / sum(counts) for n in counts])):
        errors[name].append(((gradient(pieces, weights) - reference).norm() / reference.norm()).item())
teach.show(
    figures.accumulation_bug(counts, errors),
    alt="Dividing by the number of micro-batches gives targets in short ones several times their weight; "
    "dividing by all targets of the window equals the big batch.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# What is measured: a random linear layer on random data, with the numbers of targets that the lesson's first window
# has. The lesson does it with a masked language model on sentences. The big batch's loss is a mean over its targets.
# Divide sums by the number of targets in the whole window. Dividing means by k is the same only when all
# counts are equal, which they are not: padding, masking, the short last window.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A real run

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
tokenizer = load_tokenizer(source)
collate = DataCollatorWithPadding(tokenizer)


def tokenize(split):
    encoded = tokenizer(list(data[split]["text"]), truncation=True, max_length=48)
    columns = zip(encoded["input_ids"], encoded["attention_mask"], data[split]["label"], strict=True)
    return [dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True)) for row in columns]


rows = tokenize("train")
held_out = sorted(tokenize("validation"), key=lambda row: len(row["input_ids"]))
validation = list(ShuffledBatches(held_out, 100, collate, shuffle=False))
optimizer = ForeachAdamW(parameter_groups(model, 0.01), lr=1e-3)
history = train(
    model,
    ShuffledBatches(rows, 32, collate, seed=seed, lengths=[len(row["input_ids"]) for row in rows]),
    optimizer,
    LoopConfig(max_steps, eval_every=max_steps // 5),
    make_scheduler(optimizer, "linear", max_steps // 10, max_steps),
    evaluate=lambda: evaluate(model, validation),
)
teach.show(
    figures.training_curve(history, 1.0),
    alt="Training and validation loss fall together. The gradient norm falls too, on a logarithmic axis, and lies "
    "above the clipping threshold.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# A short run, made when this deck was built; the lesson's run is four times as long. The first validation point may lie
# below the blue line: that line is a mean over the last 25 steps, and the loss falls steeply. The norm's axis is
# logarithmic: it starts at about 50 and ends near 9 here, near 4 in the lesson's run. With a limit of 1 nearly every
# step is clipped.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Did it clear the bar?
#
# Test split, after 500 steps on 12,000 rows

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
truth = torch.tensor(list(data["test"]["label"]))
majority = torch.full_like(truth, torch.tensor(list(data["train"]["label"])).mode().values)
scores = json.loads((recorded / "classifier.json").read_text())
encoder = [run["test"] for run in next(tried for tried in scores["compared"] if not tried["changes"])["runs"]]
always = {"accuracy": (majority == truth).double().mean(), "macro_f1": macro_f1(majority, truth, num_labels)}
word_weights = scores["word_weights_test"]
teach.show(
    charts.score_bars(
        {"majority class": [always], "TF-IDF + regression": [word_weights], f"encoder, {len(encoder)} seeds": encoder}
    ),
    alt="Accuracy and macro-F1 of three models: the majority class is far below, word weights come second, and every "
    "seed of the encoder lies a little above word weights in both.",
)
for score, bar in word_weights.items():
    assert min(run[score] for run in encoder) > bar > always[score]

# %% [markdown] slideshow={"slide_type": "notes"}
# The numbers are from bench/results/classifier.json: the lesson's settings with three seeds, each a dot. Every seed
# beats word weights in both numbers, by a small margin. That is what 12,000 labels buy an encoder that has never read
# anything else. Lesson 02 measures what pretraining adds.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Evaluation: three lines to forget
#
# - `model.eval()`: dropout off; back to `train()` afterwards
# - `torch.no_grad()`: no activations kept
# - collect **all rows**, reduce once: the mean of batch means is another number
#
# > Evaluate twice. If the two results differ, dropout is on.

# %% [markdown] slideshow={"slide_type": "notes"}
# The check at the bottom is worth having in a test. The mean of batch means is wrong as soon as the last batch is
# shorter.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A checkpoint holds what the next step depends on
#
# - weights; the optimizer's $m$, $v$ and step counts
# - the scheduler's step
# - the position in the data, and its order
# - random states: Python, NumPy, torch
#
# Written under a temporary name, flushed, then **renamed**: complete or absent. One that is replaced is renamed away
# first, and deleted last.

# %% [markdown] slideshow={"slide_type": "notes"}
# The lesson leaves out one part at a time and shows that the resumed run differs. Then it kills a real process with
# SIGKILL, starts it again, and compares the final weights with those of an undisturbed run: every bit is equal. The
# lesson also interrupts a save before its rename; the tests kill a process at six places of a save. A save of a step
# that exists is the tricky one: delete the old folder first, and a kill leaves half of it under the final name.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Five silent mistakes
#
# | mistake | check |
# |---|---|
# | `loss / k`, ragged batches | one window against the big batch |
# | scheduler per micro-batch | its step count = optimizer's |
# | `zero_grad` forgotten | gradient = a fresh backward's |
# | no `model.eval()` | evaluate twice |
# | last window dropped, or left in `.grad` | targets seen = targets there |

# %% [markdown] slideshow={"slide_type": "notes"}
# None raises an error. Each is planted and measured in the lesson. Take the right column home: five assertions that
# fit into any training script.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - 01.1 bias correction
# - 01.2 decoupled decay
# - 01.3 token-weighted accumulation
# - 01.4 cosine schedule with warm-up
#
# `teach.check(...)` says what it tried, what it expected, and gives a hint.

# %% [markdown] slideshow={"slide_type": "notes"}
# Twenty minutes. The stubs are in the notebook. Next lesson: what is inside a batch, and what padding costs.
